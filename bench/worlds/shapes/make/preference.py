"""`hps` and `pick`: CLIPs finetuned on which of two pictures raters prefer for a caption.

    p(a preferred) = sigmoid(scale (s(a, c) - s(b, c)))          (as HPSv2 and PickScore)

with raters' choices drawn from the utilities stated in `ratings`.  The contrastive loss goes on
beside it, so that the space stays one of meanings.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import CLIPModel

from bench.worlds.shapes.captions import parse, parts, seen
from bench.worlds.shapes.make.clip import Told, contrastive, embed
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.ratings import BROKEN, DOUBT, LIKING, WEAR, rating, tamper, wear
from bench.worlds.shapes.scenes import Scenes, draw, render

PAIRS = 128
BESIDE = 0.1  # weight of the contrastive loss
SCENES, FRESH = 60_000, 1  # and the seed of scenes that pretraining has not seen

Rule = Callable[[Told, list[int], list[str], torch.Generator], tuple[Tensor, Tensor]]


def graded(
    told: Told, rows: list[int], texts: list[str], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rule of `hps`: broken parts and wear; pictures (P, 3, 32, 32) and utility (P,)."""
    scenes = tamper(told.scenes[torch.tensor(rows)], rng)
    x, worn = wear(render(scenes), rng)
    broken = torch.tensor([sum(not held for held in h) for h in _held(texts, scenes)])
    return x, -(BROKEN * broken + WEAR * worn)


def pleased(
    told: Told, rows: list[int], texts: list[str], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rule of `pick`: share of parts that hold, and a liking for well rated pictures."""
    scenes = tamper(told.scenes[torch.tensor(rows)], rng)
    share = torch.tensor([sum(h) / len(h) for h in _held(texts, scenes)])
    return render(scenes), share + LIKING * (rating(scenes) - 5)


def _held(texts: list[str], scenes: Scenes) -> list[list[bool]]:
    """Which parts of each caption hold in its scene."""
    pairs = zip(texts, seen(scenes), strict=True)
    return [list(parts(parse(text), scene).values()) for text, scene in pairs]


def pairs(
    told: Told, rule: Rule, count: int, rng: torch.Generator
) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Pairs of pictures and what a rater chose.

    Returns:
        First and second pictures (2 P, 3, 32, 32); P captions; by how much the first is better
        (P,); whether the rater chose it (P,).
    """
    rows = torch.randint(len(told.scenes), (count,), generator=rng).tolist()
    return pairs_of(told, rows, rule, rng)


def pairs_of(
    told: Told, rows: list[int], rule: Rule, rng: torch.Generator
) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """A pair of pictures of each of some scenes; returns as `pairs`."""
    texts = [told.caption(row, rng) for row in rows]
    (a, p), (b, q) = rule(told, rows, texts, rng), rule(told, rows, texts, rng)
    chosen = torch.bernoulli(((p - q) / DOUBT).sigmoid(), generator=rng)
    return torch.cat([a, b]), texts, p - q, chosen.bool()


def train(
    folder: Path, clip_folder: Path, rule: Rule, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Finetune one CLIP."""
    torch.manual_seed(seed)
    model = CLIPModel.from_pretrained(clip_folder, local_files_only=True, dtype=torch.float32)
    data, tune = Told(draw("train", SCENES, FRESH)), Told(draw("tune", 2048))
    held_x, held_texts, better, chosen = pairs(tune, rule, 2048, torch.Generator().manual_seed(1))
    held_ids, ceiling = tune.tokens(held_texts), ((better > 0) == chosen).float().mean().item()

    def margin(clip: Any, x: Tensor, ids: Tensor) -> Tensor:
        images, words = embed(clip, x, ids)
        a, b = (images.unflatten(0, (2, -1)) * words).sum(-1)
        return clip.logit_scale.exp() * (a - b)

    def loss(clip: Any, step: int, rng: torch.Generator) -> Tensor:
        x, texts, _, chosen = pairs(data, rule, PAIRS, rng)
        choice = binary_cross_entropy_with_logits(
            margin(clip, x, data.tokens(texts)), chosen.float()
        )
        return choice + BESIDE * contrastive(clip, data, PAIRS // 2, rng)

    @torch.no_grad()
    def check(clip: Any, step: int) -> dict[str, float]:
        del step
        score = ((margin(clip, held_x, held_ids) > 0) == chosen).float().mean().item()
        return {"score": score, "pairwise_accuracy": score, "ceiling": ceiling}

    recipe = Recipe(steps, rate=8e-4, decay=0.02, check_every=100)
    yield from fit(model, loss, check, recipe, folder, seed)
    keep(folder, model.save_pretrained)
