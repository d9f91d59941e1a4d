"""A table as a page shows it: which column names a row, which cell a row is of, what it is marked.

The index of a table holds, for each row, the id of the cell that its numbers are of; a table whose
rows are of no cell has a plain index.  Where columns are cells, an attribute of the table says so.
"""

import re
from typing import Any, NamedTuple

import pandas as pd

from bench.frame import SHOWN
from bench.report.marks import DAGGER, STALE
from bench.report.places import CELLS

NAMES = ("estimator", "method", "trust")  # columns that name a row, where there is one
STYLES = {"best": "best", "as good": "good"}
ID = 16  # hex digits of a cell
FAILED = re.compile(rf"\(({'|'.join(re.escape(word) for word in SHOWN.values())})(: .*)?\)$")


class Line(NamedTuple):
    """A row: its cell or nothing, how it is marked, and its texts."""

    cell: str
    style: str
    texts: list[str]


class Grid(NamedTuple):
    """A table: its headings, its rows, the column that names them, a note on marks, cells.

    The last are those of its columns, empty where a column is of none.
    """

    heads: list[str]
    lines: list[Line]
    named: int
    note: str
    cells: list[str]


def grid(table: pd.DataFrame, level: str = "") -> Grid:
    """A table for a page.

    Args:
        table: Text, cells' ids in the index.
        level: A column whose changes are marked by a rule.
    """
    heads = [str(name) for name in table.columns]
    named = next((heads.index(name) for name in NAMES if name in heads), 0)
    verdicts = table["against best"].tolist() if "against best" in heads else [""] * len(table)
    levels = table[level].tolist() if level in heads else []
    lines = []
    for k, (cell, texts) in enumerate(zip(table.index, table.to_numpy().tolist(), strict=True)):
        new = bool(levels) and (k == 0 or levels[k] != levels[k - 1])
        failed = "failed" if texts and FAILED.search(str(texts[named])) else ""
        marks = ["level" if new else "", STYLES.get(verdicts[k], ""), failed]
        style = " ".join(filter(None, marks))
        lines.append(Line(cell if _is_cell(cell) else "", style, [str(text) for text in texts]))
    stale = any(DAGGER in line.texts[named] for line in lines if line.texts)
    of = table.attrs.get(CELLS, {})
    return Grid(heads, lines, named, STALE if stale else "", [of.get(head, "") for head in heads])


def _is_cell(index: Any) -> bool:
    return isinstance(index, str) and len(index) == ID
