"""Which strengths are tried, and which is chosen.

The chosen one has the highest target reward among those that show the prompt often enough.  Trials
go on beyond an end while the best is there, else between it and its neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.protocols import AlignProtocol

Trial = Mapping[str, Any]  # strength, metrics, feasible


def next_strength(trials: Sequence[Trial], protocol: AlignProtocol) -> float:
    """Where to try next: three first, then beyond an end that is best, or beside the best."""
    first = [
        protocol.strength,
        protocol.strength / protocol.factor,
        protocol.strength * protocol.factor,
    ]
    if len(trials) < len(first):
        return first[len(trials)]
    tried = sorted(trial["strength"] for trial in trials)
    at = tried.index(chosen(trials)["strength"])
    if at == 0:
        return tried[0] / protocol.factor
    if at == len(tried) - 1:
        return tried[-1] * protocol.factor
    below, here, above = tried[at - 1 : at + 2]
    return math.sqrt(here * (below if here / below > above / here else above))


def chosen(trials: Sequence[Trial]) -> Trial:
    """The trial of highest reward that shows its prompts often enough; else the weakest one."""
    feasible = [trial for trial in trials if trial["feasible"]]
    if not feasible:
        return min(trials, key=lambda trial: trial["strength"])
    return max(feasible, key=lambda trial: mean_of(trial, "target"))


def mean_of(row: Trial, metric: str) -> float:
    """Mean over prompts; NaN where it was not measured."""
    x = row["metrics"].get(metric)
    return float("nan") if x is None else float(np.mean(np.array(x, dtype=float)))
