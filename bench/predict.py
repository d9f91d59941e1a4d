"""What cells of a suite will cost, before anything of them runs: see `bench.asked` for what of it.

Each call goes once over the meta device.  What does not depend on a cell's estimator - an
unsteered step, one of classic DPS - is counted once for all cells that share it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch

from bench.asked import UNSTEERED, Asked, asked
from bench.cell import Cell, Spec
from bench.numberless import Answers
from bench.predicted import Cost, cost
from bench.protocols import AlignProtocol
from bench.tasks.steps import CLASSIC

Key = tuple[str, ...]


class Counted(NamedTuple):
    """What calls cost, by name, and which of them another is held against."""

    costs: dict[str, Cost]
    beside: dict[str, str]


@dataclass(frozen=True)
class Known:
    """What was counted: of cells, and of what cells share."""

    cells: dict[Key, Counted] = field(default_factory=dict)
    shared: dict[Key, dict[str, Cost]] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """The calls of a cell.

    Attributes:
        cell: Which.
        costs: Of each call, by name; FLOPs of one sample, or of the batch that its name gives,
            bytes of all that a call makes.
        beside: Of a call that is held against one of the others alone, the name of that.
    """

    cell: Cell
    costs: Mapping[str, Cost]
    beside: Mapping[str, str]

    @property
    def own(self) -> dict[str, Cost]:
        """Those of its calls that are no yardsticks."""
        others = {UNSTEERED, CLASSIC, *self.beside.values()}
        return {name: cost for name, cost in self.costs.items() if name not in others}

    @property
    def live(self) -> int:
        """The most that any call of its own takes, bytes above weights."""
        return max(cost.live for cost in self.own.values())

    @property
    def weights(self) -> int:
        """What is on the device before, bytes."""
        return next(iter(self.costs.values())).weights

    @property
    def waiting(self) -> int:
        """What waits in main memory, bytes."""
        return next(iter(self.costs.values())).waiting


def predicted(
    cells: Iterable[Cell], answers: Answers | None = None, known: Known | None = None
) -> Iterator[Predicted]:
    """What cells cost, as they come.

    Args:
        cells: Which.
        answers: Where to count, with what it remembers; a new one when None.
        known: What was counted before, to which this adds; nothing when None.

    Raises:
        ValueError: for a task of which nothing is predicted, or what shapes alone do not say.
    """
    known = known or Known()
    answers = answers or Answers()
    for cell in cells:
        own, shared = _keys(cell.spec)
        if own not in known.cells:
            known.cells[own] = _counted(cell.spec, answers, known.shared.setdefault(shared, {}))
        yield Predicted(cell, *known.cells[own])


def _keys(spec: Spec) -> tuple[Key, Key]:
    """What a cell's costs depend on, and what those of its yardsticks do."""
    place = (spec.task, spec.world.model_dump_json(), spec.reward.model_dump_json())
    own = (*place, spec.estimator.model_dump_json(), f"{spec.algorithm}")
    if spec.task != "align":
        return (*own, spec.protocol.model_dump_json()), place
    protocol = cast(AlignProtocol, spec.protocol)
    guides = spec.algorithm is not None and spec.algorithm.build == "guide"
    sampler: Key = (protocol.kernel, f"{protocol.cfg}", f"{protocol.share}", f"{protocol.classic}")
    sampler += ("step",) if guides else (f"{protocol.steps}", f"{protocol.shift}")
    return (*own, *sampler), (*place, *sampler)


def _counted(spec: Spec, answers: Answers, shared: dict[str, Cost]) -> Counted:
    """What the calls of a cell cost, but for those that are known.

    Raises:
        ValueError: if it computes with numbers that no device has there.
    """
    try:
        with answers:
            what = asked(spec)
        found = {
            name: shared[name] if name in shared else _cost(what, name, answers)
            for name in what.calls
        }
    except (NotImplementedError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise ValueError(
            f"expected a world whose cells can run on shapes alone, got {spec.world.build!r}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    shared |= {name: found[name] for name in what.shared}
    return Counted(found, what.beside)


def _cost(what: Asked, name: str, answers: Answers) -> Cost:
    call = what.calls[name]
    with answers:
        if what.again:
            call()
        return cost(call, what.standing(), what.watch, what.backbone).over(what.rows)
