"""The contract of algorithms of the `align` task: `build()`, from noise to clean latents."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines.terminal import Terminal
from baselines.tweedie import Tweedie
from bench.algorithms import Algorithm, Made, Setting
from bench.contract.checking import ROWS, close, expect, finite
from bench.trainers import Trainer
from stitchvm.path import time_grid
from stitchvm.reward import Reward
from stitchvm.sample import NU, Sde
from stitchvm.streams import Streams
from stitchvm.world import World

STEPS = 20
WEAK, STRONG = 0.5, 8.0  # strengths that samples must tell apart


@dataclass(frozen=True)
class Case:
    """An algorithm with noise to try it on.

    Attributes:
        algorithm: Whom to check.
        setting: With an SDE, Tweedie as the value, and the clean reward.
        z: Starting latents, (particles, ROWS, *latent).
        c: Prompts.
    """

    algorithm: Algorithm
    setting: Setting
    z: Tensor
    c: list[str]

    @torch.no_grad()
    def made(self, strength: float = 1.0, rows: slice = slice(ROWS)) -> Made:
        """Samples of some rows."""
        rng = Streams.of(0, "contract", rows=ROWS)[rows]
        return self.algorithm.run(self.setting, strength, self.z[:, rows], self.c[rows], rng)


def case(build: Callable[..., Algorithm], world: World, reward: Reward, **settings: Any) -> Case:
    """An algorithm, and what it works with in a world."""
    algorithm, backbone = build(**settings), world.backbone
    setting = Setting(
        velocity=backbone.velocity,
        kernel=lambda velocity: Sde(velocity, NU["square"]),
        times=time_grid(STEPS).to(backbone.empty_latents(0).device),
        value=Tweedie(backbone, reward, "prompt"),
        terminal=Terminal(backbone, reward),
        spread=0.5,
    )
    c = [world.prompts[row % len(world.prompts)] for row in range(ROWS)]
    n = getattr(algorithm, "particles", 1)
    rng = Streams.of(0, "contract noise", rows=n * ROWS)
    z = rng.normal(backbone.empty_latents(n * ROWS)).unflatten(0, (n, ROWS))
    return Case(algorithm, setting, z, c)


def declares(case: Case) -> None:
    """It is an Algorithm, says its particles, and whether it has a strength."""
    one = case.algorithm
    trains = "; `--kind trainer` checks those" if isinstance(one, Trainer) else ""
    expect(isinstance(one, Algorithm), "an Algorithm", f"{type(one).__name__}{trains}")
    expect(
        isinstance(one.particles, int) and one.particles >= 1, "`particles` >= 1", one.particles
    )
    expect(isinstance(one.tuned, bool), "`tuned`, True or False", repr(one.tuned))


def suits(case: Case) -> None:
    """It accepts a sampler, a value and a reward that fit."""
    case.algorithm.check(case.setting)


def without_value(case: Case) -> None:
    """Without an estimator it works, or is refused by `check` with a ValueError."""
    bare = replace(case.setting, value=None)
    try:
        case.algorithm.check(bare)
    except ValueError:
        return
    replace(case, setting=bare).made()


def shape(case: Case) -> None:
    """It makes one finite latent of each prompt."""
    finite(case.made().z_0, tuple(case.z.shape[1:]), "latents")


def repeatable(case: Case) -> None:
    """The same noise and rng give the same samples."""
    close(case.made().z_0, case.made().z_0)


def batch_of_one(case: Case) -> None:
    """A batch equals its rows one by one."""
    alone = [case.made(rows=slice(k, k + 1)).z_0 for k in range(ROWS)]
    close(case.made().z_0, torch.cat(alone))


def leaves_inputs(case: Case) -> None:
    """The noise is not changed in place."""
    before = case.z.clone()
    case.made()
    close(before, case.z)


def strength(case: Case) -> None:
    """A strength changes samples where it says that it has one, and nowhere else."""
    weak, strong = (case.made(s).z_0 for s in (WEAK, STRONG))
    changed = not torch.equal(weak, strong)
    expect(changed == case.algorithm.tuned, f"a change where `tuned`, {case.algorithm.tuned}",
           "other samples" if changed else "the same samples")  # fmt: skip


def tilt(case: Case) -> None:
    """The inverse temperature that it aims at is a number above 0, or None."""
    lam = case.algorithm.lam(case.setting, 1.0)
    expect(lam is None or (lam > 0 and math.isfinite(lam)), "lambda > 0 or None", lam)


def log(case: Case) -> None:
    """What it logs is plain data, one mapping a step."""
    for entry in case.made().log:
        expect(isinstance(entry, dict), "a mapping", type(entry).__name__)
        json.dumps(entry)


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    suits,
    without_value,
    shape,
    repeatable,
    batch_of_one,
    leaves_inputs,
    strength,
    tilt,
    log,
)
