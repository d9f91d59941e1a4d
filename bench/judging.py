"""What samples are worth: the target reward, every other, held-out judges, and the verifier."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stitchvm.backbone import Prompts
from stitchvm.world import World

Scorer = Callable[[Tensor, Prompts], Tensor]  # images and prompts to (B,)


def scored(
    world: World, target: Scorer, z_0: Tensor, c: list[str], batch: int
) -> dict[str, Tensor]:
    """Per sample, on the CPU: `target`, each reward and judge by its name, `correct`.

    Args:
        world: Whose rewards, judges and verifier.
        target: The target reward.
        z_0: Clean latents, (B, *latent).
        c: Their prompts.
        batch: Latents at once.
    """
    scorers: dict[str, Scorer] = {"target": target} | {
        name: world.reward(name) for name in (*world.rewards, *world.judges)
    }
    found: dict[str, list[Tensor]] = {name: [] for name in scorers}
    for first in range(0, len(c), batch):
        rows = slice(first, first + batch)
        x = world.backbone.decode(z_0[rows])
        for name, scorer in scorers.items():
            found[name].append(scorer(x, c[rows]))
    scores = {name: torch.cat(parts).double().cpu() for name, parts in found.items()}
    correct = world.correct(z_0, c)
    return scores if correct is None else scores | {"correct": correct.double().cpu()}


def by_prompt(scores: dict[str, Tensor], prompts: int) -> dict[str, list[float | None]]:
    """Means over the samples of each prompt, which come in a row."""
    return {name: finite(x.unflatten(0, (prompts, -1)).mean(1)) for name, x in scores.items()}


def finite(x: Tensor) -> list[float | None]:
    """Numbers for a record, None for what is not finite."""
    return [float(v) if math.isfinite(v) else None for v in x]
