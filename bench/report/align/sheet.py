"""The sheet of the align task: what its page, tables and text show."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import numbers, sheet
from bench.report.align import paths
from bench.report.align.claims import CLAIMS
from bench.report.align.frame import judged, tidy, unsteered_of
from bench.report.align.plots import figures
from bench.report.align.tables import tables
from bench.report.cells import ALONE, Behind
from bench.report.facets import Facet
from bench.report.sheet import Sheet
from bench.stats import mean_interval
from bench.store import Store


def answer(facet: Facet) -> list[str]:
    """What a facet comes to: the gains of all methods, best first; else what they cost."""
    found = []
    for _, row in judged(facet.frame).iterrows():
        base = unsteered_of(facet.frame, row)
        if row["phase"] == "unsteered" or base is None:
            continue
        gain = mean_interval(row["target_by_prompt"] - base["target_by_prompt"])
        found.append((gain.mean, f"{str(row['method'])} {numbers.interval(*gain[:3])}"))
    if not found:
        return [*_costs(facet), *_walks(facet)]
    ranked = "; ".join(text for _, text in sorted(found, reverse=True))
    return [f"Gain in target reward over unsteered samples, paired by prompt: {ranked}."]


def _costs(facet: Facet) -> Iterator[str]:
    """A sentence on the guided steps of each batch size, the cheapest first."""
    costs = facet.frame[facet.frame["phase"] == "cost"]
    for batch in sorted(costs["batch"].unique()) if len(costs) else ():
        ranked = costs[costs["batch"] == batch].sort_values("over_unsteered")
        said = [
            f"{row['method']} {numbers.of(row, 'over_unsteered')}" for _, row in ranked.iterrows()
        ]
        yield f"A guided step, over an unsteered one, at batch {batch:g}: {'; '.join(said)}."


def _walks(facet: Facet) -> Iterator[str]:
    """A sentence on whole steered samples, the cheapest first."""
    rows = facet.frame[facet.frame["phase"] == "walk"]
    if len(rows):
        said = [
            f"{row['method']} {numbers.of(row, 'over_unsteered')}"
            for _, row in rows.sort_values("over_unsteered").iterrows()
        ]
        yield f"A steered sample, over an unsteered one of as many steps: {'; '.join(said)}."


def report(
    store: Store,
    frame: pd.DataFrame,
    failures: Iterable[Mapping[str, Any]],
    out: Path,
    behind: Behind = ALONE,
) -> tuple[list[Path], Path]:
    """Write tables, plots, pictures and the page."""
    shown = frame.assign(pictures=[_pictures(store, row) for _, row in frame.iterrows()])
    return sheet.write(SHEET, shown, failures, store.problems, out, behind)


def _pictures(store: Store, row: pd.Series) -> Any:  # noqa: ANN401 - an array or nothing
    """Of judged samples, and of unsteered ones beside them."""
    names = {"eval": "pictures", "unsteered": "unsteered_pictures"}
    if row["phase"] not in names:
        return None
    return store.samples(str(row["cell"]), str(row["attempt"])).get(names[row["phase"]])


SHEET = Sheet(
    title="What steering gains, and what it costs",
    about=(
        "Every method is an algorithm with a value estimator. Samples start from the same noise; "
        "strengths are chosen on prompts of their own, the same number of trials for each method "
        "that has one, as the highest target reward that keeps the prompt as often as unsteered "
        "samples do, within a point. What is shown was measured on other prompts. On a CPU "
        "seconds are those of the CPU."
    ),
    apart=("world", "reward"),
    tidy=tidy,
    answer=answer,
    claims=CLAIMS,
    tables=tables,
    figures=figures,
    across=paths.across,
)
