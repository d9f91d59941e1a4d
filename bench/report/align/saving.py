"""What local proposals save against more particles, at equal target reward (the paper's Figure 3).

    saving = 1 - seconds(N, M) / seconds at which more particles alone reach the same reward

Seconds of particles alone are interpolated between measured N, in the logarithm of seconds, along
the highest reward so far.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.report import numbers
from bench.report.align.frame import judged
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.report.places import by_cell
from bench.stats import Interval

RESAMPLES, SEED = 2000, 0
PAPER = 0.33
Array = npt.NDArray[np.float64]


def savings(rows: pd.DataFrame) -> Iterator[tuple[str, str, Interval]]:
    """Each method with proposals against particles alone: of each estimator, and Best-of-N."""
    rows = judged(rows)
    if "algorithm.proposals" not in rows:
        return
    alone = rows[(rows["algorithm.proposals"] == 1) | (rows["algorithm_build"] == "best_of_n")]
    for _, row in rows[rows["algorithm.proposals"] > 1].iterrows():
        for name, curve in alone.groupby("estimator", sort=False):
            if len(curve) > 1:
                yield str(row["method"]), str(name), saving(row, curve)


def saving(row: pd.Series, curve: pd.DataFrame) -> Interval:
    """The share of seconds saved, with a bootstrap interval; NaN outside the measured range."""
    curve = curve.sort_values("seconds_all")
    seconds = np.log(curve["seconds_all"].to_numpy(dtype=float))
    rewards = np.stack(curve["target_by_prompt"].to_list())
    mine = np.asarray(row["target_by_prompt"], dtype=float)
    found = _saved(mine.mean(), rewards.mean(1), seconds, float(row["seconds_all"]))
    rng, n = np.random.default_rng(SEED), len(mine)
    drawn = []
    for _ in range(RESAMPLES):
        k = rng.integers(n, size=n)
        drawn.append(_saved(mine[k].mean(), rewards[:, k].mean(1), seconds, row["seconds_all"]))
    known = np.array(drawn)
    if np.isnan(found) or np.isnan(known).mean() > 0.025:  # noqa: PLR2004 - an end is unknown
        return Interval(found, np.nan, np.nan, n)
    lo, hi = np.nanquantile(known, [0.025, 0.975])
    return Interval(found, float(lo), float(hi), n)


def _saved(reward: float, rewards: Array, log_seconds: Array, seconds: float) -> float:
    highest = np.maximum.accumulate(rewards)
    if not highest[0] <= reward <= highest[-1]:
        return float("nan")
    first = int(np.searchsorted(highest, reward))  # the first that reaches it
    if first == 0:
        return 1 - seconds / float(np.exp(log_seconds[0]))
    lo, hi = highest[first - 1], highest[first]
    share = (reward - lo) / (hi - lo)
    at = log_seconds[first - 1] + share * (log_seconds[first] - log_seconds[first - 1])
    return 1 - seconds / float(np.exp(at))


def listed(rows: pd.DataFrame) -> pd.DataFrame:
    """Those as text, in per cent."""
    lines: dict[str, dict[str, str]] = {}
    cells = dict(zip(rows["method"], rows["cell"], strict=True))
    for method, name, x in savings(rows):
        line = lines.setdefault(method, {"cell": cells[method], "method": method})
        shown = numbers.interval(100 * x.mean, 100 * x.lo, 100 * x.hi)
        line[f"against {name}, more particles"] = shown
    return by_cell(lines.values()).fillna(numbers.MISSING)


def saves(facet: Facet) -> Iterator[Evidence]:
    """Whether proposals save clearly, and as much as the paper says."""
    for method, name, x in savings(facet.frame):
        if np.isnan(x.mean):
            continue
        held = True if x.lo > 0 else False if x.hi < 0 else None
        shown = numbers.interval(100 * x.mean, 100 * x.lo, 100 * x.hi)
        yield Evidence(facet.title, held, f"{method} against {name}: {shown} % saved")
