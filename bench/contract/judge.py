"""The contract of judges: `build(world)`, from clean images and prompts to scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bench.contract import images
from bench.contract.checking import expect
from bench.contract.images import batch_of_one, leaves_inputs, repeatable, shape, shown
from bench.judging import Scorer
from stitchvm.backbone import Prompts
from stitchvm.world import World


@dataclass(frozen=True)
class Case(images.Case):
    """A judge with images to try it on.

    Attributes:
        judge: Whom to check.
    """

    called: ClassVar = "scores"
    judge: Scorer

    def ask(self, x: Tensor, c: Prompts) -> Tensor:
        """Scores, (B,)."""
        return self.judge(x, list(c))


def case(build: Callable[..., Scorer], world: World, _: Any = None, **settings: Any) -> Case:  # noqa: ANN401
    """A judge built in a world, with images of that world."""
    return Case(*shown(world), build(world, **settings))


def declares(case: Case) -> None:
    """It can be called with images and prompts."""
    expect(callable(case.judge), "a function of images and prompts", type(case.judge).__name__)


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    batch_of_one,
    leaves_inputs,
)
