"""How one facet bears on each claim: pure functions from its rows to evidence.

*Clearly* means here as everywhere: tests over prompts, Holm-adjusted within the facet, at 0.05.
An estimator is held to a bias only where what it declares to aim at is what it is judged against.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.report import numbers, trust
from bench.report.estimators import order
from bench.report.facets import Facet
from bench.stats import Interval, holm, log_ratio_interval, mean_interval, paired, slope_interval

EXACT = {"float64": 1e-8, "float32": 1e-4}  # dtype to what counts as 0
SLOPE, SLACK = -0.5, 0.05
ENOUGH_N = 3  # values of N for a slope
MANY_TIMES = 10.0
TRUE_KERNELS = ("reversal", "exact")  # their rollouts end in the posterior


class Evidence(NamedTuple):
    """What one facet says to a claim: where, whether it held, and the figures."""

    where: str
    held: bool
    figures: str


class Test(NamedTuple):
    """A mean over prompts tested against 0, with its Holm-adjusted p."""

    sigma: float
    estimator: str
    mean: float
    lo: float
    hi: float
    p: float

    @property
    def sign(self) -> int:
        """-1 or 1 where the mean is clearly off 0, else 0."""
        return int(np.sign(self.mean)) if self.p < trust.ALPHA else 0

    def __str__(self) -> str:
        return (
            f"{numbers.interval(self.mean, self.lo, self.hi)} "
            f"({self.estimator}, sigma {self.sigma:g}, {numbers.p_value(self.p)})"
        )


def tweedie_exact(facet: Facet) -> Iterator[Evidence]:
    """Linear rewards only."""
    rows = _aiming(_build(facet, "tweedie"))
    if facet.frame["reward"].iloc[0] != "linear" or rows.empty:
        return
    for dtype, part in rows.groupby("dtype"):
        largest = float(part["rmse"].max())
        held = largest < EXACT.get(str(dtype), 0.0)
        yield Evidence(facet.title, held, f"largest RMSE {numbers.plain(largest, 2)} in {dtype}")


def tweedie_biased(facet: Facet) -> Iterator[Evidence]:
    """Nonlinear rewards only."""
    rows = _aiming(_build(facet, "tweedie")).sort_values("sigma")
    if facet.frame["reward"].iloc[0] == "linear" or rows["sigma"].nunique() <= 1:
        return
    for name, part in rows.groupby("estimator", sort=False):
        tests = _tests(part, "squared_bias")
        low, high = part.iloc[0], part.iloc[-1]
        growth = paired(high["squared_bias_by_prompt"], low["squared_bias_by_prompt"])
        grows = growth.difference.lo > 0 and growth.p < trust.ALPHA
        roots = [numbers.plain(max(row["squared_bias"], 0) ** 0.5, 2) for row in (low, high)]
        yield Evidence(
            facet.title,
            all(test.sign > 0 for test in tests) and grows,
            f"{name}: root of the squared bias {roots[0]} at sigma {low['sigma']:g}, {roots[1]} at "
            f"{high['sigma']:g}; mean bias there {numbers.of(high, 'bias')}",
        )


def reversal_unbiased(facet: Facet) -> Iterator[Evidence]:
    """All N at the most steps, all noise levels."""
    rows = _aiming(_monte_carlo(facet, "mean", ("reversal",)))
    if rows.empty:
        return
    most = rows["estimator.steps"].max()
    tests = _tests(rows[rows["estimator.steps"] == most], "bias", "squared_bias")
    clear = [test for test in tests if test.sign]
    least = min(tests, key=lambda test: test.p)
    figures = (
        f"k = {most:g}: {len(clear)} of {len(tests)} tests clear, least likely {least}; "
        f"{_detectable(rows[rows['estimator.steps'] == most])}"
    )
    yield Evidence(facet.title, not clear, figures)


def others_biased(facet: Facet) -> Iterator[Evidence]:
    """Kernels that only keep the marginals."""
    rows = _monte_carlo(facet, "mean", None)
    rows = rows[~rows["estimator.kernel"].isin(TRUE_KERNELS)] if len(rows) else rows
    rows = rows[rows["estimand"].str.endswith(("| prompt", "| data"))]
    for kernel, part in rows.groupby("estimator.kernel", sort=False) if len(rows) else ():
        tests = _tests(part, "bias", "squared_bias")
        clear = [test for test in tests if test.sign]
        of_bias = max(_tests(part, "bias"), key=lambda test: abs(test.mean))
        figures = f"{kernel}: {len(clear)} of {len(tests)} tests clear, largest bias {of_bias}"
        yield Evidence(facet.title, bool(clear), figures)


def root_n(facet: Facet) -> Iterator[Evidence]:
    """Sweeps over N at fixed kernel and steps."""
    rows = _aiming(_monte_carlo(facet, "mean", TRUE_KERNELS))
    if rows.empty:
        return
    for (kernel, k), sweep in rows.groupby(["estimator.kernel", "estimator.steps"], sort=False):
        slopes = {}
        for sigma, part in sweep.groupby("sigma"):
            if part["estimator.particles"].nunique() >= ENOUGH_N and (part["rmse"] > 0).all():
                slopes[sigma] = slope_interval(
                    np.log(part["estimator.particles"].to_numpy(float)),
                    np.log(part["rmse"].to_numpy(float)),
                )
        if slopes:
            held = all(abs(slope.mean - SLOPE) <= SLACK for slope in slopes.values())
            shown = [f"{numbers.interval(*s[:3])} at {sigma:g}" for sigma, s in slopes.items()]
            yield Evidence(facet.title, held, f"{kernel}, k = {k:g}: slope {', '.join(shown)}")


def monte_carlo_dear(facet: Facet) -> Iterator[Evidence]:
    """The dearest Monte Carlo against Tweedie, paired by noise level."""
    rows = _monte_carlo(facet, None, None)
    ratios = _cost_ratios(facet, rows[rows["estimator.kernel"] != "exact"] if len(rows) else rows)
    if ratios:
        name, dearest = max(ratios.items(), key=lambda item: item[1].mean)
        least = min(ratios.values(), key=lambda ratio: ratio.mean)
        figures = (
            f"{numbers.interval(*dearest[:3])} times for {name}; the cheapest "
            f"{numbers.interval(*least[:3])} times"
        )
        yield Evidence(facet.title, dearest.lo >= MANY_TIMES, figures)


def stitched_cheaper(facet: Facet) -> Iterator[Evidence]:
    """Seconds against Tweedie's, and skill."""
    rows = _build(facet, "linear_stitch")
    for name, ratio in _cost_ratios(facet, rows).items():
        skills = rows[rows["estimator"] == name].sort_values("sigma")["skill"].dropna()
        span = f"{numbers.fixed(skills.max())} to {numbers.fixed(skills.min())}"
        figures = f"{name}: {numbers.interval(*ratio[:3])} times Tweedie's seconds"
        if len(skills):
            figures += f"; skill {span} over the noise levels"
        yield Evidence(facet.title, ratio.hi < 1, figures)


def soft_low(facet: Facet) -> Iterator[Evidence]:
    """The smallest N of every kernel that draws from the posterior."""
    rows = _aiming(_monte_carlo(facet, "soft", TRUE_KERNELS))
    for kernel, part in rows.groupby("estimator.kernel", sort=False) if len(rows) else ():
        fewest = part["estimator.particles"].min()
        tests = _tests(part[part["estimator.particles"] == fewest], "bias")
        signs = [test.sign for test in tests]
        figures = (
            f"{kernel}, N = {fewest:g}: clearly below 0 at {signs.count(-1)} of {len(tests)} noise "
            f"levels, lowest {min(tests, key=lambda test: test.mean)}"
        )
        yield Evidence(facet.title, -1 in signs and 1 not in signs, figures)


def realised_agrees(facet: Facet) -> Iterator[Evidence]:
    """Bias, and MSE differences to the constant, by either reference.

    The bias changes by r(z_0) - V, whatever the estimator: it is tested once per noise level.
    """
    frame = facet.frame
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
    tests = _adjusted(found)
    clear = [test for test in tests if test.sign]
    least = min(tests, key=lambda test: test.p)
    figures = f"{len(clear)} of {len(tests)} changes clear, least likely {least}"
    yield Evidence(facet.title, not clear, figures)


def _detectable(rows: pd.DataFrame) -> str:
    """The bias that would have shown, at the largest N."""
    most = rows["estimator.particles"].max()
    seen = [
        paired(x, np.zeros_like(x)).detectable
        for x in rows.loc[rows["estimator.particles"] == most, "bias_by_prompt"]
    ]
    return f"at N = {most:g} a bias of {numbers.plain(max(seen), 2)} is found 4 times in 5"


def _gap(row: pd.Series, metric: str) -> np.ndarray:
    return row[f"{metric}_realised_by_prompt"] - row[f"{metric}_by_prompt"]


def _build(facet: Facet, build: str) -> pd.DataFrame:
    return facet.frame[facet.frame["estimator_build"] == build]


def _monte_carlo(
    facet: Facet, value: str | None, kernels: Iterable[str] | None
) -> pd.DataFrame:
    """Monte Carlo rows, of one value and some kernels or all."""
    rows = _build(facet, "monte_carlo")
    if value is not None and len(rows):
        rows = rows[rows["estimator.value"] == value]
    if kernels is not None and len(rows):
        rows = rows[rows["estimator.kernel"].isin(list(kernels))]
    return rows


def _aiming(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows judged against what they aim at."""
    return rows[rows["target"] == rows["estimand"]]


def _tests(rows: pd.DataFrame, *metrics: str) -> list[Test]:
    """Every metric of every row against 0."""
    return _adjusted([
        (row["sigma"], f"{metric.replace('_', ' ')}, {row['estimator']}", row[f"{metric}_by_prompt"])
        for _, row in rows.iterrows()
        for metric in metrics
        if row[f"{metric}_by_prompt"] is not None
    ])  # fmt: skip


def _adjusted(found: list[tuple[float, str, np.ndarray]]) -> list[Test]:
    p = holm([paired(x, np.zeros_like(x)).p for _, _, x in found])
    return [
        Test(sigma, name, *mean_interval(x)[:3], float(p[k]))
        for k, (sigma, name, x) in enumerate(found)
    ]


def _cost_ratios(facet: Facet, rows: pd.DataFrame) -> dict[str, Interval]:
    """Estimator to its seconds over Tweedie's: geometric mean over noise levels, with interval."""
    reference = trust.tweedie_seconds(facet.frame)
    out = {}
    for name in order(rows) if len(rows) else ():
        mine = rows[rows["estimator"] == name].groupby("sigma")["seconds"].first()
        both = pd.concat([mine, reference], axis=1, keys=["mine", "tweedie"]).dropna()
        if len(both):
            out[name] = log_ratio_interval(both["mine"], both["tweedie"])
    return out
