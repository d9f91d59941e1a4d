"""A suite is a grid of cells in one YAML file, one suite per table or figure.

    axes multiply:   {estimator: [tweedie, constant], reward: [linear, sigmoid]}     4 cells
    bundles zip:     an axis whose values are mappings sets several fields at once
    include:         further grids, over the defaults; in them lists multiply
    exclude:         cells dropped: those that match all fields of an entry

Values of `world` and `estimator` are names, or mappings with `build`, an optional `name`, and
settings.  Fields are those of the protocol plus world, reward, estimator.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from bench.cell import Cell, Model, Part, Protocol, Spec, digest
from bench.resolve import UnknownName, complete, resolve, source_digest

if TYPE_CHECKING:
    from stitchvm.reward import Reward
    from stitchvm.world import World

M = TypeVar("M", bound=Model)
FIELDS = ("world", "reward", "estimator", *Protocol.model_fields)


class Suite(Model):
    """A suite as written.

    Attributes:
        name: Of the suite.
        about: What it shows, one sentence.
        minutes: Expected on two cores.
        task: The protocol.
        isolation: `inline`, one warm worker whose timings are indicative, or `process`, a fresh
            process per cell.
        seed: Of everything.
        defaults: Field values every cell starts from.
        axes: Name to values; see above.
        include: Further grids over the defaults: mappings of fields, where lists multiply.
        exclude: Mappings; a cell that matches all fields of one is dropped.
        quick: Field values of `--quick`, over everything.
    """

    name: str
    about: str
    minutes: float
    task: Literal["value"] = "value"
    isolation: Literal["inline", "process"] = "process"
    seed: int = 0
    defaults: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    include: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    quick: dict[str, Any] = Field(default_factory=dict)


def shipped() -> dict[str, Path]:
    """The suites that come with the package."""
    folder = Path(str(resources.files("bench") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name: str) -> Suite:
    """A shipped suite by name, or a user's own by path.

    Raises:
        UnknownName: if there is neither.
        ValueError: if the file is no suite, naming the key and the known ones.
    """
    path = shipped().get(name, Path(name))
    if not path.is_file():
        raise UnknownName("suite", name, shipped())
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
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
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UnknownName(f"key in {where}:", key, model.model_fields) from None
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {key}: {message}, got {first['input']!r}") from None


def combinations(suite: Suite, changes: Mapping[str, list[Any]], *, quick: bool) -> Iterator[dict]:
    """Field values of every cell, in the order of the axes.

    Args:
        suite: The suite.
        changes: Axis to values, in place of the suite's own, from `--set` and `--world`.
        quick: Whether the suite's `quick` values apply.

    Raises:
        UnknownName: for a field nobody knows.
        ValueError: for an axis that is neither a field nor made of bundles.
    """
    axes = {**suite.axes, **changes}
    for name in changes:
        _known(name)
    choices = [[_bundle(name, v) for v in values] for name, values in axes.items()]
    fixed = suite.defaults
    shortened = suite.quick if quick else {}
    _known(*fixed, *shortened)
    grid = [fixed | _merged(parts) for parts in itertools.product(*choices)] if axes else []
    for extra in suite.include:
        _known(*extra)
        lists = {k: v if _lists(k, v) else [v] for k, v in extra.items()} | dict(changes)
        grid += [
            fixed | dict(zip(lists, values, strict=True))
            for values in itertools.product(*lists.values())
        ]
    for rule in suite.exclude:
        _known(*rule)
    for fields in grid:
        if not any(_matches(fields, rule) for rule in suite.exclude):
            yield fields | shortened


def _lists(field: str, value: Any) -> bool:
    """Whether a value of an included grid stands for several: sigmas are one list."""
    several = isinstance(value, list)
    return several and (field != "sigmas" or any(isinstance(v, list) for v in value))


def _bundle(axis: str, value: Any) -> dict[str, Any]:
    """One value of an axis as field values."""
    if axis in FIELDS:
        return {axis: value}
    if not isinstance(value, dict):
        raise UnknownName("axis", axis, FIELDS)
    _known(*value)
    return value


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return merged


def _known(*names: str) -> None:
    for name in names:
        if name not in FIELDS:
            raise UnknownName("field", name, FIELDS)


def _matches(fields: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    def shown(value: Any) -> Any:
        return label(value) if isinstance(value, dict) else value

    return all(shown(fields.get(name)) == shown(value) for name, value in rule.items())


def label(value: str | Mapping[str, Any]) -> str:
    """What a table calls an estimator: its name, or its build and settings."""
    if isinstance(value, str):
        return Path(value.partition(":")[0]).stem if ".py" in value else value
    if "name" in value:
        return str(value["name"])
    settings = ", ".join(f"{k}={v}" for k, v in value.items() if k != "build")
    return f"{label(str(value['build']))}({settings})" if settings else label(str(value["build"]))


def plan(
    suite: Suite,
    *,
    changes: Mapping[str, list[Any]] | None = None,
    seed: int | None = None,
    quick: bool = False,
    only: str = "",
) -> list[Cell]:
    """The cells of a suite, resolved: what would run.

    Raises:
        ValueError: for anything in the suite that does not resolve, before anything runs.
    """
    worlds: dict[str, World] = {}
    cells = [
        _cell(suite, fields, suite.seed if seed is None else seed, worlds, quick=quick)
        for fields in combinations(suite, changes or {}, quick=quick)
    ]
    names: dict[tuple[str, ...], str] = {}
    for cell in cells:
        key = tuple(map(str, cell.coordinates.values()))
        if names.setdefault(key, cell.id) != cell.id:
            raise ValueError(
                f"expected one cell called {cell.label!r}, got several with other "
                f"settings: give each estimator a name"
            )
    unique = {cell.id: cell for cell in cells}
    wanted = selector(only)
    return [cell for cell in unique.values() if wanted(cell)]


def _cell(
    suite: Suite,
    fields: Mapping[str, Any],
    seed: int,
    worlds: dict[str, "World"],
    *,
    quick: bool,
) -> Cell:
    from baselines import ESTIMATORS  # noqa: PLC0415 - imports torch
    from bench.worlds import WORLDS  # noqa: PLC0415

    for name in ("world", "reward", "estimator"):
        if name not in fields:
            raise ValueError(f"suite {suite.name!r}: expected a {name}, got none")
    world = part(fields["world"], WORLDS, "world")
    if (key := world.model_dump_json()) not in worlds:
        worlds[key] = world_of(world)
    built = worlds[key]
    estimator = part(fields["estimator"], ESTIMATORS, "estimator")
    reward = part(fields["reward"], dict.fromkeys(built.rewards, built.reward), "reward")
    protocol = {k: v for k, v in fields.items() if k in Protocol.model_fields}
    return Cell(
        spec=Spec(
            task=suite.task,
            world=world.model_copy(update={"digest": built.digest}),
            reward=reward,
            estimator=estimator,
            protocol=validated(Protocol, protocol, f"suite {suite.name!r}"),
            prompts=digest(built.prompts),
            seed=seed,
        ),
        label=label(fields["estimator"]),
        suite=suite.name,
        quick=quick,
    )


def part(value: str | Mapping[str, Any], registry: Mapping[str, Any], kind: str) -> Part:
    """A world or estimator of a suite, with all settings.

    Raises:
        ValueError: if it does not resolve.
    """
    entry = {"build": value} if isinstance(value, str) else dict(value)
    if "build" not in entry:
        raise ValueError(f"expected {kind} as a name or a mapping with `build`, got {value!r}")
    build, given = entry["build"], {k: v for k, v in entry.items() if k not in {"build", "name"}}
    settings = complete(resolve(build, registry, kind), given, f"{kind} {label(value)!r}")
    settings.pop("device", None)
    return Part(build=build, settings=settings, source=source_digest(build))


def world_of(world: Part, device: str = "cpu") -> "World":
    """The world a specification names, built on a device."""
    from bench.worlds import WORLDS  # noqa: PLC0415 - imports torch

    return resolve(world.build, WORLDS, "world")(**world.settings, device=device)


def reward_of(reward: Part, world: "World") -> "Reward":
    """The reward a specification names: one of the world's, or a user's `build(world)`."""
    if reward.build in world.rewards:
        return world.reward(reward.build)
    return resolve(reward.build, {}, "reward")(world, **reward.settings)


def selector(expression: str) -> Callable[[Cell], bool]:
    """A test of cells from `estimator=tweedie & reward!=linear & estimator~mc`.

    `=` equals, `!=` does not, `~` contains; terms are joined by `&`.

    Raises:
        ValueError: for a term of another form or an unknown coordinate.
    """
    terms = []
    for term in filter(None, (t.strip() for t in expression.split("&"))):
        match = re.fullmatch(r"(\w+)\s*(!=|=|~)\s*(.+)", term)
        if match is None:
            raise ValueError(f"expected COORDINATE=VALUE, != or ~, got {term!r}")
        terms.append(match.groups())

    def wanted(cell: Cell) -> bool:
        return all(_holds(cell.coordinates, *term) for term in terms)

    return wanted


def _holds(coordinates: Mapping[str, Any], name: str, operator: str, value: str) -> bool:
    if name not in coordinates:
        raise UnknownName("coordinate", name, coordinates)
    have = str(coordinates[name])
    if operator == "~":
        return value in have
    return (have == value) == (operator == "=")


def values(field: str, text: str) -> list[Any]:
    """Values of a `--set FIELD=V1,V2`, each parsed as YAML; a list field takes all as one value.

    Raises:
        UnknownName: for a field nobody knows.
    """
    _known(field)
    parsed = [yaml.safe_load(v) for v in text.split(",")]
    return [parsed] if field == "sigmas" else parsed
