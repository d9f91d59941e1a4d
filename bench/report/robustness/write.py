"""All of a store's `robustness` cells as files: tables, plots and the page."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import plots as saved
from bench.report.cells import ALONE, Behind
from bench.report.robustness import page, plots, tables
from bench.store import Store


def write(
    store: Store,
    frame: pd.DataFrame,
    failures: Iterable[Mapping[str, Any]],
    out: Path,
    behind: Behind = ALONE,
) -> tuple[list[Path], Path]:
    """Write them into a folder.

    Args:
        store: Where the rows come from.
        frame: The rows.
        failures: Cells without a result.
        out: The folder.
        behind: What the page says beside its numbers.

    Returns:
        The files beside the page, and the page.
    """
    drawn, failed = plots.figures(frame), list(failures)
    beside = tables.write(frame, out / "tables", failed)
    for name, figure in drawn.items():
        beside += saved.save(figure, out / "plots", name)
    path = page.write(frame, drawn, failed, store.problems, out / "index.html", behind)
    return beside, path
