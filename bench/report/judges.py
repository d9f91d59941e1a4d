"""How one facet bears on each claim: pure functions from its rows to evidence."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bench.report import certainty, numbers, trust
from bench.report.estimators import swept
from bench.report.evidence import (
    Evidence,
    adjusted,
    aiming,
    biases,
    built,
    cost_ratios,
    found_four_in_five,
    growth,
    growth_text,
    monte_carlo,
    tests_of,
)
from bench.report.facets import Facet
from bench.stats import Interval, slope_interval

EXACT = {"float64": 1e-8, "float32": 1e-4}  # dtype to what counts as 0
SLOPE, SLACK = -0.5, 0.05
ENOUGH_N = 3  # values of N for a slope
MANY_TIMES = 10.0
TRUE_KERNELS = ("reversal", "exact")  # their rollouts end in the posterior


def tweedie_exact(facet: Facet) -> Iterator[Evidence]:
    """Linear rewards only, against an exact truth."""
    rows = certainty.exact(aiming(trust.plain_tweedie(facet.frame)))
    if facet.frame["reward"].iloc[0] != "linear" or rows.empty:
        return
    for dtype, part in rows.groupby("dtype"):
        largest = float(part["rmse"].max())
        held = largest < EXACT.get(str(dtype), 0.0)
        yield Evidence(facet.title, held, f"largest RMSE {numbers.plain(largest, 2)} in {dtype}")


def tweedie_biased(facet: Facet) -> Iterator[Evidence]:
    """Nonlinear rewards only."""
    rows = aiming(trust.plain_tweedie(facet.frame)).sort_values("sigma")
    if facet.frame["reward"].iloc[0] == "linear" or rows["sigma"].nunique() <= 1:
        return
    for name, part in rows.groupby("estimator", sort=False):
        metric = biases(part)[-1]
        tests = tests_of(part, metric)
        low, high = part.iloc[0], part.iloc[-1]
        grows = growth(low, high, metric)
        held = None if grows >= 0 else False
        if grows > 0 and all(test.sign > 0 or (test.sign and metric == "bias") for test in tests):
            held = True
        yield Evidence(facet.title, held, f"{name}: {growth_text(low, high, metric)}")


def reversal_unbiased(facet: Facet) -> Iterator[Evidence]:
    """All N at the most steps, all noise levels."""
    rows = aiming(monte_carlo(facet, "mean", ("reversal",)))
    if rows.empty:
        return
    most = rows["estimator.steps"].max()
    tests = tests_of(rows[rows["estimator.steps"] == most], *biases(rows))
    clear = [test for test in tests if test.sign]
    least = min(tests, key=lambda test: test.p)
    figures = (
        f"k = {most:g}: {len(clear)} of {len(tests)} tests clear, least likely {least}; "
        f"{found_four_in_five(rows[rows['estimator.steps'] == most])}"
    )
    enough = clear or certainty.is_exact(rows)  # biases of opposite sign cancel in the mean bias
    yield Evidence(facet.title, not clear if enough else None, figures)


def others_biased(facet: Facet) -> Iterator[Evidence]:
    """Kernels that only keep the marginals."""
    rows = monte_carlo(facet, "mean", None)
    rows = rows[~rows["estimator.kernel"].isin(TRUE_KERNELS)] if len(rows) else rows
    rows = rows[rows["bias"].notna() & rows["estimand"].str.endswith(("| prompt", "| data"))]
    for kernel, part in rows.groupby("estimator.kernel", sort=False) if len(rows) else ():
        tests = tests_of(part, *biases(part))
        clear = [test for test in tests if test.sign]
        of_bias = max(tests_of(part, "bias"), key=lambda test: abs(test.mean))
        figures = f"{kernel}: {len(clear)} of {len(tests)} tests clear, largest bias {of_bias}"
        yield Evidence(facet.title, True if clear else None, figures)


def root_n(facet: Facet) -> Iterator[Evidence]:
    """Sweeps over N, all else fixed, against an exact truth."""
    rows = certainty.exact(aiming(monte_carlo(facet, "mean", TRUE_KERNELS)))
    for name, sweep in swept(rows, "particles").items():
        slopes = {
            f"{sigma}": slope_interval(
                np.log(part["estimator.particles"].to_numpy(float)),
                np.log(part["rmse"].to_numpy(float)),
            )
            for sigma, part in sweep[sweep["rmse"] > 0].groupby("sigma")
            if part["estimator.particles"].nunique() >= ENOUGH_N
        }
        if slopes:
            held = _within(list(slopes.values()), SLOPE - SLACK, SLOPE + SLACK)
            shown = [f"{numbers.interval(*s[:3])} at {sigma}" for sigma, s in slopes.items()]
            yield Evidence(facet.title, held, f"{name}: slope {', '.join(shown)}")


def monte_carlo_dear(facet: Facet) -> Iterator[Evidence]:
    """The dearest Monte Carlo against Tweedie, paired by noise level."""
    rows = monte_carlo(facet, None, None)
    ratios = cost_ratios(facet, rows[rows["estimator.kernel"] != "exact"] if len(rows) else rows)
    if ratios:
        name, dearest = max(ratios.items(), key=lambda item: item[1].mean)
        least = min(ratios.values(), key=lambda ratio: ratio.mean)
        figures = (
            f"{numbers.interval(*dearest[:3])} times for {name}; the cheapest "
            f"{numbers.interval(*least[:3])} times"
        )
        yield Evidence(facet.title, _above(dearest, MANY_TIMES), figures)


def stitched_cheaper(facet: Facet) -> Iterator[Evidence]:
    """Seconds against Tweedie's, and skill."""
    rows = built(facet, "linear_stitch")
    for name, ratio in cost_ratios(facet, rows).items():
        skills = rows[rows["estimator"] == name].sort_values("sigma")["skill"].dropna()
        span = f"{numbers.plain(skills.max())} to {numbers.plain(skills.min())}"
        figures = f"{name}: {numbers.interval(*ratio[:3])} times Tweedie's seconds"
        if len(skills):
            figures += f"; skill {span} over the noise levels"
        dearer = _above(ratio, 1)
        yield Evidence(facet.title, None if dearer is None else not dearer, figures)


def soft_low(facet: Facet) -> Iterator[Evidence]:
    """The smallest N of every kernel that draws from the posterior, against an exact truth.

    A bank's own soft value is biased low as well.
    """
    rows = certainty.exact(aiming(monte_carlo(facet, "soft", TRUE_KERNELS)))
    for kernel, part in rows.groupby("estimator.kernel", sort=False) if len(rows) else ():
        fewest = part["estimator.particles"].min()
        tests = tests_of(part[part["estimator.particles"] == fewest], "bias")
        signs = [test.sign for test in tests]
        figures = (
            f"{kernel}, N = {fewest:g}: clearly below 0 at {signs.count(-1)} of {len(tests)} "
            f"noise levels, lowest {min(tests, key=lambda test: test.mean)}"
        )
        held = True if -1 in signs else None
        yield Evidence(facet.title, False if 1 in signs else held, figures)


def realised_agrees(facet: Facet) -> Iterator[Evidence]:
    """Bias, and MSE differences to the constant, by realised rewards and by an exact truth.

    The bias changes by r(z_0) - V, whatever the estimator: it is tested once per noise level.
    """
    frame = certainty.exact(facet.frame)
    if frame.empty:
        return
    posterior = frame["estimand"].iloc[0].partition("| ")[2]
    rows = frame[frame["mse_realised"].notna() & frame["mse"].notna()]
    rows = rows[(rows["realises"] == posterior) & rows["estimand"].str.startswith("mean")]
    judges = {row["sigma"]: row for _, row in trust.constants(rows).iterrows()}
    found = []
    for _, row in rows.iterrows():
        judge = judges.get(row["sigma"])
        if judge is None:
            continue
        if row["estimator"] == judge["estimator"]:
            gaps = {"bias": _gap(row, "bias")}
        else:
            gaps = {"MSE difference": _gap(row, "mse") - _gap(judge, "mse")}
        found += [(row["sigma"], f"{what}, {row['estimator']}", x) for what, x in gaps.items()]
    if not found:
        return
    tests = adjusted(found)
    clear = [test for test in tests if test.sign]
    least = min(tests, key=lambda test: test.p)
    figures = f"{len(clear)} of {len(tests)} changes clear, least likely {least}"
    yield Evidence(facet.title, not clear, figures)


def _above(ratio: Interval, level: float) -> bool | None:
    """Whether an interval lies above a level; None where it includes it or has no ends."""
    if ratio.lo > level:
        return True
    return False if ratio.hi < level else None


def _within(found: list[Interval], lo: float, hi: float) -> bool | None:
    """Whether all estimates lie in a range; False where an interval misses it, else None."""
    if all(lo <= x.mean <= hi for x in found):
        return True
    return False if any(x.hi < lo or x.lo > hi for x in found) else None


def _gap(row: pd.Series, metric: str) -> np.ndarray:
    return row[f"{metric}_realised_by_prompt"] - row[f"{metric}_by_prompt"]
