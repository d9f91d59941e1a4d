"""All of a store's `robustness` cells as files: tables, plots and the page."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import robustness
from bench.frame import failures
from bench.report import plots as saved
from bench.report.robustness import page, plots, tables


def write(records: Iterable[Mapping[str, Any]], problems: Iterable[str], out: Path) -> list[Path]:
    """Write them; the page comes first.  Nothing where the records have no such cell.

    Args:
        records: Of a store.
        problems: Records that could not be read.
        out: The folder of the report.
    """
    given = [dict(record) for record in records]
    frame, failed = robustness.tidy(given), failures(given, "robustness")
    if frame.empty:
        return []
    drawn = plots.figures(frame)
    return [
        page.write(frame, drawn, failed, problems, out / "robustness.html"),
        *tables.write(frame, out / "tables", failed),
        *(p for name, figure in drawn.items()
          for p in saved.save(figure, out / "plots", f"robustness-{name}")),
    ]  # fmt: skip
