"""The paper's own figures beside ours: other data and networks, so beside, never compared."""

from functools import cache
from typing import Any

from bench.report.paper import printed
from bench.report.robustness.comparisons import Comparison

Row = dict[float, float]


@cache
def published() -> dict[str, Any]:
    """Table 5."""
    return printed("robustness")


def rows(found: Comparison) -> dict[str, Row]:
    """Name to figures by noise level, of whatever the paper has of a comparison's estimators."""
    data = published()
    table = data["figures"].get(found.reward, {}).get(found.name, {})
    builds = [build for build in data["names"] if build in set(found.frame["estimator_build"])]
    return {
        f"paper: {data['names'][build]} ({table['about']})": _row(table[build])
        for build in builds
        if build in table
    }


def ratios(found: Comparison) -> dict[str, Row]:
    """The same over the paper's clean figure."""
    clean, *others = rows(found).items() or [("", {})]
    return {name: {s: x / clean[1][s] for s, x in row.items()} for name, row in others}


def _row(numbers: list[float]) -> Row:
    return dict(zip(published()["sigmas"], numbers, strict=True))
