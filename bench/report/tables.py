"""Tables of a frame: rounded for readers (md, tex, text), with every digit for machines (csv).

One table a facet, one row per noise level and estimator; the index holds the cells.  A missing
number is a dash, a failed cell stands in its place with its word.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.metrics import OWN
from bench.report import certainty, floor, numbers, trust
from bench.report.estimators import order
from bench.report.facets import Facet, split
from bench.report.numbers import MISSING
from bench.report.places import by_cell, left_over, reason, whole, word
from bench.report.terminal import wrapped
from bench.report.typeset import latex, markdown
from bench.report.verdicts import verdicts

Failures = Iterable[Mapping[str, Any]]
Row = Mapping[Any, Any]

SHOWN: dict[str, Callable[[Row], str]] = {  # heading to text of a row
    "target": lambda row: str(row["target"]),
    "bias": lambda row: numbers.of(row, "bias"),
    "variance": lambda row: numbers.plain(row["variance"]),
    "RMSE": lambda row: numbers.of(row, "rmse"),
    "offset-free RMSE": lambda row: numbers.plain(row["rmse_centred"]),
    "skill": lambda row: numbers.of(row, "skill", 3),
    "prompts won": lambda row: numbers.percent(row, "won"),
    "Spearman": lambda row: numbers.fixed(row["spearman"]),
    "pairwise": lambda row: numbers.fixed(row["pairwise"]),
    "regret": lambda row: numbers.plain(row["regret"], 2),
    "gradient cosine": lambda row: numbers.fixed(certainty.gradient(row, "gradient_cosine")),
    "gradient error": lambda row: numbers.plain(certainty.gradient(row, "gradient_error"), 2),
    "time per value": lambda row: numbers.seconds(row["seconds"]),
    "peak memory": lambda row: numbers.size(row["peak_live_bytes"]),
    "calls per value": numbers.calls,
}
COLUMN, TIME = 16, 8  # characters
MARKS = {"best": "*", "as good": "~"}
TEX_PARTS = {  # a page is narrower than the table
    "accuracy": ("bias", "RMSE", "offset-free RMSE", "skill", "against constant", "against best"),
    "use and cost": (
        "Spearman", "pairwise", "regret", "gradient cosine", "time per value", "peak memory",
    ),
}  # fmt: skip
TIMED = "time per value"
LEFT = "Cells of tables without any numbers"


class Shown(NamedTuple):
    """A facet with what is shown of it: text, files and page want the same.

    Attributes:
        facet: Its rows and failures.
        trusted: Its `trust.trust`.
        values: Its `value_table`.
        trust: Its `trust_table`.
    """

    facet: Facet
    trusted: pd.DataFrame
    values: pd.DataFrame
    trust: pd.DataFrame


def shown(frame: pd.DataFrame, failures: Failures = ()) -> list[Shown]:
    """Every facet of a frame with its tables."""
    out = []
    for facet in split(frame, failures):
        known = trust.trust(facet.frame)
        values = value_table(facet.frame, facet.failures, known)
        out.append(Shown(facet, known, values, trust_table(facet.frame, known)))
    return out


def value_table(
    frame: pd.DataFrame, failures: Failures = (), trusted: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table of one facet, as text.

    Args:
        frame: Rows of one facet.
        failures: Its failed cells.
        trusted: Its `trust.trust`, where that is known.

    Returns:
        Columns sigma, estimator, those of `SHOWN`, and two verdicts on the MSE: "against constant"
        (better, unclear, worse) and "against best" (best, as good, unclear, worse): `verdicts`.
        Where the truth is an average, the last row of a noise level is its floor.
    """
    known = trust.trust(frame) if trusted is None else trusted
    found, floors = verdicts(frame, known), certainty.shown(frame)
    headings = SHOWN | own(frame)
    sigmas = sorted(frame["sigma"].unique())
    failed = {str(f["estimator"]): f for f in failures}
    rows = {(row["sigma"], row["estimator"]): row for row in frame.to_dict("records")}
    names = order(frame) + [name for name in failed if name not in set(frame["estimator"])]
    out = []
    for sigma in sigmas:
        for name in names:
            place = {"sigma": f"{sigma:g}", "estimator": name}
            if (row := rows.get((sigma, name))) is not None:
                shown = {heading: text(row) for heading, text in headings.items()}
                out.append({"cell": row["cell"]} | place | shown | found[sigma, name])
            elif name in failed:
                out.append(place | _failed(failed[name]))
        if sigma in floors:
            last = {"cell": "", "sigma": f"{sigma:g}", "estimator": certainty.FLOOR}
            out.append(last | floors[sigma])
    columns = ["sigma", "estimator", *headings, "against constant", "against best"]
    return by_cell(out).reindex(columns=columns).fillna(MISSING)


def own(frame: pd.DataFrame) -> dict[str, Callable[[Row], str]]:
    """Columns of the metrics that users' files measured: heading to text of a row."""
    names = [name for name in map(str, frame) if name.startswith(OWN) and f"{name}_lo" in frame]
    return {name.removeprefix(OWN): partial(numbers.of, metric=name) for name in names}


def trust_table(frame: pd.DataFrame, trusted: pd.DataFrame | None = None) -> pd.DataFrame:
    """The answer for one facet, as text: whom to trust at each noise level, at what cost."""
    out, floors = [], certainty.shown(frame)
    cells = dict(
        zip(zip(frame["sigma"], frame["estimator"], strict=True), frame["cell"], strict=True)
    )
    known = trust.trust(frame) if trusted is None else trusted
    for row in known.to_dict("records"):
        lowest = f" (lowest, {numbers.plain(row['best_rmse'])})"
        others = [
            f"{name}{lowest if name == row['best'] else ''}"
            for name in row["as_good"]
            if name != row["recommended"]
        ]
        time = (row["seconds"], row["seconds_lo"], row["seconds_hi"])
        out.append({
            "cell": cells[row["sigma"], row["recommended"]],
            "sigma": f"{row['sigma']:g}",
            "trust": row["recommended"],
            "RMSE": numbers.of(row, "rmse"),
            "skill": numbers.of(row, "skill", 3),
            "time per value": numbers.seconds_interval(*time),
            "cost / Tweedie": numbers.times(row["cost"]),
            "as good, but dearer": ", ".join(others) or MISSING,
            "detectable skill gap": numbers.plain(row["detectable"], 2),
        })  # fmt: skip
        if row["sigma"] in floors:
            out[-1][certainty.FLOOR] = floors[row["sigma"]]["RMSE"]
    return by_cell(out).fillna(MISSING)


def text(frame: pd.DataFrame, failures: Failures = (), width: int = 100) -> str:
    """For a terminal of some width: RMSE by estimator and noise level, and time per value."""
    failures, facets = list(failures), split(frame, failures)
    parts = [_block(facet, width) for facet in facets]
    if len(left := left_over(facets, failures)):
        parts.append(f"{LEFT}\n{wrapped(left, width)}")
    note = (
        "RMSE \u00b1 95 %; * lowest, ~ as good (not clearly worse, within a quarter); "
        f"time per value.\n{floor.note(frame)}"
    )
    if len(frame) and (frame["isolation"] == "inline").any():
        note += "\nTimes are indicative: one warm process for all cells."
    return "\n\n".join([*parts, note]) + "\n" if parts else "no results\n"


def write(
    frame: pd.DataFrame,
    folder: Path,
    failures: Failures = (),
    made: list[Shown] | None = None,
) -> list[Path]:
    """Write all tables: values and trust as md and tex, and values.csv with every digit.

    Args:
        frame: Rows of results.
        folder: Where to.
        failures: Cells without a result.
        made: `shown` of them, where that is known.

    Returns:
        The files, in the order written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures = list(failures)
    found = shown(frame, failures) if made is None else made
    plain = frame[[name for name in frame.columns if not str(name).endswith("_by_prompt")]]
    left = left_over([one.facet for one in found], failures)
    more_md = f"\n## {LEFT}\n\n{markdown(left)}" if len(left) else ""
    more_tex = f"\n{latex(left, LEFT)}" if len(left) else ""
    values = _document((one.facet, one.values) for one in found)
    files = {
        "values.csv": whole(plain, failures).to_csv(index=False, lineterminator="\n"),
        "values.md": values + more_md,
        "trust.md": _document((one.facet, one.trust) for one in found),
        "values.tex": "\n".join(_tex(one) for one in found) + more_tex,
        "trust.tex": "\n".join(
            latex(one.trust, one.facet.title, floor.note(one.facet.frame))
            for one in found
            if len(one.trust)
        ),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def _document(found: Iterable[tuple[Facet, pd.DataFrame]]) -> str:
    return "\n".join(
        f"## {f.title}\n\n{f.about}\n\n{markdown(table)}\n{floor.note(f.frame)}\n"
        for f, table in found
    )


def _tex(one: Shown) -> str:
    frame, table, parts = one.facet.frame, one.values, []
    mine = {"own metrics": tuple(own(frame))} if own(frame) else {}
    for part, columns in (TEX_PARTS | mine).items():
        rows = table if "RMSE" in columns else table[table["estimator"] != certainty.FLOOR]
        beneath = floor.note(frame) if TIMED in columns else ""
        title = f"{one.facet.title}: {part}"
        parts.append(latex(rows[["sigma", "estimator", *columns]], title, beneath))
    return "\n".join(parts)


def _failed(failure: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the place of a cell that has no numbers."""
    return {
        "cell": failure["cell"],
        "estimator": f"{failure['estimator']} ({word(failure)})",
        "target": reason(failure) or MISSING,
    }


def _block(facet: Facet, width: int) -> str:
    """A facet's lines: as many noise levels beside each other as fit."""
    frame, floors = facet.frame, certainty.shown(facet.frame)
    found = verdicts(frame, trust.trust(frame))
    rows = {(row["sigma"], row["estimator"]): row for row in frame.to_dict("records")}
    names, sigmas = order(frame), sorted(frame["sigma"].unique())
    named = [*names, *(f["estimator"] for f in facet.failures), *[certainty.FLOOR][: len(floors)]]
    wide = max(len(str(name)) for name in named)
    times = frame.groupby("estimator")["seconds"].median()
    at_once = max(1, (width - wide - TIME) // COLUMN)
    lines = [facet.title]
    for first in range(0, len(sigmas), at_once):
        part = sigmas[first : first + at_once]
        heads = "".join(f"{f'sigma {sigma:g}':>{COLUMN - 1}} " for sigma in part)
        lines.append(f"{'':{wide}}{heads}{'time':>{TIME}}")
        for name in names:
            cells = "".join(_rmse(rows.get((s, name)), found.get((s, name), {})) for s in part)
            lines.append(f"{name:{wide}}{cells}{numbers.seconds(times[name]):>{TIME}}")
        if floors:
            cells = "".join(f"{floors.get(s, {}).get('RMSE', ''):>{COLUMN - 1}} " for s in part)
            lines.append(f"{certainty.FLOOR:{wide}}{cells}".rstrip())
    lines += [f"{f['estimator']:{wide}}  {word(f)}: {reason(f, None)}" for f in facet.failures]
    return "\n".join(lines)


def _rmse(row: Row | None, verdict: Mapping[str, str]) -> str:
    """RMSE and its mark, in a column's width."""
    shown = MISSING
    if row is not None:
        shown = numbers.margin(row["rmse"], row["rmse_lo"], row["rmse_hi"])
    return f"{shown:>{COLUMN - 1}}{MARKS.get(verdict.get('against best', ''), ' ')}"
