"""Measurement protocols by name: each turns a specification into rows and arrays."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import baselines
from bench.cell import Spec
from bench.references import REFERENCES
from bench.tasks import align, cost, interface, robustness, samples, train, value
from bench.tasks.outcome import Outcome, Phases

Run = Callable[[Spec, str, Path], Outcome]  # the folder is for what a killed run goes on from


def _at_once(run: Callable[[Spec, str], Outcome]) -> Run:
    """A task that has nothing to go on from."""
    return lambda spec, device, _: run(spec, device)


TASKS: dict[str, Run] = {
    "value": _at_once(value.run),
    "robustness": _at_once(robustness.run),
    "interface": _at_once(interface.run),
    "cost": _at_once(cost.run),
    "align": _at_once(align.run),
    "train": train.run,
}
RESUMED = ("train",)  # tasks that a killed run goes on from
ESTIMATORS: dict[str, Mapping[str, Callable[..., Any]]] = {  # what a suite's estimators name
    "value": baselines.ESTIMATORS,
    "robustness": {**baselines.ESTIMATORS, **REFERENCES},
    "interface": interface.STITCHED,
    "cost": cost.MEASURED,
    "align": samples.ESTIMATORS,
    "train": baselines.ESTIMATORS,
}

__all__ = ["ESTIMATORS", "RESUMED", "TASKS", "Outcome", "Phases"]
