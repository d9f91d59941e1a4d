"""The paper's tables and figures, claim by claim: its numbers, ours, and whether they hold.

A name is a suite that measures what the table shows, in a world that fits a laptop: ratios can be
compared, absolute numbers cannot.  What was measured is a store's, or the committed claims of a
reference run (`claims.csv`, which a report writes), the nearer first.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from bench.report.book import CLAIMS, EVIDENCE, chapters
from bench.report.marks import line
from bench.report.scores import (
    UNTESTABLE,
    Piece,
    Score,
    listed,
    listed_pieces,
    pieces,
    scores,
)
from bench.report.views import VIEWS
from bench.store import Store

T = TypeVar("T", Score, Piece)


class Printed(NamedTuple):
    """What the paper prints, and the suite that measures it here, with its task."""

    about: str
    suite: str
    task: str
    also: tuple[str, ...] = ()  # folders of further reference runs


TABLES = {
    "fig2": Printed("values against noise", "value-shapes", "value"),
    "fig3": Printed("more particles or more proposals", "fig3", "align"),
    "fig6": Printed("where to stitch", "fig6", "interface"),
    "table1": Printed("DPS", "table1", "align", ("h200/cost-dps",)),
    "table2": Printed("FK steering", "table2", "align"),
    "table3": Printed("training", "table3", "train"),
    "table4": Printed("what StitchVM costs to make", "table4", "cost"),
    "table5": Printed("noise robustness", "table5", "robustness"),
    "table6": Printed("a smaller generator's value model", "results/table6/table6.yaml", "align"),
}


class Found(NamedTuple):
    """The lines of a table, where they are from, and all that they stand on, if it is known."""

    source: str
    lines: list[Score]
    pieces: list[Piece] = []


def has_records(folder: Path) -> bool:
    """Whether a folder is a store that holds something."""
    return next(folder.glob("cells/*/*/result.json"), None) is not None


def read(name: str, folders: Iterable[Path]) -> Found | None:
    """A table's claims from the first folder that knows of them; None where none does."""
    for folder in folders:
        if has_records(folder):
            return of_store(name, Store(folder))
        if (folder / CLAIMS).is_file():
            return of_folder(name, folder)
    return None


def of_store(name: str, store: Store) -> Found:
    """What a store says to the claims of a table; all of them, also those that it cannot test."""
    task = TABLES[name].task
    frames = [c.frame for c in chapters(store.latest().values(), store) if c.task == task]
    judged = VIEWS[task].judge(frames[0] if frames else pd.DataFrame())
    return Found(
        str(store.path),
        [one for one in scores(judged) if one.table == name],
        [one for one in pieces(judged) if one.table == name],
    )


def of_folder(name: str, folder: Path) -> Found:
    """The claims of a table as a report has written them, with what they stand on, if kept.

    Raises:
        ValueError: if a file is no list of claims, or of evidence.
    """
    known = _read(name, folder / EVIDENCE, Piece) if (folder / EVIDENCE).is_file() else []
    return Found(str(folder / CLAIMS), _read(name, folder / CLAIMS, Score), known)


def _read(name: str, path: Path, kind: type[T]) -> list[T]:
    """The rows of a table of the paper in a file."""
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(rows.columns) != list(kind._fields):
        raise ValueError(f"expected {path} with columns {', '.join(kind._fields)}, got "
                         f"{', '.join(rows.columns)}")  # fmt: skip
    return [kind(*row) for row in rows.itertuples(index=False) if row[0] == name]


def text(name: str, found: Found, *, every: bool = False) -> Iterator[str]:
    """A table's claims for a terminal, a few lines each.

    Args:
        name: Of the table.
        found: What is known.
        every: Whether all that a claim stands on is shown, not what decides it alone.
    """
    yield f"{name} ({TABLES[name].about}), from {found.source}"
    for one in found.lines:
        yield f"  {one.verdict:>18}  {line(one.claim)}"
        yield f"  {'the paper':>18}  {line(one.paper)}"
        if one.verdict == UNTESTABLE:
            continue
        mine = [piece for piece in found.pieces if every and piece.claim == one.claim]
        if not mine:
            yield f"  {'here':>18}  {line(one.here)}"
        for piece in mine:
            yield f"  {piece.says:>18}  - {line(piece.where)}: {line(piece.figures)}"
    if every and found.lines and not found.pieces:
        yield "  what else there is was not kept with these claims: a run of your own has it"


def evidence(found: Iterable[Found]) -> pd.DataFrame:
    """All that lines stand on as one table of text."""
    return listed_pieces(one for each in found for one in each.pieces)


def table(found: Iterable[Found]) -> pd.DataFrame:
    """All lines as one table of text."""
    return listed(one for each in found for one in each.lines)
