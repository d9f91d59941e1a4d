"""All of a store: a chapter for each task, and a first page where there are several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.frame import failures
from bench.namesakes import shown, told_apart
from bench.noise_floor import with_floor
from bench.report import html, scores
from bench.report.cells import Behind, panels
from bench.report.marks import STALE, marked
from bench.report.places import reason
from bench.report.scores import UNTESTABLE
from bench.report.views import VIEWS, Written, by_task
from bench.statuses import ending
from bench.store import Store

Record = dict[str, Any]
PAGE, CLAIMS, EVIDENCE = "index.html", "claims.csv", "evidence.csv"


class Chapter(NamedTuple):
    """One task's records with the names that reports show, their frame, and what failed."""

    task: str
    records: list[Record]
    frame: pd.DataFrame
    failures: list[dict[str, Any]]


def chapters(records: Iterable[Record], store: Store | None = None) -> list[Chapter]:
    """Records by task, in the order of first appearance, no two of one name in one table.

    Args:
        records: Of some cells.
        store: Where they are from, which may know the noise floor of their times.
    """
    found = by_task(marked(record) for record in told_apart(records))
    return [Chapter(task, mine, _tidy(task, mine, store), failures(mine))
            for task, mine in found.items()]  # fmt: skip


def _tidy(task: str, records: list[Record], store: Store | None) -> pd.DataFrame:
    frame = VIEWS[task].tidy(shown(records))
    return frame if store is None else with_floor(frame, store)


def said(chapter: Chapter, width: int) -> str:
    """A chapter for a terminal: its tables, then every cell without numbers in a line."""
    lines = [] if chapter.frame.empty else [
        VIEWS[chapter.task].text(chapter.frame, chapter.failures, width)
    ]  # fmt: skip
    lines += [
        f"{ending(f['status'])}: {f['estimator']} ({f['reward']}): {reason(f, None) or f['word']}"
        for f in chapter.failures
    ]
    if any(record["stale"] and record["status"] == "ok" for record in chapter.records):
        lines.append(STALE)
    return "\n".join(lines)


def write(store: Store, out: Path) -> Written:
    """Write every chapter, and the first page.

    Returns:
        The files beside the page to open, and that page.

    Raises:
        ValueError: if nothing was measured.
    """
    found = chapters(store.latest().values(), store)
    if all(chapter.frame.empty for chapter in found):
        raise ValueError(f"expected at least one measured cell in {store.path}, got none")
    files: list[Path] = []
    behind = {c.task: Behind(panels(store, c.records), _judged(c)) for c in found}
    for chapter in found:
        task, _, frame, failed = chapter
        if frame.empty:
            continue
        folder = out if len(found) == 1 else out / task
        beside, page = VIEWS[task].report(store, frame, failed, folder, behind[task])
        beside += _claims(behind[task], folder / "tables")
        if len(found) == 1:
            return beside, page
        files += [*beside, page]
    return files, _first(found, behind, store.problems, out / PAGE)


def _judged(chapter: Chapter) -> list[Any]:
    """The claims of a chapter's task; of nothing measured there are none."""
    return [] if chapter.frame.empty else VIEWS[chapter.task].judge(chapter.frame)


def _claims(behind: Behind, out: Path) -> list[Path]:
    """Write what a chapter says to the paper's claims, for `stitchbench repro`."""
    verdicts = behind.verdicts or []
    tables = {
        CLAIMS: scores.listed(scores.scores(verdicts)),
        EVIDENCE: scores.listed_pieces(scores.pieces(verdicts)),
    }
    for name, table in tables.items():
        table.to_csv(out / name, index=False, lineterminator="\n")
    return [out / name for name in tables]


def _first(
    found: list[Chapter], behind: dict[str, Behind], problems: list[str], out: Path
) -> Path:
    """The page that leads to the others."""
    parts = [_part(chapter, behind[chapter.task]) for chapter in found]
    page = html.rendered(
        "book.html",
        parts=parts,
        scores=[
            line
            for part in parts
            for line in part["scores"]
            if line.table or line.verdict != UNTESTABLE
        ],
        failures=[f | {"task": c.task} for c in found for f in c.failures],
        linked={c.task: f"{c.task}/{PAGE}" for c in found if not c.frame.empty},
        cells=[panel for c in found if c.frame.empty for panel in behind[c.task].cells],
        problems=problems,
    )
    out.write_text(page, encoding="utf-8")
    return out


def _part(chapter: Chapter, behind: Behind) -> dict[str, Any]:
    """What the first page says of a chapter."""
    view, empty = VIEWS[chapter.task], chapter.frame.empty
    return {
        "task": chapter.task,
        "title": view.title,
        "measured": len(chapter.records) - len(chapter.failures),
        "failed": len(chapter.failures),
        "answers": [] if empty else view.answer(chapter.frame),
        "scores": scores.scores(behind.verdicts or ()),
    }
