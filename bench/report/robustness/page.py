"""The page of `robustness`: self-contained, no scripts, no number that tables don't give."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from bench.report import numbers, plots
from bench.report.robustness import claims, tables
from bench.report.robustness.comparisons import Comparison, split

HERE = Path(__file__).parent


def write(
    frame: pd.DataFrame,
    drawn: Mapping[str, Figure],
    failures: Iterable[Mapping[str, Any]],
    problems: Iterable[str],
    out: Path,
) -> Path:
    """Write the page.

    Args:
        frame: Rows of results.
        drawn: Their plots, `plots.figures`.
        failures: Cells without a result: their coordinates, status and reason.
        problems: Records that could not be read.
        out: The file.
    """
    failures = list(failures)
    found = split(frame, failures)
    environment = Environment(
        loader=FileSystemLoader([HERE, HERE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("robustness.html").render(
        images={name: _source(figure) for name, figure in drawn.items()},
        tables=[{"title": one.title, "shown": tables.every(one)} for one in found],
        note=tables.NOTE,
        certain=[text for one in found if (text := certain(one))],
        verdicts=claims.judge(frame),
        failures=failures,
        problems=list(problems),
        measured=_measured(frame),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def certain(found: Comparison) -> str:
    """How long the ceiling's embedding is: 1 says that one clean latent explains the noisy one."""
    rows = found.frame[found.frame["estimator_build"] == "ceiling"]
    lengths = rows.sort_values("sigma_reference")["length"]
    if lengths.empty:
        return ""
    shown = ", ".join(numbers.fixed(x) for x in lengths)
    return f"{found.title}: mean length of the ceiling's embedding {shown}"


def _measured(frame: pd.DataFrame) -> dict[str, str]:
    """What a methods section says."""
    columns = {"suite": "suite", "items": "n", "seed": "seed", "machine": "machine",
               "threads": "threads", "commit": "commit"}  # fmt: skip
    return {
        name: ", ".join(sorted({str(value) for value in frame[column].dropna()}))
        for name, column in columns.items()
    } | {"cells": str(frame["cell"].nunique()),
         "time of all cells": numbers.seconds(
             frame.drop_duplicates("cell")["wall_seconds"].sum())}  # fmt: skip


def _source(figure: Figure) -> str:
    data = base64.b64encode(plots.rendered(figure, "svg")).decode()
    return f"data:image/svg+xml;base64,{data}"
