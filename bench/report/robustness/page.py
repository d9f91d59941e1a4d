"""The page of `robustness`: self-contained, no number that tables don't give."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.report import html, numbers, plots, scores
from bench.report.cells import ALONE, Behind
from bench.report.measured import provenance
from bench.report.robustness import claims, tables
from bench.report.robustness.comparisons import Comparison, split


def write(
    frame: pd.DataFrame,
    drawn: Mapping[str, Figure],
    failures: Iterable[Mapping[str, Any]],
    problems: Iterable[str],
    out: Path,
    behind: Behind = ALONE,
) -> Path:
    """Write the page.

    Args:
        frame: Rows of results.
        drawn: Their plots, `plots.figures`.
        failures: Cells without a result: their coordinates, status and reason.
        problems: Records that could not be read.
        out: The file.
        behind: What the page says beside its numbers.
    """
    failures = list(failures)
    verdicts = claims.judge(frame) if behind.verdicts is None else behind.verdicts
    found = split(frame, failures)
    page = html.rendered(
        "robustness.html",
        images={
            name: html.source("svg+xml", plots.rendered(figure, "svg"))
            for name, figure in drawn.items()
        },
        tables=[{"title": one.title, "shown": tables.every(one)} for one in found],
        note=tables.NOTE,
        certain=[text for one in found if (text := certain(one))],
        verdicts=verdicts,
        scores=scores.scores(verdicts),
        cells=behind.cells,
        failures=failures,
        problems=list(problems),
        measured=provenance(frame) | {"items": _items(frame)},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def certain(found: Comparison) -> str:
    """How long the ceiling's embedding is: 1 says that one clean latent explains the noisy one."""
    rows = found.frame[found.frame["estimator_build"] == "ceiling"]
    lengths = rows.sort_values("sigma_reference")["length"]
    if lengths.empty:
        return ""
    shown = ", ".join(numbers.fixed(x) for x in lengths)
    return f"{found.title}: mean length of the ceiling's embedding {shown}"


def _items(frame: pd.DataFrame) -> str:
    """How many of each were tested."""
    return ", ".join(f"{n}" for n in sorted(set(frame["n"])))
