"""How one facet bears on each claim about trained value models."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bench.report import numbers, trust
from bench.report.evidence import Evidence, Tested, adjusted, aiming, built, cost_ratios
from bench.report.facets import Facet

SHARE = 0.3  # of Tweedie's seconds
NOISY = 0.5  # from here on, a noise level is high
COSINES = ("clip", "hps")  # rewards that are cosines of unit embeddings
UNIT, FREE = "stitched", "stitched_free"  # models that ship


def cheap(facet: Facet) -> Iterator[Evidence]:
    """Seconds of a trained StitchVM against Tweedie's."""
    for name, ratio in cost_ratios(facet, built(facet, "stitched")).items():
        held = True if ratio.hi < SHARE else False if ratio.lo > SHARE else None
        yield Evidence(
            facet.title, held, f"{name}: {numbers.interval(*ratio[:3])} times Tweedie's seconds"
        )


def better_than_tweedie(facet: Facet) -> Iterator[Evidence]:
    """Errors at high noise against Tweedie's with the null text, under the data posterior."""
    rows = aiming(facet.frame[facet.frame["sigma"] >= NOISY])
    rows = rows[rows["estimand"] == "mean | data"]
    plain, trained = trust.plain_tweedie(rows), rows[rows["estimator_build"] == "stitched"]
    for name, mine in trained.groupby("estimator", sort=False):
        tests = _differences(mine, plain, "mse")
        if tests:
            yield Evidence(facet.title, _all(tests, -1), _text(str(name), "MSE", tests))


def unit_overrates(facet: Facet) -> Iterator[Evidence]:
    """Bias of the unit embedding's cosine against the free one's, at the highest noise level."""
    rows = aiming(built(facet, "stitched"))
    if rows.empty or facet.frame["reward"].iloc[0] not in COSINES:
        return
    rows = rows[rows["sigma"] == rows["sigma"].max()]
    unit, free = (rows[rows["estimator.model"] == model] for model in (UNIT, FREE))
    tests = _differences(unit, free, "bias")
    if tests:
        yield Evidence(facet.title, _all(tests, 1), _text("unit over free", "bias", tests))


def _differences(mine: pd.DataFrame, other: pd.DataFrame, metric: str) -> list[Tested]:
    """A metric's paired differences at every noise level that both have."""
    theirs = {row["sigma"]: row for _, row in other.iterrows()}
    found = [
        (row["sigma"], str(row["estimator"]), _gap(row, theirs[row["sigma"]], metric))
        for _, row in mine.iterrows()
        if row["sigma"] in theirs
    ]
    return adjusted(found) if found else []


def _gap(row: pd.Series, other: pd.Series, metric: str) -> np.ndarray:
    return row[f"{metric}_by_prompt"] - other[f"{metric}_by_prompt"]


def _all(tests: list[Tested], sign: int) -> bool | None:
    """True where all differences clearly have a sign, False where one clearly has the other."""
    if any(test.sign == -sign for test in tests):
        return False
    return True if all(test.sign == sign for test in tests) else None


def _text(name: str, what: str, tests: list[Tested]) -> str:
    shown = [f"{numbers.interval(x.mean, x.lo, x.hi)} at {x.sigma:g}" for x in tests]
    return f"{name}: difference in {what} {', '.join(shown)}"
