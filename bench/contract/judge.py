"""The contract of judges: `build(world)`, from clean images and prompts to scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.contract.checking import ROWS, close, expect, finite
from bench.contract.reward import shown
from bench.judging import Scorer
from stitchvm.world import World


@dataclass(frozen=True)
class Case:
    """A judge with images x (ROWS, 3, H, W) and their prompts c to try it on."""

    judge: Scorer
    x: Tensor
    c: list[str]

    def scores(self) -> Tensor:
        """The scores, without a graph."""
        with torch.no_grad():
            return self.judge(self.x, self.c)


def case(build: Callable[..., Scorer], world: World, _: Any = None, **settings: Any) -> Case:  # noqa: ANN401
    """A judge built in a world, with images of that world."""
    return Case(build(world, **settings), *shown(world))


def declares(case: Case) -> None:
    """It can be called with images and prompts."""
    expect(callable(case.judge), "a function of images and prompts", type(case.judge).__name__)


def shape(case: Case) -> None:
    """Scores have shape (B,) and are finite."""
    finite(case.scores(), (ROWS,), "scores")


def repeatable(case: Case) -> None:
    """The same images get the same scores."""
    close(case.scores(), case.scores())


def batch_of_one(case: Case) -> None:
    """A batch is judged as its rows one by one."""
    with torch.no_grad():
        alone = [case.judge(case.x[k : k + 1], [case.c[k]]) for k in range(ROWS)]
    close(case.scores(), torch.cat(alone))


def leaves_inputs(case: Case) -> None:
    """The images are not changed in place."""
    before = case.x.clone()
    case.scores()
    close(before, case.x)


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    batch_of_one,
    leaves_inputs,
)
