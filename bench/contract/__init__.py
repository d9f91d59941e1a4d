"""Contracts: what every extension keeps, and `stitchbench test FILE` checks on anybody's file.

One file a kind: a case is what is checked, with inputs to try it on; each check raises with what
was expected and what came.  Our tests run them on everything that we ship.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from baselines import ESTIMATORS
from bench.algorithms import ALGORITHMS
from bench.contract import (
    algorithm,
    backbone,
    estimator,
    judge,
    metric,
    prompts,
    reward,
    trainer,
    world,
)
from bench.contract.checking import check
from bench.metrics import METRICS
from bench.trainers import TRAINERS
from bench.worlds import WORLDS


class Contract(NamedTuple):
    """How a kind of extension is checked.

    Attributes:
        known: Ours of that kind, by name.
        case: From a build, a world and a reward to what is checked.
        checks: What it must keep.
    """

    known: Mapping[str, Callable[..., Any]]
    case: Callable[..., Any]
    checks: tuple[Callable[[Any], None], ...]


KINDS: dict[str, Contract] = {
    "estimator": Contract(ESTIMATORS, estimator.case, estimator.CHECKS),
    "reward": Contract({}, reward.case, reward.CHECKS),
    "backbone": Contract({}, backbone.case, backbone.CHECKS),
    "prompts": Contract({}, prompts.case, prompts.CHECKS),
    "judge": Contract({}, judge.case, judge.CHECKS),
    "metric": Contract(
        {name: (lambda known=known: known) for name, known in METRICS.items()},
        metric.case,
        metric.CHECKS,
    ),
    "algorithm": Contract(ALGORITHMS, algorithm.case, algorithm.CHECKS),
    "trainer": Contract(TRAINERS, trainer.case, trainer.CHECKS),
    "world": Contract(WORLDS, world.case, world.CHECKS),
}

__all__ = ["KINDS", "Contract", "check"]
