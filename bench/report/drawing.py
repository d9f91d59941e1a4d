"""What every plot is made of: styled figures, points with intervals, labels at the ends of lines.

Figures are objects, never pyplot's: nothing is global and nothing leaks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from bench.report.estimators import Style

STYLE = Path(__file__).parent / "paper.mplstyle"
NOTHING = 1e-7  # of the largest: what a logarithmic axis cannot show beside it
WIDE = 12.0  # ratio of extremes above which a signed axis is logarithmic outside its middle
LABEL_GAP = 0.138  # inches between end labels
LEGEND_ROW = 0.15  # inches
PANELS = 3  # in a row
SPARE = "spare"  # label of a cell of the grid without a panel
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
    title: str, panels: int = 1, *, height: float = 3.3, share_y: Literal["all", "row", "none"] = "all"
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
    out.suptitle(title, x=0.01, ha="left", color="#333333")
    return out, axes[:panels]


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


def points(axis: Axes, shown: Iterable[Series], *, joined: bool = True) -> None:
    """Points with error bars, joined by lines, moved a little sideways so that none hides."""
    shown = [s for s in shown if s.x.size]
    for k, s in enumerate(shown):
        share = 0.0 if len(shown) == 1 else DODGE * (k / (len(shown) - 1) - 0.5)
        x = _moved(axis, shown, s.x, share)
        known = np.isfinite(s.lo) & np.isfinite(s.hi)
        below, above = np.where(known, s.y - s.lo, 0), np.where(known, s.hi - s.y, 0)
        axis.errorbar(x, s.y, yerr=np.maximum([below, above], 0), fmt="none",
                      ecolor=s.style.colour, elinewidth=0.8)  # fmt: skip
        axis.plot(x, s.y, color=s.style.colour, marker=s.style.marker, label=s.name,
                  linestyle=s.style.line if joined else "none", markeredgecolor="white")  # fmt: skip


def end_labels(axis: Axes, shown: Iterable[Series]) -> None:
    """Write each line's name beside its last point, moved apart where they would overlap.

    Call when the axes' scale and limits are settled.
    """
    shown = [s for s in shown if s.x.size]
    if not shown:
        return
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = np.array([to_axes.transform((s.x[-1], s.y[-1])) for s in shown])
    wanted = np.clip(ends[:, 1], 0, 1)
    inches = axis.get_position().height * axis.figure.get_figheight()
    gap = min(LABEL_GAP / inches, 1.1 / max(len(shown), 1))
    heights = apart(wanted, gap)
    for s, (_, end), height in zip(shown, np.c_[ends[:, 0], wanted], heights, strict=True):
        axis.annotate(
            s.name, xy=(1.0, end), xytext=(1.055, height), xycoords="axes fraction",
            textcoords="axes fraction", va="center", ha="left", fontsize=7.5,
            color=readable(s.style.colour), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": s.style.colour, "linewidth": 0.6,
                        "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(wanted: Array, gap: float) -> Array:
    """Heights nearest to the wanted ones, in the same order, at least a gap apart."""
    rank = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(wanted.size)
    fitted = isotonic_regression(wanted[rank] - steps).x
    out = np.empty_like(wanted)
    out[rank] = np.clip(fitted, 0, max(0.0, 1.05 - steps[-1])) + steps
    return out


def log_axis(axis: Axes, shown: list[Series]) -> tuple[list[Series], str]:
    """Make the ordinate logarithmic.

    Returns:
        The series without what the axis cannot show, and a note on those left out altogether:
        below `NOTHING` of the largest a number is 0 up to rounding.
    """
    largest = max((float(s.y.max()) for s in shown if s.y.size), default=1.0)
    kept, exact = [], []
    for s in shown:
        visible = s.y > NOTHING * largest
        if s.y.size and not visible.any():
            exact.append(s.name)
        lowest = NOTHING * largest
        kept.append(s._replace(x=s.x[visible], y=s.y[visible], hi=s.hi[visible],
                               lo=np.maximum(s.lo[visible], lowest)))  # fmt: skip
    axis.set_yscale("log")
    note = f"0 up to rounding: {', '.join(exact)}" if exact else ""
    return [s for s in kept if s.x.size], note


def signed_axis(axis: Axes, shown: list[Series]) -> str:
    """A zero line; where the numbers span too much, an axis that is logarithmic away from it.

    The linear middle is no narrower than what the intervals can tell from 0.

    Returns:
        What to add to the axis label.
    """
    y = np.abs(np.concatenate([s.y for s in shown]))
    halves = np.concatenate([s.hi - s.lo for s in shown]) / 2
    y, halves = y[y > NOTHING * y.max()], halves[halves > NOTHING * y.max()]
    axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
    if y.size and y.max() > WIDE * np.median(y):
        middle = max(float(np.median(y)), float(np.median(halves)) if halves.size else 0.0)
        edge = 10 ** np.ceil(np.log10(middle) - 0.5)
        axis.set_yscale("symlog", linthresh=edge, linscale=1.5)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _signed(y)))
        axis.yaxis.set_minor_locator(NullLocator())
        return f", log beyond \u00b1{edge:g}"
    return ""


def noise_levels(axis: Axes, sigmas: Iterable[float]) -> None:
    """Ticks at the measured noise levels."""
    at = sorted(sigmas)
    axis.set_xticks(at, [f"{sigma:g}" for sigma in at])
    axis.set_xlabel(r"noise level $\sigma$")


def powers_of_two(axis: Axes, at: Iterable[float], label: str) -> None:
    """A logarithmic abscissa with ticks at the measured counts."""
    ticks = sorted({float(x) for x in at})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)


def plain_logs(axis: Axes) -> None:
    """0.01, 0.1, 1 on a logarithmic ordinate instead of powers, where few decades show."""
    lo, hi = axis.get_ylim()
    if lo > 0 and hi / lo < 1e5:  # noqa: PLR2004
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        if hi / lo > 10:  # noqa: PLR2004
            axis.yaxis.set_minor_formatter(NullFormatter())


def durations(axis: Axes) -> None:
    """Seconds on a logarithmic abscissa, in units."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _duration(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def legend(out: Figure, axes: Iterable[Axes], columns: int = 3) -> None:
    """One legend for all panels: in a spare cell of their grid, or below, in added space."""
    found = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    spare = [axis for axis in out.axes if axis.get_label() == SPARE]
    if spare:
        drawn = spare[0].legend(found.values(), found.keys(), loc="upper left",
                                bbox_to_anchor=(-0.07, 1.08), fontsize=7, labelspacing=0.3)  # fmt: skip
        drawn.set_in_layout(False)
        return
    out.set_figheight(out.get_figheight() + LEGEND_ROW * -(-len(found) // columns))
    out.legend(found.values(), found.keys(), loc="outside lower left", ncols=columns)


def readable(colour: str) -> str:
    """A colour dark enough for small type on white."""
    channels = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    luminance = (0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]) / 255
    share = min(1.0, 0.45 / max(luminance, 1e-9))
    return "#{:02x}{:02x}{:02x}".format(*(round(c * share) for c in channels))


def _moved(axis: Axes, shown: list[Series], x: Array, share: float) -> Array:
    """Abscissae moved by a share of the range of all series."""
    every = np.concatenate([s.x for s in shown])
    if axis.get_xscale() == "log":
        return x * (every.max() / every.min()) ** share
    return x + share * np.ptp(every)


def _signed(y: float) -> str:
    return f"{y:g}".replace("-", "\u2212")


def _duration(x: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6), ("ns", 1e-9)):
        if x >= 0.999 * scale:  # noqa: PLR2004
            return f"{x / scale:g} {unit}"
    return f"{x:g} s"
