"""What claims are judged by: rows of a facet, tests over prompts, ratios of times.

Where the truth is an average over a bank, only what has the same expectation under it is judged:
the bias of mean values, and costs.  RMSE and squared bias contain the truth's own variance, and a
bank holds the very latents that were noised.

*Clearly* means at 0.05, Holm-adjusted over the tests that a rule makes in one facet.  An estimator
is held to a bias only where what it declares to aim at is what it is judged against.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.report import certainty, numbers, trust
from bench.report.estimators import order
from bench.report.facets import Facet
from bench.stats import Interval, holm, log_ratio_interval, mean_interval, paired

WORDS = {"bias": "bias", "squared_bias": "squared bias"}


class Evidence(NamedTuple):
    """What one facet says to a claim: where, whether it held (None: undecided), and figures."""

    where: str
    held: bool | None
    figures: str


class Tested(NamedTuple):
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


def built(facet: Facet, build: str) -> pd.DataFrame:
    """Rows of estimators made by one build."""
    return facet.frame[facet.frame["estimator_build"] == build]


def monte_carlo(facet: Facet, value: str | None, kernels: Iterable[str] | None) -> pd.DataFrame:
    """Monte Carlo rows, of one value and some kernels or all."""
    rows = built(facet, "monte_carlo")
    if value is not None and len(rows):
        rows = rows[rows["estimator.value"] == value]
    if kernels is not None and len(rows):
        rows = rows[rows["estimator.kernel"].isin(list(kernels))]
    return rows


def aiming(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows judged against what they aim at."""
    return rows[(rows["target"] == rows["estimand"]) & rows["bias"].notna()]


def biases(rows: pd.DataFrame) -> tuple[str, ...]:
    """The metrics of bias that the truth of these rows can judge."""
    return ("bias", "squared_bias") if certainty.is_exact(rows) else ("bias",)


def growth(low: pd.Series, high: pd.Series, metric: str) -> int:
    """Whether a metric is clearly larger (1) or smaller (-1) in the second row; of bias its size.

    A signed metric is turned by the sign of its mean.
    """
    sizes = [row[f"{metric}_by_prompt"] for row in (high, low)]
    if metric == "bias":
        sizes = [np.sign(np.nanmean(x)) * x for x in sizes]
    found = paired(*sizes)
    return int(np.sign(found.difference.mean)) if found.p < trust.ALPHA else 0


def growth_text(low: pd.Series, high: pd.Series, metric: str) -> str:
    """The bias at the lowest and at the highest noise level."""
    if metric == "bias":
        ends = [f"{numbers.of(row, 'bias')} at sigma {row['sigma']:g}" for row in (low, high)]
        return f"mean bias {', '.join(ends)}"
    roots = [numbers.plain(max(row["squared_bias"], 0) ** 0.5, 2) for row in (low, high)]
    return (
        f"root of the squared bias {roots[0]} at sigma {low['sigma']:g}, {roots[1]} at "
        f"{high['sigma']:g}; mean bias there {numbers.of(high, 'bias')}"
    )


def tests_of(rows: pd.DataFrame, *metrics: str) -> list[Tested]:
    """Every metric of every row against 0."""
    return adjusted([
        (row["sigma"], f"{WORDS[metric]}, {row['estimator']}", row[f"{metric}_by_prompt"])
        for _, row in rows.iterrows()
        for metric in metrics
    ])  # fmt: skip


def adjusted(found: list[tuple[float, str, np.ndarray]]) -> list[Tested]:
    """Means over prompts against 0, their p Holm-adjusted: sigma, name, numbers by prompt."""
    p = holm([paired(x, np.zeros_like(x)).p for _, _, x in found])
    return [
        Tested(sigma, name, *mean_interval(x)[:3], float(p[k]))
        for k, (sigma, name, x) in enumerate(found)
    ]


def found_four_in_five(rows: pd.DataFrame) -> str:
    """The bias that would have shown, at the largest N."""
    most = rows["estimator.particles"].max()
    seen = [
        paired(x, np.zeros_like(x)).detectable
        for x in rows.loc[rows["estimator.particles"] == most, "bias_by_prompt"]
    ]
    return f"at N = {most:g} a bias of {numbers.plain(max(seen), 2)} is found 4 times in 5"


def cost_ratios(facet: Facet, rows: pd.DataFrame) -> dict[str, Interval]:
    """Estimator to its seconds over Tweedie's: geometric mean over noise levels, with interval."""
    reference = trust.tweedie_seconds(facet.frame)
    out = {}
    for name in order(rows) if len(rows) else ():
        mine = rows[rows["estimator"] == name].groupby("sigma")["seconds"].first()
        both = pd.concat([mine, reference], axis=1, keys=["mine", "tweedie"]).dropna()
        if len(both):
            out[name] = log_ratio_interval(both["mine"], both["tweedie"])
    return out
