"""Plots of `robustness`: a figure against the noise level, the references drawn as lines."""

from itertools import groupby

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import drawing, scales
from bench.report.drawing import Series
from bench.report.estimators import Palette, Style, palette
from bench.report.robustness.comparisons import GRIDS, Comparison, rivals, split

REFERENCES = {"ceiling": Style("#000000", "", "-"), "clean": Style("#7f7f7f", "", "--")}


def figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """A plot for every reward and grid by a name for its file, a panel for each figure."""
    if frame.empty:
        return {}
    look, out = palette(frame), {}
    with drawing.styled():
        for (reward, grid), group in groupby(split(frame), lambda c: (c.reward, c.grid)):
            found = list(group)
            name = found[0].slug if len(found) == 1 else f"{reward}-{grid}"
            out[name] = drawing.settled(draw(found, look))
    return out


def draw(found: list[Comparison], look: Palette) -> Figure:
    """Comparisons of one reward and grid side by side."""
    first = found[0]
    out, axes = drawing.figure(
        f"{first.reward} reward, {GRIDS[first.grid]}", len(found), share_y="none"
    )
    for one, axis in zip(found, axes, strict=True):
        _references(axis, one)
        drawing.points(axis, _lines(one, look))
        scales.noise_levels(axis, one.sigmas)
        axis.set_title(one.figure.about)
        axis.set_ylabel("share" if one.figure.percent else "rank correlation")
    drawing.legend(out, axes)
    return out


def _lines(found: Comparison, look: Palette) -> list[Series]:
    rows = rivals(found)
    return [
        drawing.series(rows[rows["estimator"] == name], name, look.styles[name],
                       "sigma_reference", "value")
        for name in found.names
        if (rows["estimator"] == name).any()
    ]  # fmt: skip


def _references(axis: Axes, found: Comparison) -> None:
    for build, style in REFERENCES.items():
        rows = found.frame[found.frame["estimator_build"] == build]
        for name in rows["estimator"].drop_duplicates().iloc[:1]:
            one = rows[rows["estimator"] == name].sort_values("sigma_reference")
            axis.plot(one["sigma_reference"], one["value"], color=style.colour, label=name,
                      linestyle=style.line, linewidth=1, zorder=1)  # fmt: skip
