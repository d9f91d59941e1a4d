"""Contrastive pretraining of a small CLIP; every caption true of a picture is a positive."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from bench.worlds.shapes.captions import seen, told
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.make.words import text_config, tokenizer
from bench.worlds.shapes.scenes import PIXELS, Scenes, draw, render

BATCH = 256
NOISE = 0.03  # added to pictures
SCENES = 60_000
AMONG = 1000  # held-out pictures and captions of Recall@1


@dataclass(frozen=True)
class Size:
    """Sizes of a CLIP.

    Attributes:
        width: Of both towers.
        blocks: Of the vision tower.
        heads: Of either.
        patch: Side of a patch in pixels.
        embedding: Size of the shared space.
        steps: Of training.
    """

    width: int
    blocks: int
    heads: int
    steps: int
    patch: int = 8
    embedding: int = 64


REWARD = Size(width=96, blocks=6, heads=4, steps=2600)
JUDGE = Size(width=80, blocks=4, heads=5, steps=1800)


def architecture(size: Size) -> CLIPModel:
    """Untrained."""
    return CLIPModel(
        CLIPConfig(
            text_config=text_config(size.width, 3, size.heads),
            vision_config={
                "hidden_size": size.width,
                "intermediate_size": 2 * size.width,
                "num_hidden_layers": size.blocks,
                "num_attention_heads": size.heads,
                "image_size": PIXELS,
                "patch_size": size.patch,
            },
            projection_dim=size.embedding,
        )
    )


class Told:
    """Scenes with every caption that is true of them.

    Args:
        scenes: Which.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self.captions = [told(s) for s in seen(scenes)]
        texts = sorted({c for told_of in self.captions for c in told_of})
        self.ids = dict(
            zip(texts, tokenizer()(texts, padding="max_length")["input_ids"], strict=True)
        )
        self._lists = [(list(t), torch.tensor(list(t.values()))) for t in self.captions]

    def caption(self, row: int, rng: torch.Generator) -> str:
        """A caption of one scene, as likely as the grammar makes it."""
        texts, p = self._lists[row]
        return texts[int(torch.multinomial(p, 1, generator=rng))]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids, (B, LENGTH)."""
        return torch.tensor([self.ids[c] for c in texts])

    def true(self, texts: Sequence[str], rows: Sequence[int] | None = None) -> Tensor:
        """Which text is true of which scene, all by default, (rows, texts)."""
        told_of = self.captions if rows is None else [self.captions[row] for row in rows]
        return torch.tensor([[c in one for c in texts] for one in told_of])


def embed(clip: Any, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings of pictures and of texts."""
    out = clip(input_ids=ids, pixel_values=x)
    return normalize(out.image_embeds, dim=-1), normalize(out.text_embeds, dim=-1)


def contrastive(clip: Any, told: Told, count: int, rng: torch.Generator) -> Tensor:
    """Cross entropy, either way round, with all true pairs of a batch as targets."""
    rows = torch.randint(len(told.scenes), (count,), generator=rng)
    texts = [told.caption(row, rng) for row in rows.tolist()]
    x = render(told.scenes[rows])
    x = x + NOISE * torch.randn(x.shape, generator=rng)
    images, words = embed(clip, x, told.tokens(texts))
    logits = images @ words.T * clip.logit_scale.clamp(max=4.6).exp()
    true = told.true(texts, rows.tolist()).float()
    by_picture = (true / true.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = (true / true.sum(0) * logits.log_softmax(0)).sum(0).mean()
    return -(by_picture + by_text) / 2


def recalled(pictures: Tensor, texts: Tensor, true: Tensor) -> Tensor:
    """Whether each picture's (P, D) nearest text (T, D) is true of it, true (P, T); (P,)."""
    return true.gather(1, (pictures @ texts.T).argmax(1, keepdim=True))[:, 0]


def train(folder: Path, size: Size, seed: int) -> Iterator[dict[str, Any]]:
    """Train one CLIP from nothing."""
    torch.manual_seed(seed)
    model = architecture(size)
    train_set, tune = Told(draw("train", SCENES)), Told(draw("tune", AMONG))
    held_rng = torch.Generator().manual_seed(0)
    held = [tune.caption(row, held_rng) for row in range(AMONG)]
    truth, pictures, ids = tune.true(held), render(tune.scenes), tune.tokens(held)

    def loss(clip: Any, step: int, rng: torch.Generator) -> Tensor:
        return contrastive(clip, train_set, BATCH, rng)

    @torch.no_grad()
    def check(clip: Any, step: int) -> dict[str, float]:
        del step
        score = recalled(*embed(clip, pictures, ids), truth).float().mean().item()
        return {"score": score, "recall_at_1": score}

    recipe = Recipe(steps=size.steps, rate=1.5e-3, warmup=200, decay=0.02, check_every=250)
    yield from fit(model, loss, check, recipe, folder, seed)
    keep(folder, model.save_pretrained)
