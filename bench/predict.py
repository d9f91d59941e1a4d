"""What the guided steps of a suite will cost, before anything of it runs.

Each step of a cell goes once over the meta device: the guided one, an unsteered one and one of
classic DPS.  The last two are the same for all cells of a world, a reward and a sampler.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from bench.algorithms import Guide
from bench.cell import Cell, Spec
from bench.numberless import Answers
from bench.predicted import Cost, cost
from bench.protocols import AlignProtocol
from bench.suite import Suite
from bench.tasks.align import Place
from bench.tasks.steps import CLASSIC
from stitchvm.memo import SharedTrunk

GUIDED, UNSTEERED = "guided", "unsteered"
UNTRAINED = ("i", "j", "condition")  # settings of a stitched model that its shape depends on
TRAINED = ("vae_stitch", "noisy_student", "feature_head")  # of which no untrained form is shaped


@dataclass(frozen=True)
class Predicted:
    """The three steps of a cell.

    Attributes:
        cell: Which.
        guided: What it is about.
        unsteered: The same sampler without it.
        classic: Classic DPS.
    """

    cell: Cell
    guided: Cost
    unsteered: Cost
    classic: Cost


def predicted(cells: Iterable[Cell]) -> Iterator[Predicted]:
    """The steps of cells at batch 1, as they come.

    Raises:
        ValueError: for a cell that guides no step.
    """
    known: dict[tuple[str, ...], Cost] = {}
    answers = Answers()
    for cell in cells:
        spec = cell.spec
        protocol = cast(AlignProtocol, spec.protocol)
        sampler = (protocol.kernel, f"{protocol.cfg}")
        place = (spec.world.model_dump_json(), spec.reward.model_dump_json(), *sampler)
        own = (*place, spec.estimator.model_dump_json(), f"{spec.algorithm}")
        for name, key in ((GUIDED, own), (UNSTEERED, place), (CLASSIC, place)):
            if (*key, name) not in known:
                known[*key, name] = _step(spec, name, answers)
        guided, *others = (known[*own, GUIDED], known[*place, UNSTEERED], known[*place, CLASSIC])
        yield Predicted(cell, guided, *others)


def guides(cell: Cell) -> bool:
    """Whether a cell guides steps."""
    part = cell.spec.algorithm
    return part is not None and part.build == "guide"


def _step(spec: Spec, name: str, answers: Answers) -> Cost:
    """One step of a cell, on shapes.

    Raises:
        ValueError: if it guides none, or computes with numbers that no device has there.
    """
    try:
        return _counted(spec, name, answers)
    except NotImplementedError as error:
        raise ValueError(
            f"expected a world whose steps can run on shapes alone, got {spec.world.build!r}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def _counted(spec: Spec, name: str, answers: Answers) -> Cost:
    from bench.worlds.full.world import FullWorld  # noqa: PLC0415 - slow, and there by then

    with answers:
        place = Place.of(spec, cast(AlignProtocol, spec.protocol), "meta")
        if not isinstance(place.algorithm, Guide):
            raise ValueError(f"expected an algorithm that guides steps, got {place.algorithm!r}")
        steps = place.steps(place.algorithm)
        call = steps.of_batch(1)[name]
        if not isinstance(place.world, FullWorld):
            call()  # where there are text encoders: each prompt is encoded once
        if isinstance(place.world.backbone, SharedTrunk):
            place.world.backbone.forget()  # here all latents look alike
        return cost(call, steps.weights)


def untrained(suite: Suite) -> tuple[Suite, list[str]]:
    """A suite whose stitched models need no training, and the names of estimators left out.

    Args:
        suite: One of the align task.

    Raises:
        ValueError: for another task.
    """
    if suite.task != "align":
        raise ValueError(
            f"expected a suite of the align task, whose steps can be predicted, got "
            f"{suite.name!r} of {suite.task!r}"
        )
    left: list[str] = []
    return suite.model_copy(
        update={
            "defaults": _swapped({**suite.defaults, "samples": 0, "trials": 0}, left),
            "axes": _swapped(suite.axes, left),
            "include": [
                entry
                for entry in (_swapped(grid, left) for grid in suite.include)
                if entry.get("estimator") != []
            ],
        }
    ), left


def _swapped(fields: Mapping[str, Any], left: list[str]) -> dict[str, Any]:
    """Fields of cells with estimators that can be built without weights, and nothing to judge."""
    out = {k: v for k, v in fields.items() if k not in {"samples", "trials"} or v in {0}}
    if "estimator" not in fields:
        return out
    given = fields["estimator"]
    several = given if isinstance(given, list) else [given]
    made = [_shaped(one) for one in several]
    left += [_called(one) for one, kept in zip(several, made, strict=True) if kept is None]
    kept = [one for one in made if one is not None]
    return out | {"estimator": kept if isinstance(given, list) or not kept else kept[0]}


def _shaped(estimator: Any) -> Any:
    """An estimator without its trained weights; None where its shape is not known without."""
    build = estimator.get("build") if isinstance(estimator, Mapping) else estimator
    if build in TRAINED:
        return None
    if build != "stitched":
        return estimator
    given = estimator if isinstance(estimator, Mapping) else {}
    kept = {name: given[name] for name in UNTRAINED if name in given}
    if "prompt" in str(given.get("model", "")):
        kept["condition"] = "prompt"
    return {"name": _called(estimator), "build": "untrained", **kept}


def _called(estimator: Any) -> str:
    if isinstance(estimator, Mapping):
        return str(estimator.get("name", estimator.get("build")))
    return str(estimator)
