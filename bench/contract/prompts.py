"""The contract of prompt lists: text files, or `build(world)`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contract.checking import expect
from bench.prompts import checked
from stitchvm.world import World


@dataclass(frozen=True)
class Case:
    """A list of prompts for a world."""

    build: Callable[..., Sequence[str]]
    world: World

    @property
    def found(self) -> Sequence[str]:
        """The prompts."""
        return self.build(self.world)


def case(build: Callable[..., Sequence[str]], world: World, *_: Any) -> Case:  # noqa: ANN401
    """A list for a world."""
    return Case(build, world)


def declares(case: Case) -> None:
    """It is a list of strings, at least one."""
    found = case.found
    expect(isinstance(found, Sequence) and not isinstance(found, str), "a list of strings",
           type(found).__name__)  # fmt: skip
    expect(len(found) > 0, "at least one prompt", "none")
    for text in found:
        expect(isinstance(text, str) and bool(text.strip()), "prompts of some words", repr(text))


def once(case: Case) -> None:
    """Every prompt is there once."""
    found = list(case.found)
    twice = sorted({text for text in found if found.count(text) > 1})
    expect(not twice, "every prompt once", f"{twice} again")


def admitted(case: Case) -> None:
    """The world has data of every prompt."""
    checked(case.found, case.world)


def repeatable(case: Case) -> None:
    """It is the same list whenever asked."""
    first, again = tuple(case.found), tuple(case.found)
    expect(first == again, f"{first[:3]} ... again", f"{again[:3]} ...")


CHECKS: tuple[Callable[[Case], None], ...] = (declares, once, admitted, repeatable)
