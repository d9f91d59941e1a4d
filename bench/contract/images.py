"""What is asked about clean images keeps this, whatever it is: a reward, a judge."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.contract.checking import ROWS, close, finite
from stitchvm.backbone import Prompts
from stitchvm.streams import Streams
from stitchvm.world import World


@dataclass(frozen=True)
class Case(ABC):
    """Images to try something on.

    Attributes:
        x: Clean images, (ROWS, 3, H, W).
        c: Their prompts.
        called: What its numbers are called.
    """

    called: ClassVar[str]
    x: Tensor
    c: Prompts

    @abstractmethod
    def ask(self, x: Tensor, c: Prompts) -> Tensor:
        """One number per image, (B,)."""

    def value(self) -> Tensor:
        """The numbers of all images, without a graph."""
        with torch.no_grad():
            return self.ask(self.x, self.c)


@torch.no_grad()
def shown(world: World) -> tuple[Tensor, list[str]]:
    """Clean images of a world, and their prompts."""
    c = [world.prompts[row % len(world.prompts)] for row in range(ROWS)]
    z_0 = world.draw(c, Streams.of(0, "contract images", rows=ROWS))
    return world.backbone.decode(z_0), c


def shape(case: Case) -> None:
    """Its numbers have shape (B,) and are finite."""
    finite(case.value(), (ROWS,), case.called)


def repeatable(case: Case) -> None:
    """The same images get the same numbers."""
    close(case.value(), case.value())


def batch_of_one(case: Case) -> None:
    """A batch equals its rows one by one."""
    with torch.no_grad():
        alone = [case.ask(case.x[k : k + 1], [case.c[k]]) for k in range(ROWS)]
    close(case.value(), torch.cat(alone))


def leaves_inputs(case: Case) -> None:
    """The images are not changed in place."""
    before = case.x.clone()
    case.value()
    close(before, case.x)
