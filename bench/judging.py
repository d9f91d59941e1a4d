"""What samples are worth: the target reward, every other, held-out judges, and the verifier."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from bench.part import Part
from bench.resolve import resolve
from stitchvm.backbone import Prompts
from stitchvm.world import World

Scorer = Callable[[Tensor, Prompts], Tensor]  # images and prompts to (B,)
JUDGE = "judge "  # before the names of users' judges


def scored(
    world: World,
    target: Scorer,
    z_0: Tensor,
    c: list[str],
    batch: int,
    judges: Mapping[str, Scorer] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Per sample, on the CPU: `target`, each reward and judge by its name, `correct`.

    Args:
        world: Whose rewards, judges and verifier.
        target: The target reward.
        z_0: Clean latents, (B, *latent).
        c: Their prompts.
        batch: Latents at once.
        judges: Further ones.

    Raises:
        ValueError: if a judge returns anything but a score for each image.
    """
    scorers: dict[str, Scorer] = {"target": target} | {
        name: world.reward(name) for name in (*world.rewards, *world.judges)
    }
    scorers |= {f"{JUDGE}{name}": judge for name, judge in judges.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in scorers}
    for first in range(0, len(c), batch):
        rows = slice(first, first + batch)
        x = world.backbone.decode(z_0[rows])
        for name, scorer in scorers.items():
            found[name].append(_of_each(name, scorer(x, c[rows]), len(x)))
    scores = {name: torch.cat(parts).double().cpu() for name, parts in found.items()}
    correct = world.correct(z_0, c)
    return scores if correct is None else scores | {"correct": correct.double().cpu()}


def judges_of(parts: Sequence[Part], world: World) -> dict[str, Scorer]:
    """Users' judges by the names that tables call them."""
    return {str(p.name): resolve(p.build, {}, "judge")(world, **p.settings) for p in parts}


def _of_each(name: str, scores: Tensor, count: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"expected scores of shape ({count},) from {name!r}, got {got}")
    return scores


def by_prompt(scores: dict[str, Tensor], prompts: int) -> dict[str, list[float | None]]:
    """Means over the samples of each prompt, which come in a row."""
    return {name: finite(x.unflatten(0, (prompts, -1)).mean(1)) for name, x in scores.items()}


def finite(x: Tensor) -> list[float | None]:
    """Numbers for a record, None for what is not finite."""
    return [float(v) if math.isfinite(v) else None for v in x]
