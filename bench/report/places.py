"""Failures in place: a cell without numbers stands in its row of every table, with its word.

    DPS (OOM)      a row of a table, where the cell would stand by the time it was started
    status         a column of every csv: `ok`, or how the cell ended, with its reason
    left over      cells of tables that have no row at all, for then there is no such table

A name says nothing of a setting that the table's other rows tell apart: it is added.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.report.marks import line
from bench.report.numbers import MISSING

Failure = Mapping[str, Any]
CELLS = "cells"  # attribute of a table whose columns are cells: heading to id
NAMED = ("method", "estimator")  # columns that name a row
ABOUT = ("cell", "status", "word", "reason", "started", "estimator", "world", "reward", "suite")
REASON = 60  # characters of a failure's reason in a table; a page lists it whole


def word(failure: Failure) -> str:
    """How a cell ended, in a word."""
    return str(failure.get("word", failure["status"]))


def reason(failure: Failure, longest: int | None = REASON) -> str:
    """Why, on one line; empty where nothing is said."""
    return line(failure["reason"] or "", longest)


def by_cell(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lines as a table whose index holds their cells, which are no column of it."""
    table = pd.DataFrame(list(lines), dtype=object)
    return table.set_index("cell").rename_axis(None) if len(table) else table


def placed(table: pd.DataFrame, frame: pd.DataFrame, failures: Iterable[Failure]) -> pd.DataFrame:
    """A table of cells with a row for each that failed.

    Args:
        table: Text, cells' ids in the index; one without is returned as it is.
        frame: The rows that it was made of, with `cell` and `started`.
        failures: Cells that could stand in it.
    """
    failures = list(failures)
    column = next((name for name in NAMED if name in table), None)
    times = dict(zip(frame["cell"], frame["started"], strict=True)) if len(frame) else {}
    if column is None or not set(table.index) <= set(times) or not failures:
        return table
    at = [times[cell] for cell in table.index]
    rows: list[dict[Any, Any]] = table.to_dict("records")
    cells, known = list(table.index), _coordinates(table, frame)
    for failure in sorted(failures, key=lambda f: str(f.get("started", ""))):
        begun = str(failure.get("started", ""))
        k = next((k for k, time in enumerate(at) if begun and time > begun), len(rows))
        name = f"{_name(failure, frame, failures)} ({word(failure)})"
        about = {c: failure.get(c, MISSING) if c in known else MISSING for c in table.columns}
        rows.insert(k, about | {column: name})
        cells.insert(k, failure["cell"])
        at.insert(k, begun)
    return pd.DataFrame(rows, index=cells, columns=table.columns, dtype=object)


def _coordinates(table: pd.DataFrame, frame: pd.DataFrame) -> set[str]:
    """Columns that hold a coordinate, and not a figure of the same name: a reward's seconds."""
    of = frame.drop_duplicates("cell").set_index("cell")
    return {
        name
        for name in map(str, table.columns)
        if name in of and (table[name] == of[name].reindex(table.index)).all()
    }


def _name(failure: Failure, frame: pd.DataFrame, failures: list[Failure]) -> str:
    """Its estimator, and the coordinates that tell it from others of that name."""
    name = failure["estimator"]
    told = []
    for coordinate in sorted(set(failure) - set(ABOUT)):
        if coordinate not in frame:
            continue
        there = set(frame.loc[frame["estimator"] == name, coordinate])
        there |= {f.get(coordinate) for f in failures if f["estimator"] == name}
        if len(there) > 1 and failure[coordinate] != "":
            told.append(str(failure[coordinate]))
    return ", ".join([str(name), *told])


def whole(frame: pd.DataFrame, failures: Iterable[Failure]) -> pd.DataFrame:
    """A frame as a csv holds it: a column `status`, and a row for each cell that failed."""
    rows = frame.assign(status="ok")
    failed = [
        {name: value for name, value in failure.items() if name in rows} | {
            "reason": reason(failure, None)}
        for failure in failures
    ]  # fmt: skip
    return pd.DataFrame([*rows.to_dict("records"), *failed], dtype=object) if failed else rows


def left_over(shown: Iterable[Any], failures: Iterable[Failure]) -> pd.DataFrame:
    """A table of the cells that no table has a row of.

    Args:
        shown: What has tables, each with its `failures`.
        failures: Of all.
    """
    seen = {failure["cell"] for one in shown for failure in one.failures}
    return by_cell(
        {
            "cell": failure["cell"],
            "estimator": f"{failure['estimator']} ({word(failure)})",
            "world": failure.get("world", MISSING),
            "reward": failure.get("reward", MISSING),
            "reason": reason(failure) or MISSING,
        }
        for failure in failures
        if failure["cell"] not in seen
    )
