"""A suite is a grid of cells in one YAML file, one suite per table or figure.

    axes multiply:   {estimator: [tweedie, constant], reward: [linear, sigmoid]}     4 cells
    bundles zip:     an axis whose values are mappings sets several fields at once
    include:         further grids, over the defaults; in them lists multiply
    exclude:         cells dropped: those that match all fields of an entry
    suites:          others whose cells are this one's, in their order

Values of `world`, `reward`, `estimator`, `algorithm`, and the members of `judges` and `metrics`
are names, or mappings with `build`, an optional `name`, and settings; `file.py:build` and
`package:build` stand for users' own.  A world's mapping may name a user's `backbone`, and a list
of `prompts`.  Fields are those of the task's protocol plus world, reward, estimator.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from bench.cell import Task, label
from bench.part import Model
from bench.protocols import PROTOCOLS
from bench.resolve import UnknownName

M = TypeVar("M", bound=Model)
PARTS = ("world", "reward", "estimator")
ALGORITHM = {"align": ("algorithm",), "train": ("algorithm",)}  # a part as well, of these tasks
FIELDS = {
    task: (*PARTS, *ALGORITHM.get(task, ()), *protocol.model_fields)
    for task, protocol in PROTOCOLS.items()
}
LISTS = (
    "sigmas",
    "entries",
    "batches",
    "cost_batches",
    "errors",
    "rates",
    "metrics",
    "judges",
)  # fields whose value is a list


class Suite(Model):
    """A suite as written.

    Attributes:
        name: Of the suite.
        about: What it shows, one sentence.
        minutes: Expected, see `where`.
        where: What is enough to run it, in words; where they name a GPU, a CPU is refused.
        task: The protocol.
        isolation: `inline`, one warm worker whose timings are indicative, or `process`, a fresh
            process per cell.
        seed: Of everything.
        processes: How many fresh processes measure each cell, in turns; one where it is shortened.
        defaults: Field values every cell starts from.
        axes: Name to values; see above.
        include: Further grids over the defaults: mappings of fields, where lists multiply.
        exclude: Mappings; a cell that matches all fields of one is dropped.
        quick: Field values of `--quick`, over everything; bundles by the name of their axis stand
            in place of the axis's.
        suites: Names of others, each with its own defaults and quick form; it has no cells itself.
    """

    name: str
    about: str
    minutes: float
    where: str = "two cores"
    task: Task = "value"
    isolation: Literal["inline", "process"] = "process"
    seed: int = 0
    processes: int = Field(1, ge=1)
    defaults: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    include: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    quick: dict[str, Any] = Field(default_factory=dict)
    suites: list[str] = Field(default_factory=list)

    @property
    def for_gpu(self) -> bool:
        """Whether it takes a GPU to run it as it is."""
        return "GPU" in self.where


def shipped() -> dict[str, Path]:
    """The suites that come with the package."""
    folder = Path(str(resources.files("bench") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name: str, world: str | None = None) -> Suite:
    """A shipped suite by name, or a user's own by path; a world may have one of its own.

    Args:
        name: `value`, or a path.
        world: `value` of the world `shapes` is `value-shapes` where that ships.

    Raises:
        UnknownName: if there is neither.
        ValueError: if the file is no suite, naming the key and the known ones.
    """
    own = None if world is None else world.partition(",")[0]
    path = shipped().get(f"{name}-{own}", shipped().get(name, Path(name)))
    if not path.is_file():
        raise UnknownName("suite", name, shipped())
    try:
        data = yaml.safe_load(path.read_text())
        json.dumps(data, default=str, skipkeys=True)  # an alias may hold itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of {', '.join(Suite.model_fields)}")
    return validated(Suite, data, f"{path}")


def validated(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """Data as a model.

    Raises:
        ValueError: naming the key, what was expected and what came; a misspelt key is met with
            the known ones and the nearest.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UnknownName(f"key in {where}:", key, model.model_fields) from None
        no_list = first["type"] in {"list_type", "tuple_type"}
        message = "expected a list" if no_list else first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {key}: {message}, got {first['input']!r}") from None


Fields = dict[str, Any]


def combinations(
    suite: Suite, changes: Mapping[str, list[Any]], *, quick: bool
) -> Iterator[Fields]:
    """Field values of every cell, in the order of the axes, then of what is included.

    Args:
        suite: The suite.
        changes: Axis to values, in place of the suite's own, from `--set` and `--world`.
        quick: Whether the suite's `quick` values apply.

    Raises:
        UnknownName: for a field nobody knows.
        ValueError: for an axis that is neither a field nor made of bundles.
    """
    known = FIELDS[suite.task]
    shortened = dict(suite.quick) if quick else {}
    bundles = {name: shortened.pop(name) for name in suite.axes if name not in known
               and name in shortened}  # fmt: skip
    axes = {**suite.axes, **bundles, **changes}
    _known(changes, known)
    choices = [[_bundle(name, v, known) for v in values] for name, values in axes.items()]
    fixed = suite.defaults
    _known([*fixed, *shortened], known)
    grid = [fixed | _merged(parts) for parts in itertools.product(*choices)] if axes else []
    for extra in suite.include:
        _known(extra, known)
        lists = {k: v if _lists(k, v) else [v] for k, v in extra.items()} | dict(changes)
        grid += [
            fixed | dict(zip(lists, values, strict=True))
            for values in itertools.product(*lists.values())
        ]
    for rule in suite.exclude:
        _known(rule, known)
    for fields in grid:
        if not any(_matches(fields, rule) for rule in suite.exclude):
            yield fields | shortened


def _lists(field: str, value: Any) -> bool:
    """Whether a value of an included grid stands for several, where one may be a list itself."""
    several = isinstance(value, list)
    return several and (field not in LISTS or any(isinstance(v, list) for v in value))


def _bundle(axis: str, value: Any, known: Collection[str]) -> dict[str, Any]:
    """One value of an axis as field values."""
    if axis in known:
        return {axis: value}
    if not isinstance(value, dict):
        raise UnknownName("axis", axis, known)
    _known(value, known)
    return value


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return merged


def _known(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownName("field", name, known)


def _matches(fields: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    def shown(value: Any) -> Any:
        return label(value) if isinstance(value, dict) else value

    return all(shown(fields.get(name)) == shown(value) for name, value in rule.items())


def values(field: str, text: str) -> list[Any]:
    """Values of a `--set FIELD=V1,V2`, read as YAML; a list field takes all as one value.

    Raises:
        UnknownName: for a field nobody knows.
        ValueError: for a text that is no YAML list, or an empty one.
    """
    _known([field], {name for known in FIELDS.values() for name in known})
    try:
        parsed = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"expected --set {field}=V1,V2, got {text!r}") from None
    if not parsed or None in parsed:
        raise ValueError(f"expected --set {field}=V1,V2, got {text!r}")
    return [parsed] if field in LISTS else parsed
