"""The contract of algorithms of the `train` task: `build()`, a generator's training by a value."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from baselines.terminal import Terminal
from bench.contract.checking import close, expect
from bench.trainers import Pupil, Trainer
from stitchvm.align.policy import Policy
from stitchvm.align.training import NOWHERE, PHASES, Keep, Recipe, Record
from stitchvm.path import time_grid
from stitchvm.reward import Reward
from stitchvm.world import World

RECIPE = Recipe(steps=4, prompts=2, group=4, rate=0.02, decay=0.0, batch=8)
GRID = 6  # steps of the sampler


class Ran(NamedTuple):
    """Records of a run, and the averaged weights it ended with."""

    records: list[Record]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A trainer, and where to try it."""

    trainer: Trainer
    world: World
    reward: Reward

    def ran(self, steps: int = RECIPE.steps, keep: Keep = NOWHERE) -> Ran:
        """So many steps of the recipe, from the generator as it comes or from what was kept."""
        policy = Policy(self.world.trainable(2, 0), self.world.backbone.velocity)
        value = Terminal(self.world.backbone, self.reward)
        times = tuple(time_grid(GRID).tolist())
        pupil = Pupil(policy, value, self.world.training(4), times, time.process_time)
        records = list(islice(self.trainer.run(pupil, RECIPE, keep), steps))
        return Ran(records, {name: w.clone() for name, w in policy.averaged.items()})


def case(build: Callable[..., Trainer], world: World, reward: Reward, **settings: Any) -> Case:
    """A trainer in a world."""
    return Case(build(**settings), world, reward)


def declares(case: Case) -> None:
    """It is a Trainer, whose published form has no stops."""
    expect(isinstance(case.trainer, Trainer), "a Trainer", type(case.trainer).__name__)
    published = case.trainer.published
    expect(published.stop is None, "`published` without stops", published.stop)


def records(case: Case) -> None:
    """It yields a record a step, with seconds by phase and rollouts so far."""
    found = case.ran().records
    steps = [record.step for record in found]
    expect(steps == list(range(1, RECIPE.steps + 1)), f"steps 1 to {RECIPE.steps}", steps)
    for record in found:
        expect(set(record.seconds) == set(PHASES), f"seconds of {PHASES}", record.seconds)
        expect(all(x >= 0 for x in record.seconds.values()), "seconds >= 0", record.seconds)
        expect(math.isfinite(record.reward), "a finite mean value", record.reward)
    samples = [record.samples for record in found]
    expect(samples == sorted(set(samples)), "more rollouts every step", samples)


def learns(case: Case) -> None:
    """Weights change, and stay finite."""
    before = Policy(case.world.trainable(2, 0), case.world.backbone.velocity).averaged
    after = case.ran().weights
    moved = max(float((after[name] - w).abs().max()) for name, w in before.items())
    expect(math.isfinite(moved) and moved > 0, "weights that move, and stay finite", moved)


def repeatable(case: Case) -> None:
    """The same recipe gives the same weights."""
    _same(case.ran().weights, case.ran().weights)


def goes_on(case: Case) -> None:
    """Killed and started again it ends where an undisturbed run does."""
    whole = case.ran().weights
    with TemporaryDirectory() as folder:
        keep = Keep(Path(folder), 1)
        case.ran(steps=2, keep=keep)
        _same(whole, case.ran(keep=keep).weights)


def leaves_the_generator(case: Case) -> None:
    """The world's own generator stays as it is."""
    before = {name: w.clone() for name, w in case.world.backbone.state_dict().items()}
    case.ran()
    _same(before, case.world.backbone.state_dict())


def stops(case: Case) -> None:
    """Stops beyond the sampler's steps are refused with a ValueError."""
    if case.trainer.stop is None:
        return
    beyond = replace(case, trainer=replace(case.trainer, stop=(GRID + 1, GRID + 2)))
    try:
        beyond.ran(steps=1)
    except ValueError:
        return
    raise AssertionError(f"expected a ValueError for stops {beyond.trainer.stop} of {GRID} steps")


def _same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    expect(expected.keys() == found.keys(), f"weights {sorted(expected)}", sorted(found))
    for name, weight in expected.items():
        close(weight.to(torch.float64), found[name].to(torch.float64), f"one {name}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    records,
    learns,
    repeatable,
    goes_on,
    leaves_the_generator,
    stops,
)
