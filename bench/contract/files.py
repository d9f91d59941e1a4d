"""Extensions in files: which kind one is, by what its `build` takes and returns; its contract.

build(world, reward)    estimator
build(world)            reward, backbone, a list of prompts; any other function is a judge
build()                 world, algorithm, trainer, metric
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.algorithms import Algorithm
from bench.contract import KINDS
from bench.contract.checking import check
from bench.metrics import Metric
from bench.prompts import LISTS, build_of
from bench.resolve import place, resolve
from bench.trainers import Trainer
from bench.worlds import named
from stitchvm.backbone import Backbone
from stitchvm.reward import Reward
from stitchvm.value import ValueEstimator
from stitchvm.world import World

OF: dict[int, dict[type, str]] = {  # positional parameters, what comes, and the kind that is
    0: {World: "world", Algorithm: "algorithm", Trainer: "trainer", Metric: "metric"},
    1: {Reward: "reward", Backbone: "backbone"},
    2: {ValueEstimator: "estimator"},
}
FORMS = (
    "build(world, reward) of an estimator, build(world) of a reward, backbone, judge or list of "
    "prompts, or build() of a world, algorithm, trainer or metric"
)

SEEN = {  # what a kind was seen by, and what it is not, where one is easily taken for another
    "estimator": "build takes two arguments, a world and a reward",
    "judge": "build(world) returns a plain function, which scores images and is no reward: a "
    "reward must be a Reward, such as stitchvm.whole.WholeReward with `embed` and `score`",
}
REWARD = "quadratic"  # where the world has it: it is curved, and its values are known
Checked = Iterator[tuple[str, str | None]]


def tested(file: str, kind: str | None, where: str, reward: str | None) -> tuple[str, Checked]:
    """The kind of an extension; what it must keep, a line each, and what it does not.

    Args:
        file: As in `found`.
        kind: Likewise.
        where: The world where it is tried: `gaussian,prompts=4`.
        reward: Of that world.

    Raises:
        ValueError: if there is no such file, kind, world or reward.
    """
    world = named(where)
    kind, build = found(file, kind, world)
    if reward is None:
        reward = REWARD if REWARD in world.rewards else world.rewards[0]
    contract, of = KINDS[kind], world.reward(reward)
    return kind, _checked(lambda: contract.case(build, world, of), contract.checks)


def _checked(made: Callable[[], Any], checks: tuple[Callable[[Any], None], ...]) -> Checked:
    """The checks, the first of which is that there is something to check."""
    try:
        case = made()
    except Exception as error:
        yield (
            "It is built, with every setting as it is by default.",
            f"{type(error).__name__}: {error}{place(error)}",
        )
        return
    yield from check(case, checks)


def found(file: str, kind: str | None, world: World) -> tuple[str, Callable[..., Any]]:
    """The kind of an extension, and what builds it.

    Args:
        file: `list.txt`, `file.py`, `file.py:build`, `package:build`, or a name of ours.
        kind: As its author says; else it is seen.
        world: Where it may be built to see.

    Raises:
        ValueError: if there is no such file or name, or its kind is not clear.
    """
    if kind == "prompts" or Path(file).suffix in LISTS:
        return "prompts", build_of(file)
    build = resolve(file, KINDS[kind or "estimator"].known, kind or "estimator")
    return kind or kind_of(build, world), build


def kind_of(build: Callable[..., Any], world: World) -> str:
    """The kind of a build.

    Raises:
        ValueError: if it is not clear.
    """
    taken = [
        p for p in inspect.signature(build).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    if len(taken) == max(OF):
        return "estimator"
    if len(taken) not in OF:
        names = ", ".join(p.name for p in taken)
        raise ValueError(f"expected {FORMS}, got build({names}); --kind says which it is")
    try:
        made = build(*[world][: len(taken)])
    except Exception as error:
        why = f"{type(error).__name__}: {error}{place(error)}"
        raise ValueError(f"expected a build whose kind can be seen, got {why}; "
                         f"--kind says which it is") from error  # fmt: skip
    for of, kind in OF[len(taken)].items():
        if isinstance(made, of):
            return kind
    if len(taken) == 1 and isinstance(made, Sequence) and not isinstance(made, str):
        return "prompts"
    misplaced = isinstance(made, tuple(of for kinds in OF.values() for of in kinds))
    if len(taken) == 1 and callable(made) and not misplaced:
        return "judge"
    names = ", ".join(p.name for p in taken)
    raise ValueError(f"expected {FORMS}, got build({names}) of {type(made).__name__}")
