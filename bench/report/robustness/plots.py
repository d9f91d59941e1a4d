"""Plots of `robustness`: a figure against the noise level, the references drawn as lines."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import drawing, scales
from bench.report.drawing import Series
from bench.report.estimators import Palette, palette
from bench.report.lettering import lettered
from bench.report.robustness.comparisons import TOLD, Comparison, rivals, split

CEILING, CLEAN, DECODED = ("#000000", "-"), ("#7f7f7f", "--"), ("#7f7f7f", ":")


def figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """A plot for every reward and grid by the slug of its first figure, a panel for each."""
    if frame.empty:
        return {}
    frame = lettered(frame)
    look = palette(frame)
    groups: dict[str, list[Comparison]] = {}
    for found in split(frame):
        groups.setdefault(found.group, []).append(found)
    with drawing.styled():
        return {found[0].slug: drawing.settled(draw(found, look)) for found in groups.values()}


def chosen(frame: pd.DataFrame, x: str, y: str, by: str) -> dict[str, Figure]:
    """Those of one figure, against the noise level.

    Raises:
        ValueError: for a figure that is not there.
    """
    known = sorted(set(frame["figure"]))
    if y not in known:
        raise ValueError(f"expected --y one of {', '.join(known)} of this store, got {y!r}")
    if (x, by) != ("sigma", "estimator"):
        raise ValueError(f"expected --x sigma --by estimator, got {x!r} and {by!r}")
    return figures(frame[frame["figure"] == y])


def draw(found: list[Comparison], look: Palette) -> Figure:
    """Comparisons of one reward and grid side by side."""
    out, axes = drawing.figure(found[0].group, len(found), share_y="none")
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
    """A line for each, without points or intervals."""
    rows = found.frame[found.frame["estimator_build"].isin(TOLD)].sort_values("sigma_reference")
    for name in found.names:
        one = rows[rows["estimator"] == name]
        if one.empty:
            continue
        colour, line = CEILING
        if one["estimator_build"].iloc[0] == "clean":
            colour, line = CLEAN if one["estimator.source"].iloc[0] == "pixels" else DECODED
        axis.plot(one["sigma_reference"], one["value"], color=colour, label=name,
                  linestyle=line, linewidth=1, zorder=1)  # fmt: skip
