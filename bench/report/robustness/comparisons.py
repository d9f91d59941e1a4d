"""What may stand in one table, and who is clearly better in it.

One comparison is one figure of one reward on one grid of noise levels.  Rivals are all rows but
the references: the clean reward and the Bayes ceiling, which are told what is tested.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from bench.metrics.robustness import FIGURES, Figure
from bench.report.estimators import order
from bench.report.facets import REWARDS, capital, comparable
from bench.report.trust import ALPHA
from bench.robustness import RUN, TABLE
from bench.stats import Interval, holm

TOLD = ("clean", "ceiling")  # builds of references
BEST, NEAR = "best", "as good"
GRIDS = {"plain": "plain noise levels", "snr": "SNR-matched noise levels"}


class Comparison(NamedTuple):
    """One table's rows.

    Attributes:
        world, reward, grid: Where.
        figure: What is compared.
        name: Of the figure.
        title: For a heading.
        slug: For file names; unique within a frame.
        group: Title of what it shares a plot with: the other figures of its reward and grid.
        frame: Its rows, all measured on the same latents.
        failures: Cells of its estimators that have no rows.
    """

    world: str
    reward: str
    grid: str
    figure: Figure
    name: str
    title: str
    slug: str
    group: str
    frame: pd.DataFrame
    failures: list[Mapping[str, Any]]

    @property
    def sigmas(self) -> dict[float, float]:
        """Noise levels as asked for to those on this world's latent."""
        rows = self.frame.drop_duplicates("sigma_reference").sort_values("sigma_reference")
        return dict(zip(rows["sigma_reference"], rows["sigma"], strict=True))

    @property
    def names(self) -> list[str]:
        """Labels: clean, ceiling, then rivals by method."""
        builds = self.frame["estimator_build"]
        groups = [*(builds == build for build in TOLD), ~builds.isin(TOLD)]
        return [name for mine in groups if mine.any() for name in order(self.frame[mine])]


def split(frame: pd.DataFrame, failures: Iterable[Mapping[str, Any]] = ()) -> list[Comparison]:
    """The comparisons of a frame: by world and reward, the plain grid first."""
    if frame.empty:
        return []
    keys = [*TABLE, *(name for name in RUN if frame[name].nunique() > 1)]
    several = [k for k in keys if k not in {"reward", "figure", "grid"} and frame[k].nunique() > 1]
    failures, out = list(failures), []
    for values, rows in frame.groupby(keys, dropna=False):
        at: dict[str, Any] = dict(zip(keys, cast(tuple[Any, ...], values), strict=True))
        cells = [name for name in TABLE if name != "figure"]
        figure = FIGURES[at["figure"]]
        marks = "".join(f", {k} {at[k]}" for k in several if at[k] != "")
        reward, grid = REWARDS.get(at["reward"], at["reward"]), GRIDS[at["grid"]]
        parts = [at[k] for k in ("reward", "figure", "grid", *several)]
        out.append(Comparison(
            world=at["world"],
            reward=at["reward"],
            grid=at["grid"],
            figure=figure,
            name=at["figure"],
            title=capital(f"{reward}: {figure.about}, {grid}{marks}"),
            slug=re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower()).strip("-"),
            group=capital(f"{reward} reward, {grid}{marks}"),
            frame=comparable(rows),
            failures=[f for f in failures if all(f[name] == at[name] for name in cells)],
        ))  # fmt: skip
    return out


def rivals(found: Comparison) -> pd.DataFrame:
    """Rows of estimators."""
    return found.frame[~found.frame["estimator_build"].isin(TOLD)]


class Test(NamedTuple):
    """The difference of two rows at one noise level, paired by item, its p Holm-adjusted."""

    sigma: float
    names: tuple[str, str]
    difference: Interval
    p: float

    @property
    def sign(self) -> int:
        """1 where the first is clearly better, -1 where clearly worse, else 0."""
        clear = self.p < ALPHA and (self.difference.lo > 0 or self.difference.hi < 0)
        return int(np.sign(self.difference.mean)) if clear else 0


def tests(found: Comparison, pairs: Iterable[tuple[pd.Series, pd.Series]]) -> list[Test]:
    """Pairs of rows compared; Holm's adjustment is over all of them."""
    made = [
        (one["sigma_reference"], (one["estimator"], other["estimator"]),
         found.figure.paired(one["items"], other["items"]))
        for one, other in pairs
    ]  # fmt: skip
    p = holm([test.p for _, _, test in made])
    return [
        Test(sigma, names, test.difference, float(p[k]))
        for k, (sigma, names, test) in enumerate(made)
    ]


def against_best(found: Comparison) -> dict[tuple[float, str], str]:
    """Noise level and rival to `best`, or `as good` where not clearly worse than that one.

    The best is selected on the data it is then compared on, which favours it a little.
    """
    rows = rivals(found).dropna(subset="value")
    best = rows.loc[rows.groupby("sigma_reference")["value"].idxmax()]
    top = {row["sigma_reference"]: row for _, row in best.iterrows()}
    others = [row for _, row in rows.iterrows()
              if row["estimator"] != top[row["sigma_reference"]]["estimator"]]  # fmt: skip
    compared = tests(found, [(row, top[row["sigma_reference"]]) for row in others])
    out = {(sigma, row["estimator"]): BEST for sigma, row in top.items()}
    return out | {(test.sigma, test.names[0]): NEAR for test in compared if test.sign >= 0}
