"""The sheet of the train task: what its page, tables and text show."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import numbers, sheet
from bench.report.cells import ALONE, Behind
from bench.report.facets import Facet
from bench.report.sheet import Sheet
from bench.report.train.claims import CLAIMS
from bench.report.train.frame import ends, log, tidy, together
from bench.report.train.plots import figures
from bench.report.train.tables import start, tables
from bench.stats import mean_interval
from bench.store import Store


def answer(facet: Facet) -> list[str]:
    """What a facet comes to: gains in target reward, best first."""
    found = []
    for name, part in ends(facet.frame).groupby("method", sort=False):
        now, then = (together(rows, "target") for rows in (part, start(facet.frame, part.iloc[0])))
        if now is not None and then is not None:
            gain = mean_interval(now - then)
            found.append((gain.mean, f"{name} {numbers.interval(*gain[:3])}"))
    if not found:
        return list(_steps(facet.frame))
    ranked = "; ".join(text for _, text in sorted(found, reverse=True))
    return [f"Gain in target reward by training, paired by prompt: {ranked}."]


def _steps(rows: pd.DataFrame) -> Iterator[str]:
    """A sentence on what training steps cost, where nothing else was measured."""
    costs = rows[rows["phase"] == "cost"].sort_values("over_published")
    if len(costs):
        said = "; ".join(
            f"{row['method']} {numbers.of(row, 'over_published')}"
            for row in costs.to_dict("records")
        )
        yield f"A training step, over one of the published method: {said}."


def report(
    store: Store,
    frame: pd.DataFrame,
    failures: Iterable[Mapping[str, Any]],
    out: Path,
    behind: Behind = ALONE,
) -> tuple[list[Path], Path]:
    """Write tables, plots and the page, and `log.csv` with every training step."""
    files, page = sheet.write(SHEET, frame, failures, store.problems, out, behind)
    told = out / "tables" / "log.csv"
    log(store.records()).to_csv(told, index=False, lineterminator="\n")
    return [*files, told], page


SHEET = Sheet(
    title="What training gains, and how long it takes",
    about=(
        "Every method is a way of training with a value estimator: asked at the end of rollouts, "
        "which is the published method, or where they stop. All train LoRA weights of the same "
        "generator on the same prompts; learning rates are chosen on prompts of their own, the "
        "same number for each method. What is shown was measured on prompts that were neither "
        "trained on nor chosen by, except in the Gaussian world, where a prompt is a weight. The "
        "clock is that of training alone; on a CPU seconds are those of the CPU."
    ),
    apart=("world", "reward"),
    tidy=tidy,
    answer=answer,
    claims=CLAIMS,
    tables=tables,
    figures=figures,
)
