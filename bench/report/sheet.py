"""A report in one form for every task beside `value`: an answer, claims, tables, figures, a page.

A task says what of it to show; here it becomes text for a terminal, files, and one HTML page.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench.report import drawing, html, plots, scores
from bench.report.cells import ALONE, Behind
from bench.report.claims import Claim, judged
from bench.report.facets import REWARDS, RUN, Facet
from bench.report.lettering import capital, lettered, letters
from bench.report.measured import provenance
from bench.report.places import left_over, placed, whole
from bench.report.terminal import wrapped
from bench.report.typeset import latex, markdown

Failures = Iterable[Mapping[str, Any]]
MANY, LISTED = ("_by_picture", "_by_prompt"), ("kinds", "log", "prompts", "pictures")
ALIKE = (*RUN, "budget")  # of runs that may stand in one table
TITLE = 160  # characters of a figure's title
WIDE = 6.0  # inches: from there on a figure takes the width of the page


class Table(NamedTuple):
    """A table as text: its file's name, a title, and what to know when reading it.

    The index of its frame holds the cell of every row, where its rows are of cells; `floor` is the
    noise floor of its times, where it has any.
    """

    name: str
    title: str
    note: str
    frame: pd.DataFrame
    floor: str = ""


class Drawn(NamedTuple):
    """A figure: its file's name, its caption, and itself."""

    name: str
    caption: str
    figure: Figure


class Sheet(NamedTuple):
    """What a task's results look like.

    Attributes:
        title: Of the page.
        about: What was measured, a paragraph.
        apart: Columns whose values are not compared with each other.
        tidy: Records to a frame.
        answer: Sentences that a facet comes to.
        claims: What is judged.
        tables: Of a facet.
        figures: Of a facet, made within the project's style.
        across: Of all facets: what compares them.
    """

    title: str
    about: str
    apart: tuple[str, ...]
    tidy: Callable[[Iterable[dict[str, Any]]], pd.DataFrame]
    answer: Callable[[Facet], list[str]]
    claims: tuple[Claim, ...]
    tables: Callable[[Facet], list[Table]]
    figures: Callable[[Facet], list[Drawn]]
    across: Callable[[list[Facet]], list[Table]] = lambda _: []

    def split(self, frame: pd.DataFrame, failures: Failures = ()) -> list[Facet]:
        """What may stand in one table, in the order of the frame; runs do not mix."""
        if frame.empty:
            return []
        keys = [
            *self.apart,
            *(name for name in ALIKE if name in frame and frame[name].nunique() > 1),
        ]
        found, failures = [], list(failures)
        for values, rows in frame.groupby(keys, sort=False, dropna=False):
            at = dict(zip(keys, values, strict=True))
            title = _title(at)
            slug = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")
            mine = [f for f in failures if all(f[name] == at[name] for name in self.apart)]
            world = str(at["world"])
            found.append(Facet(world, title, title, "", slug, rows.reset_index(drop=True), mine))
        return found


def _title(at: Mapping[Any, Any]) -> str:
    """`Shapes world, CLIP reward, stitched`, and what tells runs apart."""
    words = {
        "world": f"{capital(at['world'])} world",
        "reward": f"{REWARDS.get(str(at.get('reward')), at.get('reward'))} reward",
        "estimator": f"{at.get('estimator')}",
        "quick": "shortened run" if at.get("quick") else "whole run",
    }
    return ", ".join(words.get(name, f"{name} {value}") for name, value in at.items())


LEFT = Table("failed", "Cells of tables without any numbers", "", pd.DataFrame())


def tables(sheet: Sheet, facet: Facet) -> list[Table]:
    """The tables of a facet, with its failed cells in their places."""
    return [
        table._replace(frame=placed(table.frame, facet.frame, facet.failures))
        for table in sheet.tables(facet)
    ]


def _beyond(sheet: Sheet, facets: list[Facet], failures: Failures) -> list[Table]:
    """Tables of no single facet: what compares them, and what has no place in any other."""
    left = left_over(facets, failures)
    compared = sheet.across(facets) if facets else []
    return compared + ([LEFT._replace(frame=left)] if len(left) else [])


def text(sheet: Sheet, frame: pd.DataFrame, failures: Failures, width: int) -> str:
    """For a terminal of some width: the answer and the tables."""
    parts, failures = [], list(failures)
    facets = sheet.split(frame, failures)
    for facet in facets:
        parts += [facet.title, *sheet.answer(facet)]
        parts += [_block(table, width) for table in tables(sheet, facet)]
    parts += [_block(table, width) for table in _beyond(sheet, facets, failures)]
    return "\n\n".join(parts) + "\n" if parts else "no results\n"


def answers(sheet: Sheet, frame: pd.DataFrame) -> list[str]:
    """What a frame comes to, each sentence with its table's title."""
    return [f"{f.title}: {said}" for f in sheet.split(frame) for said in sheet.answer(f)]


def _block(table: Table, width: int) -> str:
    return f"{table.title}\n{wrapped(table.frame, width)}\n{table.floor}".rstrip("\n")


def write_tables(
    sheet: Sheet,
    frame: pd.DataFrame,
    folder: Path,
    failures: Failures = (),
    made: Mapping[str, list[Table]] | None = None,
) -> list[Path]:
    """Write each table as md and tex, and rows.csv with every digit; returns the files.

    Args:
        sheet: How.
        frame: Rows of results.
        folder: Where to.
        failures: Cells without a result.
        made: The tables of each facet by its slug, where they are known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = frame[[name for name in frame.columns if not _many(str(name))]]
    failures = list(failures)
    files = {"rows.csv": whole(plain, failures).to_csv(index=False, lineterminator="\n")}
    facets = sheet.split(frame, failures)
    for facet in facets:
        for table in tables(sheet, facet) if made is None else made[facet.slug]:
            named = table._replace(name=f"{facet.slug}-{table.name}")
            files |= _files(named, f"{facet.title}: {table.title}")
    for table in _beyond(sheet, facets, failures):
        files |= _files(table, table.title)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def _files(table: Table, title: str) -> dict[str, str]:
    """A table as files: name to content."""
    floor = table.floor and f"\n{table.floor}\n"
    return {
        f"{table.name}.md": f"## {title}\n\n{table.note}\n\n{markdown(table.frame)}{floor}",
        f"{table.name}.tex": latex(table.frame, title, table.floor),
    }


def _many(name: str) -> bool:
    """Whether a column holds many numbers a row."""
    return name.endswith(MANY) or name in LISTED


def figures(sheet: Sheet, facet: Facet) -> list[Drawn]:
    """The figures of a facet, laid out."""
    facet = facet._replace(frame=lettered(facet.frame), title=str(letters(facet.title, TITLE)))
    with drawing.styled():
        return [
            drawn._replace(figure=drawing.settled(drawn.figure)) for drawn in sheet.figures(facet)
        ]


def write(
    sheet: Sheet,
    frame: pd.DataFrame,
    failures: Failures,
    problems: Iterable[str],
    out: Path,
    behind: Behind = ALONE,
) -> tuple[list[Path], Path]:
    """Write tables, plots and the page into a folder.

    Args:
        sheet: How.
        frame: Rows of results.
        failures: Cells without a result.
        problems: Records that could not be read.
        out: The folder.
        behind: What the page says beside its numbers.

    Returns:
        The files beside the page, and the page.
    """
    failures, facets = list(failures), sheet.split(frame, failures)
    drawn = {facet.slug: figures(sheet, facet) for facet in facets}
    made = {facet.slug: tables(sheet, facet) for facet in facets}
    files = write_tables(sheet, frame, out / "tables", failures, made)
    for facet in facets:
        for one in drawn[facet.slug]:
            files += plots.save(one.figure, out / "plots", f"{facet.slug}-{one.name}")
    verdicts = judged(sheet.claims, facets) if behind.verdicts is None else behind.verdicts
    page = html.rendered(
        "sheet.html",
        sheet=sheet,
        facets=[_shown(sheet, facet, made[facet.slug], drawn[facet.slug]) for facet in facets],
        beyond=_beyond(sheet, facets, failures),
        verdicts=verdicts,
        scores=scores.scores(verdicts),
        cells=behind.cells,
        measured=provenance(frame),
        failures=failures,
        problems=list(problems),
        suites=sorted(
            {f"{row.suite}{' --quick' if row.quick else ''}" for row in frame.itertuples()}
        ),
    )
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return files, path


def _shown(sheet: Sheet, facet: Facet, made: list[Table], drawn: list[Drawn]) -> dict[str, Any]:
    """A facet as the page takes it."""
    return {
        "title": facet.title,
        "answer": sheet.answer(facet),
        "tables": made,
        "figures": [
            {
                "source": html.source("svg+xml", plots.rendered(one.figure, "svg")),
                "caption": one.caption,
                "alt": f"{facet.title}: {one.caption} The numbers are in the tables.",
                "wide": one.figure.get_figwidth() > WIDE,
            }
            for one in drawn
        ],
    }
