"""The paper's tables and figures, claim by claim: its numbers, ours, and whether they hold.

A name is a suite that measures what the table shows, in a world that fits a laptop: ratios can be
compared, absolute numbers cannot.  What was measured is a store's, or the committed claims of a
reference run (`claims.csv`, which a report writes), the nearer first.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.report.book import CLAIMS, chapters
from bench.report.marks import line
from bench.report.scores import UNTESTABLE, Score, listed, scores
from bench.report.views import VIEWS
from bench.store import Store


class Printed(NamedTuple):
    """What the paper prints, and the suite that measures it here, with its task."""

    about: str
    suite: str
    task: str


TABLES = {
    "fig2": Printed("values against noise", "value-shapes", "value"),
    "fig3": Printed("more particles or more proposals", "fig3", "align"),
    "fig6": Printed("where to stitch", "fig6", "interface"),
    "table1": Printed("DPS", "table1", "align"),
    "table2": Printed("FK steering", "table2", "align"),
    "table3": Printed("training", "table3", "train"),
    "table4": Printed("what StitchVM costs to make", "table4", "cost"),
    "table5": Printed("noise robustness", "table5", "robustness"),
    "table6": Printed("a smaller generator's value model", "results/table6/table6.yaml", "align"),
}


class Found(NamedTuple):
    """The lines of a table, and where they are from."""

    source: str
    lines: list[Score]


def has_records(folder: Path) -> bool:
    """Whether a folder is a store that holds something."""
    return next(folder.glob("cells/*/*/result.json"), None) is not None


def read(name: str, folders: Iterable[Path]) -> Found | None:
    """A table's claims from the first folder that knows of them; None where none does."""
    for folder in folders:
        if has_records(folder):
            return Found(str(folder), of_store(name, Store(folder)))
        if (folder / CLAIMS).is_file():
            return Found(str(folder / CLAIMS), of_file(name, folder / CLAIMS))
    return None


def of_store(name: str, store: Store) -> list[Score]:
    """What a store says to the claims of a table; all of them, also those that it cannot test."""
    task = TABLES[name].task
    frames = [c.frame for c in chapters(store.latest().values(), store) if c.task == task]
    frame = frames[0] if frames else pd.DataFrame()
    return [one for one in scores(VIEWS[task].judge(frame)) if one.table == name]


def of_file(name: str, path: Path) -> list[Score]:
    """The claims of a table as a report has written them.

    Raises:
        ValueError: if the file is no list of claims.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != list(Score._fields):
        raise ValueError(f"expected {path} with columns {', '.join(Score._fields)}, got "
                         f"{', '.join(table.columns)}")  # fmt: skip
    return [Score(*row) for row in table.itertuples(index=False) if row[0] == name]


def text(name: str, found: Found) -> Iterator[str]:
    """A table's claims for a terminal, a few lines each."""
    yield f"{name} ({TABLES[name].about}), from {found.source}"
    for one in found.lines:
        yield f"  {one.verdict:>18}  {line(one.claim)}"
        yield f"  {'the paper':>18}  {line(one.paper)}"
        if one.verdict != UNTESTABLE:
            yield f"  {'here':>18}  {line(one.here)}"


def table(found: Iterable[Found]) -> pd.DataFrame:
    """All lines as one table of text."""
    return listed(one for each in found for one in each.lines)
