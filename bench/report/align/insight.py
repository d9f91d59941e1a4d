"""Does an estimator's error foretell what steering with it gains?

Every cell pushes alike, along gradients of unit size within one window of noise levels, so what
it gains is what its direction is worth there.
"""

from collections.abc import Iterator

import pandas as pd

from bench.report import numbers
from bench.report.align.frame import judged, unsteered_of
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.report.places import by_cell
from bench.spearman import rank_correlation
from bench.stats import Interval, mean_interval

INSIGHT = {"rank": "rank correlation with the truth", "cosine": "cosine with the true gradient"}
FEW = 6  # points below which a correlation says nothing


def gain_of(rows: pd.DataFrame, row: pd.Series) -> Interval:
    """Gain in target reward over the cell's own unsteered samples, paired by prompt."""
    base = unsteered_of(rows, row)
    nothing = Interval(float("nan"), float("nan"), float("nan"), 0)
    if base is None:
        return nothing
    return mean_interval(row["target_by_prompt"] - base["target_by_prompt"])


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per estimator and window: its errors, and the gain."""
    found = rows[rows["phase"] == "error"].set_index("cell")
    out = []
    for _, row in judged(rows).iterrows():
        if row["cell"] in found.index:
            known = found.loc[row["cell"]]
            at = {name: known[name] for name in ("sigma", *INSIGHT)}
            gain = gain_of(rows, row)
            about = {column: row[column] for column in ("cell", "estimator", "method")}
            out.append({**about, **at,
                        "gain": gain.mean, "gain_lo": gain.lo, "gain_hi": gain.hi,
                        **{f"{name}{end}": known[f"{name}{end}"] for name in INSIGHT
                           for end in ("_lo", "_hi")}})  # fmt: skip
    return pd.DataFrame(out)


def listed(rows: pd.DataFrame) -> pd.DataFrame:
    """Those as text."""
    return by_cell([
        {
            "cell": row["cell"],
            "method": row["method"],
            "sigma": f"{row['sigma']:g}",
            **{title: numbers.of(row, name) for name, title in INSIGHT.items()},
            "gain": numbers.of(row, "gain"),
        }
        for row in points(rows).to_dict("records")
    ])  # fmt: skip


def correlations(rows: pd.DataFrame) -> Iterator[tuple[str, str, Interval]]:
    """Rank correlation of each error with the gain: over all points, and within each window."""
    known = points(rows)
    if known.empty:
        return
    groups = {"all windows": known} | {
        f"sigma {sigma:g}": part for sigma, part in known.groupby("sigma")
    }
    for name, title in INSIGHT.items():
        for where, part in groups.items():
            part_known = part[part[name].notna()]
            if len(part_known) >= FEW:
                yield title, where, rank_correlation(part_known[name], part_known["gain"])


def ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """Those as text."""
    lines: dict[str, dict[str, str]] = {}
    for title, where, x in correlations(rows):
        line = lines.setdefault(title, {"gain in target reward against": title})
        line[where] = numbers.interval(*x[:3])
    return pd.DataFrame(list(lines.values())).fillna(numbers.MISSING)


def foretells(facet: Facet) -> Iterator[Evidence]:
    """Whether better gradients gain more, over all estimators and windows."""
    for title, where, x in correlations(facet.frame):
        if where == "all windows":
            held = True if x.lo > 0 else False if x.hi < 0 else None
            figures = f"{title}: rank correlation {numbers.interval(*x[:3])}, {x.n} points"
            yield Evidence(facet.title, held, figures)
