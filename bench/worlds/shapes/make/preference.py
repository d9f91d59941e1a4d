"""`hps` and `pick`: CLIPs finetuned on which of two pictures raters prefer for a caption.

    p(a preferred) = sigmoid(scale (s(a, c) - s(b, c)))          (as HPSv2 and PickScore)

with raters' choices drawn from the utilities stated in `ratings`.  The contrastive loss goes on
beside it, so that the space stays one of meanings.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import CLIPModel

from bench.worlds.shapes.captions import Seen, parse, parts, seen
from bench.worlds.shapes.make.clip import Told, contrastive, embed
from bench.worlds.shapes.make.fit import Recipe, fit
from bench.worlds.shapes.make.words import tokenizer
from bench.worlds.shapes.ratings import DOUBT, LIKING, WEAR, WRONG, rating, tamper, wear
from bench.worlds.shapes.scenes import Scenes, draw, render

RECIPE = Recipe(steps=800, rate=4e-4, decay=0.02, check_every=100)
PAIRS = 96
SCENES = 30_000

Pairs = tuple[Tensor, Tensor, Tensor]  # both pictures (2 P, ...), captions' tokens, utilities (2, P)
Rule = Callable[[Told, list[int], list[str], torch.Generator], tuple[Tensor, Tensor]]


def graded(told: Told, rows: list[int], texts: list[str], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rule of `hps`: faults and wear; pictures (P, 3, 32, 32) and their utility (P,)."""
    del texts
    scenes, faults = tamper(told.scenes[torch.tensor(rows)], rng)
    x, worn = wear(render(scenes), rng)
    return x, -(WRONG * faults + WEAR * worn)


def pleased(told: Told, rows: list[int], texts: list[str], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rule of `pick`: parts of the caption that hold, and a liking for well rated pictures."""
    scenes, _ = tamper(told.scenes[torch.tensor(rows)], rng)
    share = [_share(c, s) for c, s in zip(texts, seen(scenes), strict=True)]
    return render(scenes), torch.tensor(share) * 2 + LIKING * (rating(scenes) - 5)


def _share(text: str, scene: Seen) -> float:
    held = parts(parse(text), scene).values()
    return sum(held) / len(held)


def train(
    folder: Path, clip_folder: Path, rule: Rule, seed: int
) -> Iterator[dict[str, Any]]:
    """Finetune one CLIP."""
    torch.manual_seed(seed)
    model = CLIPModel.from_pretrained(clip_folder, local_files_only=True)
    data, tune = Told(draw("train", SCENES)), Told(draw("tune", 2048))

    def pairs(told: Told, count: int, rng: torch.Generator) -> tuple[Tensor, list[str], Tensor]:
        rows = torch.randint(len(told.scenes), (count,), generator=rng).tolist()
        texts = [told.caption(row, rng) for row in rows]
        (a, p), (b, q) = rule(told, rows, texts, rng), rule(told, rows, texts, rng)
        return torch.cat([a, b]), texts, p - q

    held = pairs(tune, 2048, torch.Generator().manual_seed(1))

    def margin(clip: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
        images, words = embed(clip, x, ids)
        a, b = (images.unflatten(0, (2, -1)) * words).sum(-1)
        return clip.logit_scale.exp() * (a - b)

    def loss(clip: nn.Module, step: int, rng: torch.Generator) -> Tensor:
        x, texts, better = pairs(data, PAIRS, rng)
        chosen = torch.bernoulli((better / DOUBT).sigmoid(), generator=rng)
        choice = binary_cross_entropy_with_logits(margin(clip, x, data.tokens(texts)), chosen)
        return choice + 0.5 * contrastive(clip, data, PAIRS, rng)

    @torch.no_grad()
    def check(clip: nn.Module) -> dict[str, float]:
        x, texts, better = held
        chosen = torch.bernoulli(
            (better / DOUBT).sigmoid(), generator=torch.Generator().manual_seed(2)
        )
        right = (margin(clip, x, tune.tokens(texts)) > 0) == chosen.bool()
        ceiling = ((better > 0) == chosen.bool()).float().mean()
        score = right.float().mean().item()
        return {"score": score, "pairwise_accuracy": score, "ceiling": ceiling.item()}

    yield from fit(model, loss, check, RECIPE, folder, seed)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
