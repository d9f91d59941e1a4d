"""Time to target: how long each run takes to a level that no compared run has a say in.

The level is 80 % of the gain at the plateau of the published method's pilot, a run that is not
used again; the plateau is the mean of its last quarter.  A run that never gets there takes
infinitely long, and one that falls below again at the next evaluation was never there.  Where the
pilot's gain is not clearly above 0, by prompt, there is no level: it would be noise.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.stats import mean_interval

SHARE, PLATEAU = 0.8, 0.25


class Reached(NamedTuple):
    """When a run reached a level, infinite where it never did; the same of steps."""

    method: str
    run: int
    seconds: float
    steps: float


def level(frame: pd.DataFrame, algorithm: str) -> float | None:
    """What runs of an algorithm are to reach; None where no pilot says."""
    pilot = frame[
        (frame["phase"] == "pilot")
        & (frame["algorithm"] == algorithm)
        & (frame["estimator_build"] == "terminal")
    ].sort_values("step")
    if pilot.empty:
        return None
    count = max(1, round(PLATEAU * (len(pilot) - 1)))
    base, *_ = x = list(pilot["target_by_prompt"])
    gain = mean_interval(np.mean(x[-count:], axis=0) - base)
    return float(base.mean() + SHARE * gain.mean) if gain.lo > 0 else None


def reached(frame: pd.DataFrame, algorithm: str) -> Iterator[Reached]:
    """Of every compared run of an algorithm."""
    goal = level(frame, algorithm)
    rows = frame[(frame["phase"] == "run") & (frame["algorithm"] == algorithm)]
    if goal is None:
        return
    rows = rows.sort_values("step", kind="stable")
    for method, of_method in rows.groupby("method", sort=False):
        for run in sorted(of_method["run"].unique()):
            part = of_method[of_method["run"] == run]
            found = (first(part["target"], part[name], goal) for name in ("seconds", "step"))
            yield Reached(str(method), int(run), *found)


def first(y: pd.Series, x: pd.Series, goal: float) -> float:
    """Where y first reaches a goal and stays for one more evaluation; infinity: never.

    On straight lines between evaluations.
    """
    there = y.to_numpy() >= goal
    above = np.flatnonzero(there & np.append(there[1:], True))  # noqa: FBT003 - of the last one
    if not len(above):
        return float("inf")
    k = int(above[0])
    if k == 0:
        return float(x.iloc[0])
    (x0, x1), (y0, y1) = x.iloc[k - 1 : k + 1], y.iloc[k - 1 : k + 1]
    return float(x0 + (goal - y0) / (y1 - y0) * (x1 - x0))
