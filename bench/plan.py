"""The cells of a suite: every name resolved, every default written out, before anything runs."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bench.cell import Cell, Spec, digest, label
from bench.part import JOINT, Part
from bench.parts import part, parts_of, world_part
from bench.protocols import PROTOCOLS
from bench.resolve import UnknownName, resolve, weights_of
from bench.suite import ALGORITHM, PARTS, Fields, Suite, combinations, load, validated

if TYPE_CHECKING:
    from stitchvm.world import World

USERS = {"metrics": "metric", "judges": "judge"}  # fields of protocols that name users' files
OWN_REWARDS = {"interface", "cost"}  # tasks whose value models are kept by the reward's name


def plan(
    suite: Suite,
    *,
    changes: Mapping[str, list[Any]] | None = None,
    seed: int | None = None,
    quick: bool = False,
    only: str = "",
    device: str = "cpu",
    threads: int = 1,
) -> list[Cell]:
    """The cells of a suite, resolved: what would run.

    Args:
        suite: The suite.
        changes: Axis to values, in place of the suite's own.
        seed: In place of the suite's.
        quick: Whether the suite's `quick` values apply.
        only: A `selector`.
        device: Where cells will run, "cpu" or "cuda:1".
        threads: CPU threads of a cell.

    Raises:
        ValueError: for anything in the suite that does not resolve, before anything runs; what
            `only` leaves out by the names of its parts need not.
    """
    if suite.suites:
        asked: dict[str, Any] = {"changes": changes, "seed": seed, "quick": quick, "only": only}
        return [
            cell
            for member in _members(suite)
            for cell in plan(member, **asked, device=device, threads=threads)
        ]
    shared: dict[str, Any] = {
        "seed": suite.seed if seed is None else seed,
        "device": device.partition(":")[0],
        "threads": threads,
    }
    worlds: dict[str, World] = {}
    wanted, terms = selector(only), _terms(only)
    cells = [
        _cell(suite, fields, shared, worlds, quick=quick)
        for fields in combinations(suite, changes or {}, quick=quick)
        if _may_hold(_called(suite.task, fields), terms)
    ]
    unique = {cell.id: cell for cell in cells}
    return [cell for cell in _told_apart(unique.values(), bool(changes)) if wanted(cell)]


def _members(suite: Suite) -> list[Suite]:
    """The suites that a suite is made of.

    Raises:
        ValueError: if it has cells of its own, or one of them is made of suites.
    """
    if suite.axes or suite.include:
        raise ValueError(f"suite {suite.name!r}: expected either suites or axes, got both")
    members = [load(name) for name in suite.suites]
    if nested := [member.name for member in members if member.suites]:
        raise ValueError(f"suite {suite.name!r}: expected suites of cells, got {nested[0]!r}")
    return members


def _told_apart(cells: Iterable[Cell], changed: bool) -> list[Cell]:  # noqa: FBT001
    """Cells that no table confuses: where only the protocol or a seed differs, it is named.

    Of two cells that a change of axes has made alike but for whether gradients are measured, the
    first stays.

    Raises:
        ValueError: for two estimators, worlds or rewards of one name with other settings.
    """
    alike: defaultdict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        alike[tuple(cell.coordinates.values())].append(cell)
    out = []
    for group in alike.values():
        for kind in ("estimator", "world", "reward"):
            if len({getattr(c.spec, kind).model_dump_json() for c in group}) > 1:
                raise ValueError(
                    f"expected one {kind} called {group[0].coordinates[kind]!r}, got several with "
                    f"other settings: give each a name"
                )
        protocols = [cell.spec.protocol.model_dump() for cell in group]
        differs = [k for k in protocols[0] if len({repr(p[k]) for p in protocols}) > 1]
        if changed and differs == ["gradient"]:
            out.append(group[0])
            continue
        for cell, protocol in zip(group, protocols, strict=True):
            variant = ", ".join(f"{k}={_short(protocol[k])}" for k in differs)
            out.append(
                cell.model_copy(update={"coordinates": cell.coordinates | {"variant": variant}})
            )
    return out


def _short(value: Any) -> str:
    """A protocol's value in a table: of users' files, their names."""
    several = value if isinstance(value, list | tuple) else [value]
    files = [str(v["name"]) for v in several if isinstance(v, dict)]
    return "+".join(files) if files else str(value)


def _cell(
    suite: Suite,
    fields: Fields,
    shared: Mapping[str, Any],
    worlds: dict[str, "World"],
    *,
    quick: bool,
) -> Cell:
    """One cell from its field values."""
    from bench.algorithms import ALGORITHMS  # noqa: PLC0415
    from bench.tasks import ESTIMATORS  # noqa: PLC0415 - imports torch
    from bench.trainers import TRAINERS  # noqa: PLC0415
    from bench.worlds import WORLDS, names_of  # noqa: PLC0415

    parts = (*PARTS, *ALGORITHM.get(suite.task, ()))
    for name in parts:
        if name not in fields:
            raise ValueError(f"suite {suite.name!r}: expected a {name}, got none")
    world = world_part(fields["world"], WORLDS)
    built = _built(world, worlds)
    given = {k: v for k, v in fields.items() if k not in parts}
    for name, kind in USERS.items():
        if name in given:
            given[name] = parts_of(given[name], kind)
    protocol = validated(PROTOCOLS[suite.task], given, f"suite {suite.name!r}")
    called = _called(suite.task, fields)
    reward = _reward(fields["reward"], built, called["world"], suite.task)
    known = ESTIMATORS[suite.task]
    estimator = part(fields["estimator"], known, "estimator")
    if weights := weights_of(resolve(estimator.build, known, "estimator")):
        which = [weights(built, r, **estimator.settings) for r in names_of(reward, built)]
        estimator = estimator.model_copy(
            update={"digest": which[0] if len(which) == 1 else digest(which)}
        )
    algorithm = None
    if "algorithm" in parts:
        registry = ALGORITHMS if suite.task == "align" else TRAINERS
        algorithm = part(fields["algorithm"], registry, "algorithm")
    spec = Spec(
        task=suite.task,
        world=world.model_copy(update={"digest": built.digest}),
        reward=reward,
        estimator=estimator,
        protocol=protocol,
        prompts=digest([*built.prompts, *_lessons(suite.task, built)]),
        algorithm=algorithm,
        **shared,
    )
    coordinates = dict(called)
    for name in protocol.SHOWN:
        coordinates[name] = str(getattr(protocol, name))
    coordinates["variant"] = ""
    return Cell(spec=spec, suite=suite.name, coordinates=coordinates, quick=quick)


def _called(task: str, fields: Fields) -> dict[str, str]:
    """The coordinates that are known before anything resolves: what a cell's parts are called."""
    kinds = ("estimator", "world", "reward", *ALGORITHM.get(task, ()))
    return {kind: label(fields[kind]) for kind in kinds if kind in fields}


def _lessons(task: str, world: "World") -> list[str]:
    """Which prompts a training learns from, where the world's digest does not say."""
    return [world.lessons] if task == "train" and world.lessons is not None else []


def _built(world: Part, worlds: dict[str, "World"]) -> "World":
    """A world, built once for all its cells.

    Raises:
        ValueError: for settings that cannot be built.
    """
    from bench.worlds import make  # noqa: PLC0415 - imports torch

    if (key := world.model_dump_json()) not in worlds:
        try:
            worlds[key] = make(world)
        except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(
                f"expected settings that make world {world.build!r}, got {why}"
            ) from error
    return worlds[key]


def _reward(value: Any, built: "World", world: str, task: str) -> Part:
    """A reward, or of `train` the sum of several: `clip+hps`.

    Raises:
        ValueError: if it does not resolve, or the task knows the world's own rewards only.
    """
    registry = dict.fromkeys(built.rewards, built.reward)
    names = value.split(JOINT) if isinstance(value, str) and task == "train" else [value]
    try:
        parts = [part(name, registry, "reward") for name in names]
    except UnknownName as error:
        raise ValueError(f"world {world!r}: {error}") from None
    parts = [
        one.model_copy(update={"digest": built.identity(one.build)})
        if one.build in built.rewards
        else one
        for one in parts
    ]
    if task in OWN_REWARDS and parts[0].source is not None:
        raise UnknownName(f"reward of the {task} task", parts[0].build, registry)
    if len(parts) == 1:
        return parts[0]
    sources = [one.source or "" for one in parts]
    digests = [one.digest or "" for one in parts]
    return Part(
        build=value,
        source=JOINT.join(sources) if any(sources) else None,
        digest=JOINT.join(digests) if any(digests) else None,
    )


def selector(expression: str) -> Callable[[Cell], bool]:
    """A test of cells, `matcher`'s."""
    wanted = matcher(expression)
    return lambda cell: wanted(cell.id, cell.coordinates)


def matcher(expression: str) -> Callable[[str, Mapping[str, str]], bool]:
    """A test of an id and coordinates from `estimator=tweedie & reward!=linear & estimator~mc`.

    `=` equals, `!=` does not, `~` contains; terms are joined by `&`.  `id` is the cell's own.

    Raises:
        ValueError: for a term of another form or an unknown coordinate.
    """
    terms = _terms(expression)

    def wanted(cell: str, coordinates: Mapping[str, str]) -> bool:
        return all(_holds({**coordinates, "id": cell}, *term) for term in terms)

    return wanted


def _terms(expression: str) -> list[tuple[str, str, str]]:
    """Coordinate, operator and value of each term."""
    terms = []
    for term in filter(None, (t.strip() for t in expression.split("&"))):
        match = re.fullmatch(r"(\w+)\s*(!=|=|~)\s*(.+)", term)
        if match is None:
            raise ValueError(f"expected COORDINATE=VALUE, != or ~, got {term!r}")
        terms.append((match[1], match[2], match[3]))
    return terms


def _may_hold(known: Mapping[str, str], terms: Iterable[tuple[str, str, str]]) -> bool:
    """Whether no term speaks against a cell of which some coordinates are known."""
    return all(_holds(known, *term) for term in terms if term[0] in known)


def _holds(coordinates: Mapping[str, Any], name: str, operator: str, value: str) -> bool:
    if name not in coordinates:
        raise UnknownName("coordinate", name, coordinates)
    have = str(coordinates[name])
    if operator == "~":
        return value in have
    return (have == value) == (operator == "=")
