"""Target reward by aggregates that a few prompts cannot move, beside the mean.

The interquartile mean, and the probability of improvement: the share of prompts on which a method
exceeds another, ties half (Agarwal et al., 2021, arXiv:2108.13264).  Methods share prompts and
noise, so both numbers of a prompt are compared with each other and with no other prompt's.
"""

import numpy as np
import pandas as pd

from bench.frame import spread
from bench.report import numbers
from bench.report.align.frame import judged, unsteered_of
from bench.stats import improvement_interval

METRIC = "target"


def aggregates(rows: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """One line per method.

    Args:
        rows: Of a facet.
        reference: The method that the others are held against.
    """
    out, found = [], judged(rows)
    ours = found[found["method"] == reference]
    for _, row in found.iterrows():
        base = None if row["phase"] == "unsteered" else unsteered_of(rows, row)
        line = {
            "method": str(row["method"]),
            "mean": numbers.of(row, METRIC),
            "interquartile mean": numbers.of(row, f"{METRIC}_iqm"),
            "beats unsteered": _beats(row, base),
        }
        if len(ours):
            other = None if row["method"] == reference else ours.iloc[0]
            line[f"beats {reference}"] = _beats(row, other)
        out.append(line)
    return pd.DataFrame(out)


def _beats(row: pd.Series, other: pd.Series | None) -> str:
    """On how many of the prompts, in per cent."""
    name = f"{METRIC}_by_prompt"
    if other is None or not all(isinstance(x.get(name), np.ndarray) for x in (row, other)):
        return numbers.MISSING
    found = spread(METRIC, improvement_interval(row[name], other[name]))
    return numbers.percent(found, METRIC)
