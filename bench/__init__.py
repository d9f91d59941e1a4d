"""The harness that judges value estimators: suites, cells, records, tables and plots."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def load(store: str | Path) -> "pd.DataFrame":
    """The tidy frame of a store: one row per cell and noise level, see `bench.frame`.

    Raises:
        ValueError: if there is no store.
    """
    from bench.frame import load as load_frame  # noqa: PLC0415 - imports pandas

    return load_frame(store)


__all__ = ["load"]
