"""A suite of shapes alone: its stitched models are built without trained weights.

They stand on the world's own generator, whichever the suite trained them on.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.arms import ARMS
from bench.asked import TASKS
from bench.suite import PARTS, Suite, load

UNTRAINED = ("i", "j", "condition")  # settings of a stitched model that its shape depends on
TRAINED = ("vae_stitch", "noisy_student", "feature_head", "linear_stitch")  # no untrained form
PAIR = re.compile(r"(\d+),(\d+)")  # of blocks, as a pick gives it
Kept = Callable[[list[Any]], list[Any]]  # estimators without trained weights
LESS: dict[str, dict[str, Any]] = {  # of a task: nothing is judged, and nothing chosen
    "align": {"samples": 0, "trials": 0},
    "train": {"rates": [1e-4], "samples": 1},
    "value": {},
    "cost": {},
}


def members(suite: Suite) -> tuple[list[Suite], list[str]]:
    """The suites that one is made of, those of tasks that are predicted, and the others' names.

    Raises:
        ValueError: if none of them is predicted.
    """
    several = [load(name) for name in suite.suites] or [suite]
    kept = [one for one in several if one.task in TASKS]
    if not kept:
        raise ValueError(
            f"expected a suite of a task in {', '.join(TASKS)}, whose costs can be predicted, "
            f"got {suite.name!r} of {several[0].task!r}"
        )
    return kept, [one.name for one in several if one not in kept]


def untrained(suite: Suite) -> tuple[Suite, list[str]]:
    """A suite whose stitched models need no training, and the names of estimators left out.

    Args:
        suite: One of a task that is predicted.
    """
    left: list[str] = []
    less, several = LESS[suite.task], partial(_several, SHAPES[suite.task], left)
    axes = {name: _axis(name, values, less, several) for name, values in suite.axes.items()}
    include = [_fields(grid, less, several) for grid in suite.include]
    return suite.model_copy(
        update={
            "defaults": _fields({**suite.defaults, **less}, {}, several),
            "axes": {name: values for name, values in axes.items() if name not in less},
            "include": [grid for grid in include if grid.get("estimator") != []],
        }
    ), list(dict.fromkeys(left))


def _axis(name: str, values: list[Any], less: Mapping[str, Any], several: Kept) -> list[Any]:
    """The values of an axis: of estimators, of bundles that name one, or of anything else."""
    if name == "estimator":
        return several(values)
    bundles = name not in PARTS and all(isinstance(value, Mapping) for value in values)
    if not bundles:
        return values
    made = [_fields(value, less, several) for value in values]
    return [bundle for bundle in made if bundle.get("estimator") != []]


def _fields(fields: Mapping[str, Any], less: Mapping[str, Any], several: Kept) -> dict[str, Any]:
    """Fields of cells with an estimator that can be built without weights; [] where none can."""
    out = {k: v for k, v in fields.items() if k not in less}
    if "estimator" not in fields:
        return out
    given = fields["estimator"]
    kept = several(given if isinstance(given, list) else [given])
    return out | {"estimator": kept if isinstance(given, list) or not kept else kept[0]}


def _several(shape: Callable[[Any], Any], left: list[str], estimators: list[Any]) -> list[Any]:
    made = [shape(one) for one in estimators]
    left += [_called(one) for one, kept in zip(estimators, made, strict=True) if kept is None]
    return [one for one in made if one is not None]


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


def _picked(estimator: Any) -> Any:
    """What the task `cost` measures, untrained; None where only a search tells its pair."""
    given = estimator if isinstance(estimator, Mapping) else {"build": estimator}
    if given.get("build") not in ARMS:
        return estimator
    pair = PAIR.fullmatch(f"{given.get('pick', '')}")
    if given["build"] != "stitched" or pair is None:
        return None
    i, j = map(int, pair.groups())
    return {"name": _called(estimator), "build": "untrained", "i": i, "j": j}


def _called(estimator: Any) -> str:
    if isinstance(estimator, Mapping):
        return str(estimator.get("name", estimator.get("build")))
    return str(estimator)


SHAPES: dict[str, Callable[[Any], Any]] = {  # an estimator of a task, without trained weights
    "align": _shaped,
    "train": _shaped,
    "value": _shaped,
    "cost": _picked,
}
