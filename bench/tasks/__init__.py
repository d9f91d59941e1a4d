"""Measurement protocols by name: each turns a specification into rows and arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import baselines
from bench.references import REFERENCES
from bench.tasks import align, cost, interface, robustness, value
from bench.tasks.outcome import Outcome, Phases

TASKS = {
    "value": value.run,
    "robustness": robustness.run,
    "interface": interface.run,
    "cost": cost.run,
    "align": align.run,
}
ESTIMATORS: dict[str, Mapping[str, Callable[..., Any]]] = {  # what a suite's estimators name
    "value": baselines.ESTIMATORS,
    "robustness": {**baselines.ESTIMATORS, **REFERENCES},
    "interface": interface.STITCHED,
    "cost": cost.MEASURED,
    "align": align.ESTIMATORS,
}

__all__ = ["ESTIMATORS", "TASKS", "Outcome", "Phases"]
