"""The answer: at a glance for a world, in one plain sentence for a facet."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.report import numbers, trust
from bench.report.facets import Facet, split
from bench.report.numbers import MISSING

Row = Mapping[Any, Any]
EXACT = 1e-9  # in units of the reward, which are of order 1


def glance(facets: Iterable[Facet], trusted: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Whom to trust, a row for each facet and a column for each noise level, as text.

    Args:
        facets: Of one world.
        trusted: The `trust.trust` of each.
    """
    found = {f.heading: _glance(f, table) for f, table in zip(facets, trusted, strict=True)}
    sigmas = sorted({sigma for row in found.values() for sigma in row})
    rows = [
        {"what is estimated": heading} | {f"{s:g}": row.get(s, MISSING) for s in sigmas}
        for heading, row in found.items()
        if row
    ]
    return pd.DataFrame(rows, dtype=object)


def _glance(facet: Facet, trusted: pd.DataFrame) -> dict[float, str]:
    """Noise level to the trusted estimator and its time over Tweedie's."""
    constants = set(trust.constants(facet.frame)["estimator"])
    found = {}
    for row in trusted.to_dict("records"):
        untimed = pd.isna(row["cost"]) or row["recommended"] in constants
        time = "" if untimed else f" ({numbers.times(row['cost'])})"
        found[row["sigma"]] = f"{row['recommended']}{time}"
    return found


def answers(frame: pd.DataFrame) -> list[str]:
    """The sentence of every facet of a frame, with its title."""
    return [f"{f.title}: {of_facet(f, trust.trust(f.frame))}" for f in split(frame)]


def of_facet(facet: Facet, trusted: pd.DataFrame) -> str:
    """The sentence of one facet, from its `trust.trust`."""
    return sentence(trusted, set(trust.constants(facet.frame)["estimator"]))


def sentence(table: pd.DataFrame, constants: set[str]) -> str:
    """Whom to trust at which noise levels, at what error and cost.

    Args:
        table: The facet's `trust.trust`.
        constants: Labels of the constant: recommending it says that nothing clearly beats it.
    """
    if table.empty:
        return "No estimator was measured against a known value here."
    runs: list[list[Row]] = []
    for row in table.to_dict("records"):
        if runs and _alike(runs[-1][0], row):
            runs[-1].append(row)
        else:
            runs.append([row])
    text = "; ".join(_run(run, constants) for run in runs)
    return f"{text[0].upper()}{text[1:]}."


def _alike(one: Row, other: Row) -> bool:
    """The same recommendation, and the best or not in both."""
    recommended = one["recommended"] == other["recommended"]
    return recommended and (one["best"] == one["recommended"]) == (
        other["best"] == other["recommended"]
    )


def _run(rows: list[Row], constants: set[str]) -> str:
    """One stretch of noise levels with the same recommendation."""
    first, last = rows[0], rows[-1]
    where = f"at sigma {first['sigma']:g}"
    if len(rows) > 1:
        where += f" to {last['sigma']:g}"
    looks = _looks(rows)
    if first["recommended"] in constants:
        beats = "clearly beats" if looks else "beats"
        return f"{where}, nothing {beats} the prompt's mean{looks}"
    errors = [row["rmse"] for row in rows]
    parts = ["exact up to rounding" if max(errors) < EXACT else f"RMSE {_span(errors)}"]
    middle = rows[len(rows) // 2]
    if not pd.isna(middle["seconds"]):
        parts.append(f"{numbers.seconds(middle['seconds'])} a value")
    if not pd.isna(middle["cost"]) and abs(middle["cost"] - 1) > 0.005:  # noqa: PLR2004
        parts.append(f"{numbers.times(middle['cost'])} Tweedie's time")
    return f"{where}, trust {first['recommended']} ({', '.join(parts)}){looks}"


def _looks(rows: list[Row]) -> str:
    """Where others had the lowest RMSE: that this run cannot tell them apart."""
    others = [row for row in rows if row["best"] != row["recommended"]]
    if not others:
        return ""
    names = " or ".join(dict.fromkeys(row["best"] for row in others))
    gap = max(others, key=lambda row: row["rmse"] / row["best_rmse"])
    return (
        f" - but {names} looks better (RMSE {numbers.plain(gap['best_rmse'], 2)} against "
        f"{numbers.plain(gap['rmse'], 2)} at {gap['sigma']:g}), by less than this run can tell"
    )


def _span(found: list[float]) -> str:
    """`0.12`, or `0.01 to 0.12`."""
    least, most = numbers.plain(min(found), 2), numbers.plain(max(found), 2)
    return least if least == most else f"{least} to {most}"
