"""What every plot is made of: styled figures, points with intervals, one legend.

Figures are objects, never pyplot's: nothing is global and nothing leaks.
"""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import certainty
from bench.report.estimators import Style

STYLE = Path(__file__).parent / "paper.mplstyle"
LEGEND_ROW = 0.15  # inches
LETTERS = 12.5  # of a title in an inch
NOTE = 76  # letters of a remark in a line
PANELS = 3  # in a row
FIT = 16  # entries of a legend in a cell of the grid
SPARE = "spare"  # label of a cell of the grid without a panel
FLOOR = Style("#888888", "_", ":")
DODGE = 0.012  # of the axis, over all series: points at one x stay apart

Array = npt.NDArray[np.float64]


class Series(NamedTuple):
    """Points of one estimator: x, y and the ends of y's interval, NaN where there is none."""

    name: str
    style: Style
    x: Array
    y: Array
    lo: Array
    hi: Array


@contextmanager
def styled() -> Iterator[None]:
    """The project's style, for making and for saving figures."""
    with mpl.rc_context(fname=STYLE):
        yield


def figure(
    title: str,
    panels: int = 1,
    *,
    height: float = 3.3,
    share_y: Literal["all", "row", "none"] = "all",
) -> tuple[Figure, list[Axes]]:
    """A figure of one panel, or of a grid that shares abscissae; call within `styled`."""
    if panels == 1:
        out = Figure(figsize=(5.6, height), layout="constrained")
        axes = [out.add_subplot()]
    else:
        columns = min(panels, PANELS)
        rows = -(-panels // columns)
        out = Figure(figsize=(0.6 + 2.35 * columns, 0.9 + 2.15 * rows), layout="constrained")
        grid = out.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)
        axes = list(grid.flat)
        for axis in axes[panels:]:
            axis.set_axis_off()
            axis.set_label(SPARE)
        for axis in lowest(axes[:panels]):
            axis.tick_params(labelbottom=True)
    head(out, title)
    return out, axes[:panels]


def head(figure: Figure, title: str) -> None:
    """A title at the left, over as many lines as it needs."""
    lines = textwrap.fill(title, int(LETTERS * figure.get_figwidth()))
    figure.suptitle(lines, x=0.01, ha="left", color="#333333")


def note(axis: Axes, text: str) -> None:
    """A remark at the right above a panel, over as many lines as it needs."""
    lines = textwrap.fill(text, NOTE)
    axis.set_title(lines, loc="right", fontsize=7, color="#555555")


def lowest(axes: list[Axes]) -> list[Axes]:
    """The panels with nothing below them."""
    return axes[-PANELS:]


def label(out: Figure, axes: list[Axes], x: str, y: str) -> None:
    """Name the axes of a grid: x below every column, y once."""
    for axis in lowest(axes):
        axis.set_xlabel(x)
    out.supylabel(y, fontsize=8.5, color="#333333")


def series(rows: pd.DataFrame, name: str, style: Style, x: str, y: str) -> Series:
    """Columns x and y of some rows as a series, in order of x, with y's interval if it has one."""
    rows = rows[rows[x].notna() & rows[y].notna()].sort_values(x)
    numbers = [rows[c].to_numpy(dtype=float) if c in rows else np.full(len(rows), np.nan)
               for c in (x, y, f"{y}_lo", f"{y}_hi")]  # fmt: skip
    return Series(name, style, *numbers)


def floor(rows: pd.DataFrame) -> Series:
    """What the truth adds to every RMSE, against the noise level; empty where it is exact."""
    return series(certainty.floors(rows), certainty.FLOOR, FLOOR, "sigma", "truth_floor")


def points(axis: Axes, shown: Iterable[Series], *, joined: bool = True) -> None:
    """Points with error bars, joined by lines, moved a little sideways so that none hides."""
    shown = [s for s in shown if s.x.size]
    for k, s in enumerate(shown):
        share = 0.0 if len(shown) == 1 else DODGE * (k / (len(shown) - 1) - 0.5)
        x = _moved(axis, shown, s.x, share)
        wide = np.isfinite(s.lo) & np.isfinite(s.hi) & (s.hi > s.lo)
        bars = np.maximum([(s.y - s.lo)[wide], (s.hi - s.y)[wide]], 0)
        if wide.any():
            axis.errorbar(x[wide], s.y[wide], yerr=bars, fmt="none",
                          ecolor=s.style.colour, elinewidth=0.8)  # fmt: skip
        line = s.style.line if joined else "none"
        axis.plot(x, s.y, color=s.style.colour, marker=s.style.marker, linestyle=line,
                  label=s.name, markeredgecolor="white")  # fmt: skip


def legend(out: Figure, axes: Iterable[Axes], columns: int = 3) -> None:
    """One legend for all panels: in a spare cell of their grid, or below, in added space."""
    found: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    handles, labels = list(found.values()), list(found)
    for axis in out.axes:
        if axis.get_label() == SPARE and len(found) <= FIT:
            drawn = axis.legend(handles, labels, loc="upper left", bbox_to_anchor=(-0.07, 1.08),
                                fontsize=7, labelspacing=0.3)  # fmt: skip
            drawn.set_in_layout(False)
            return
    out.set_figheight(out.get_figheight() + LEGEND_ROW * -(-len(found) // columns))
    out.legend(handles, labels, loc="outside lower left", ncols=columns)


def lay_out(out: Figure) -> None:
    """Make room for everything, as drawing would."""
    engine = out.get_layout_engine()
    if engine is not None:
        engine.execute(out)


def settled(out: Figure) -> Figure:
    """The figure with its layout fixed, so that saving it again gives the same picture.

    Where labels stand beside axes twice, for they take part in the layout and move with it.
    """
    lay_out(out)
    if any(axis.texts for axis in out.axes):
        lay_out(out)
    out.set_layout_engine(None)  # "none" would still draw everything once before it is saved
    return out


def _moved(axis: Axes, shown: list[Series], x: Array, share: float) -> Array:
    """Abscissae moved by a share of the range of all series."""
    every = np.concatenate([s.x for s in shown])
    if axis.get_xscale() == "log":
        return x * (every.max() / every.min()) ** share
    return x + share * np.ptp(every)
