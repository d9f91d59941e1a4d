"""Measurement protocols by name: each turns a specification into rows and arrays."""

from bench.tasks import robustness, value
from bench.tasks.outcome import Outcome, Phases

TASKS = {
    "value": value.run,
    "robustness": robustness.run,
}

__all__ = ["TASKS", "Outcome", "Phases"]
