"""How the results of each task are shown: one entry a task, one interface for the commands."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench import frame as values
from bench import robustness
from bench.report import answer, claims, cost, interface, page, pictures, plots, sheet, tables
from bench.report.align import sheet as align
from bench.report.cells import Behind
from bench.report.robustness import claims as robust_claims
from bench.report.robustness import plots as robust_plots
from bench.report.robustness import tables as robust_tables
from bench.report.robustness.write import write
from bench.report.sheet import Sheet
from bench.report.train import sheet as train
from bench.store import Store

Failures = Iterable[Mapping[str, Any]]
Written = tuple[list[Path], Path]


class View(NamedTuple):
    """What the commands ask of a task's results.

    Attributes:
        tidy: Records to a frame.
        text: A frame, its failures and a width to the tables of a terminal.
        tables: Writes the tables of a frame and its failures into a folder.
        draw: Two columns of a frame against each other, by a third: plots by their names.
        report: Writes page, tables and plots into a folder; returns the files beside the page.
        judge: A frame to the claims that are made of its task, each with its evidence.
        answer: A frame to the sentences it comes to, each with its table's title.
        title: Of the page.
    """

    tidy: Callable[[Iterable[dict[str, Any]]], pd.DataFrame]
    text: Callable[[pd.DataFrame, Failures, int], str]
    tables: Callable[[pd.DataFrame, Path, Failures], list[Path]]
    draw: Callable[[pd.DataFrame, str, str, str], dict[str, Figure]]
    report: Callable[[Store, pd.DataFrame, Failures, Path, Behind], Written]
    judge: Callable[[pd.DataFrame], list[Any]]
    answer: Callable[[pd.DataFrame], list[str]]
    title: str


def _of_values(
    store: Store, frame: pd.DataFrame, failures: Failures, out: Path, behind: Behind
) -> Written:
    """The page of value estimators."""
    drawn, seen = plots.figures(frame), pictures.collect(store, frame)
    failures = list(failures)
    made = tables.shown(frame, failures)
    written = [
        *tables.write(frame, out / "tables", failures, made),
        *plots.write(drawn, out / "plots"),
        *pictures.write(seen, out / "plots"),
    ]
    path = page.write(
        frame, drawn, failures, store.problems, out / "index.html", seen, behind=behind, made=made
    )
    return written, path


def _drawn(frame: pd.DataFrame, x: str, y: str, by: str, **panels: Any) -> dict[str, Figure]:
    return {f"{y}-by-{x}": plots.draw(frame, x, y, by, **panels)}


def _robust_text(frame: pd.DataFrame, failures: Failures, width: int) -> str:
    del width  # a noise level is a column: narrower, nothing could be read
    return robust_tables.text(frame, failures)


def _of_sheet(shown: Sheet) -> View:
    def report(
        store: Store, frame: pd.DataFrame, failures: Failures, out: Path, behind: Behind
    ) -> Written:
        return sheet.write(shown, frame, failures, store.problems, out, behind)

    def judge(frame: pd.DataFrame) -> list[claims.Verdict]:
        return claims.judged(shown.claims, shown.split(frame))

    return View(
        shown.tidy,
        partial(sheet.text, shown),
        partial(sheet.write_tables, shown),
        partial(_drawn, panels=shown.split),
        report,
        judge,
        partial(sheet.answers, shown),
        shown.title,
    )


VIEWS: dict[str, View] = {
    "value": View(
        values.tidy,
        tables.text,
        tables.write,
        _drawn,
        _of_values,
        claims.judge,
        answer.answers,
        "Which value estimator to trust, at what cost",
    ),
    "robustness": View(
        robustness.tidy,
        _robust_text,
        robust_tables.write,
        robust_plots.chosen,
        write,
        robust_claims.judge,
        lambda _: [],
        "What embeddings of noisy latents still know",
    ),
    "interface": _of_sheet(interface.SHEET),
    "cost": _of_sheet(cost.SHEET),
    "align": _of_sheet(align.SHEET)._replace(report=align.report),
    "train": _of_sheet(train.SHEET)._replace(report=train.report),
}


def by_task(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records of a store by their task, in the order of first appearance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["spec"]["task"], []).append(record)
    return found
