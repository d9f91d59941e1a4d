"""The colour and the marker of each method, the same in every figure."""

import pandas as pd

from bench.report.estimators import HUES, MARKERS, SPARE, Style

COLOURS = tuple(dict.fromkeys([HUES["stitched"], "#d55e00", "#0072b2", "#e69f00", "#cc79a7",
                               "#56b4e9", "#882255", "#b8a100", *SPARE]))  # fmt: skip


def looks(rows: pd.DataFrame) -> dict[str, Style]:
    """One look for each method."""
    names = list(dict.fromkeys(rows["method"]))
    return {
        str(name): Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], "-")
        for k, name in enumerate(names)
    }
