"""The noise floor in words: what stands under every timing table."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import pandas as pd

from bench.noise_floor import COLUMNS
from bench.report import numbers
from bench.report.sheet import Table

UNKNOWN = "No noise floor: stitchbench calibrate."


def sentence(row: Mapping[Any, Any] | pd.Series) -> str:
    """`two equal methods differ by up to 2.1 [1.4, 3.9] %`."""
    return f"two equal methods differ by up to {numbers.scaled(row, COLUMNS[0], 100)} %"


def note(rows: pd.DataFrame) -> str:
    """What to know about the times of some rows: the largest floor of their machines.

    Args:
        rows: Of a frame, with the columns of `with_floor` if it came from a store.
    """
    known = rows[rows[COLUMNS[0]].notna()] if COLUMNS[0] in rows else rows.iloc[:0]
    if known.empty:
        return UNKNOWN
    here = "on this machine" if known[COLUMNS[0]].nunique() == 1 else "on these machines"
    rest = "" if len(known) == len(rows) else "; of some rows it is not known"
    largest = known.sort_values(COLUMNS[0]).iloc[-1]
    return f"Noise floor {here}: {sentence(largest)}{rest}."


def under(tables: Iterable[Table], timed: Container[str], rows: pd.DataFrame) -> list[Table]:
    """Tables, with the floor under those of some names."""
    beneath = note(rows)
    return [t._replace(floor=beneath) if t.name in timed else t for t in tables]
