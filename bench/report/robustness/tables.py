"""Tables of `robustness`: estimators down, noise levels across, each figure with its interval."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from bench.report import numbers
from bench.report.numbers import MISSING
from bench.report.places import by_cell, left_over, reason, whole, word
from bench.report.robustness import paper
from bench.report.robustness.comparisons import BEST, NEAR, Comparison, against_best, split
from bench.report.typeset import latex, markdown

MARKS = {BEST: " *", NEAR: " ~"}
NOTE = (
    "Brackets are 95 % intervals over items. * best estimator at a noise level, ~ not clearly "
    "worse (paired by item, Holm-adjusted within the table)."
)
RATIOS = {"of_ceiling": "share of the Bayes ceiling kept", "of_clean": "share of clean kept"}
LEFT = "Cells of tables without any numbers"
NAME, COLUMN = 30, 21  # characters on a terminal


def value_table(found: Comparison) -> pd.DataFrame:
    """The figure by estimator and noise level, as text; the paper's own below."""
    marks, scale = against_best(found), 100 if found.figure.percent else 1

    def shown(row: pd.Series) -> str:
        mark = marks.get((row["sigma_reference"], row["estimator"]), "")
        return numbers.scaled(row, "value", scale) + MARKS.get(mark, "")

    return _table(found, shown, paper.rows(found))


def ratio_table(found: Comparison, column: str) -> pd.DataFrame:
    """A ratio by estimator and noise level, in per cent, as text."""
    beside = paper.ratios(found) if column == "of_clean" else {}
    scaled = {name: {s: 100 * x for s, x in row.items()} for name, row in beside.items()}
    return _table(found, lambda row: numbers.scaled(row, column, 100), scaled)


def _table(
    found: Comparison, shown: Callable[[pd.Series], str], beside: Mapping[str, paper.Row]
) -> pd.DataFrame:
    cells = {(r["estimator"], r["sigma_reference"]): shown(r) for _, r in found.frame.iterrows()}
    heads = {s: heading(s, level) for s, level in found.sigmas.items()}
    unit = " (%)" if found.figure.percent else ""
    of = dict(zip(found.frame["estimator"], found.frame["cell"], strict=True))
    out = [
        {"cell": of[name], "estimator": name}
        | {head: cells.get((name, s), MISSING) for s, head in heads.items()}
        for name in found.names
    ]
    for failure in found.failures:
        why = ": ".join(filter(None, [word(failure), reason(failure)]))
        out.append({"cell": failure["cell"], "estimator": f"{failure['estimator']} ({why})"})
    for name, row in beside.items():
        out.append({"cell": "", "estimator": name + unit} | {
            head: numbers.plain(row.get(s)) for s, head in heads.items()})  # fmt: skip
    return by_cell(out).reindex(columns=["estimator", *heads.values()]).fillna(MISSING)


def heading(sigma: float, level: float) -> str:
    """`sigma 0.5`, with the level on this latent where it is another."""
    matched = "" if level == sigma else f" ({numbers.plain(level, 2)})"
    return f"sigma {sigma:g}{matched}"


def text(frame: pd.DataFrame, failures: Iterable[Mapping[str, Any]] = ()) -> str:
    """For a terminal: every figure by estimator and noise level."""
    parts, failures = [], list(failures)
    shown = split(frame, failures)
    for found in shown:
        table = value_table(found)
        lines = [found.title, *(_line(row) for row in [list(table.columns), *table.to_numpy()])]
        parts.append("\n".join(lines))
    if len(left := left_over(shown, failures)):
        parts.append(f"{LEFT}\n{left.to_string(index=False)}")
    return "\n\n".join([*parts, NOTE]) + "\n"


def _line(cells: Iterable[str]) -> str:
    name, *others = cells
    return f"{shorten(name, NAME, placeholder=' ...'):{NAME}}" + "".join(
        f"{cell:>{COLUMN}}" for cell in others
    )


def write(
    frame: pd.DataFrame, folder: Path, failures: Iterable[Mapping[str, Any]] = ()
) -> list[Path]:
    """Write md and tex tables, and robustness.csv with every digit; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    failures = list(failures)
    found, plain = split(frame, failures), frame.drop(columns="items")
    left = left_over(found, failures)
    more = {LEFT: left} if len(left) else {}
    shown = {caption: t for f in found for caption, t in every(f).items()} | more
    files = {
        "robustness.csv": whole(plain, failures).to_csv(index=False, lineterminator="\n"),
        "robustness.md": "\n".join([NOTE, "", *map(_document, shown, shown.values())]),
        "robustness.tex": "\n".join(latex(t, caption) for caption, t in shown.items()),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def every(found: Comparison) -> dict[str, pd.DataFrame]:
    """Caption to table: the figure, then its ratios to both references."""
    ratios = {f"{found.title}: {about} (%)": ratio_table(found, k) for k, about in RATIOS.items()}
    unit = " (%)" if found.figure.percent else ""
    return {f"{found.title}{unit}": value_table(found)} | ratios


def _document(caption: str, table: pd.DataFrame) -> str:
    return f"## {caption}\n\n{markdown(table)}"
