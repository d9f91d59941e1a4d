"""Axes that suit what they show: noise levels, counts, durations, errors over many decades."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.report.drawing import Array, Series

NOTHING = 1e-7  # of the largest: what a logarithmic axis cannot show beside it
REACH = 4.0  # factor: how far below its point an interval that reaches 0 is drawn
DEEP = 10.0  # factor below the axis: how far it is extended for the floor of the truth
WIDE = 12.0  # maximum over median above which a signed axis is logarithmic outside its middle
LINEAR_SKILL = 1.0  # below minus this the axis of skills is logarithmic: some are very bad
ROOM, LEAST_ROOM = 0.06, 1.3  # beside the points: a share of their range in decades, a factor
DECADES = 1e5  # a logarithmic axis that spans less is labelled in plain numbers


def log_axis(axis: Axes, shown: list[Series]) -> tuple[list[Series], str]:
    """Make the ordinate logarithmic.

    Returns:
        The series without what the axis cannot show, and a note on those left out altogether:
        below `NOTHING` of the largest a number is 0 up to rounding.
    """
    largest = max((float(s.y.max()) for s in shown if s.y.size), default=1.0)
    visible = [s.y > NOTHING * largest for s in shown]
    exact = [s.name for s, seen in zip(shown, visible, strict=True) if s.y.size and not seen.any()]
    kept = [
        s._replace(x=s.x[seen], y=s.y[seen], lo=np.maximum(s.lo, s.y / REACH)[seen], hi=s.hi[seen])
        for s, seen in zip(shown, visible, strict=True)
    ]
    axis.set_yscale("log")
    note = f"0 up to rounding: {', '.join(exact)}" if exact else ""
    return [s for s in kept if s.x.size], note


def floor_line(axis: Axes, floor: Series) -> Series:
    """Draw what the truth adds to every RMSE, once all else is drawn.

    Returns:
        What of it is seen: nothing that lies far below all else.
    """
    seen = floor.y > axis.get_ylim()[0] / DEEP
    floor = Series(floor.name, floor.style, *(numbers[seen] for numbers in floor[2:]))
    if seen.any():
        colour, marker, line = floor.style
        axis.plot(floor.x, floor.y, color=colour, marker=marker, linestyle=line, linewidth=0.9,
                  label=floor.name, zorder=1)  # fmt: skip
    return floor


def floor_level(axis: Axes, floor: Series) -> None:
    """The same at one noise level, whatever the abscissa."""
    for height in floor.y[floor.y > axis.get_ylim()[0] / DEEP]:
        axis.axhline(height, color=floor.style.colour, linestyle=floor.style.line, linewidth=0.9,
                     label=floor.name, zorder=1)  # fmt: skip


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


def skill_axis(axis: Axes, shown: Iterable[Series]) -> None:
    """Lines at 0 and 1; logarithmic below -1 where a skill is that low."""
    for level in (0, 1):
        axis.axhline(level, color="#888888", linewidth=0.8, zorder=1)
    if min(float(s.y.min()) for s in shown) < -LINEAR_SKILL:
        axis.set_yscale("symlog", linthresh=LINEAR_SKILL, linscale=2)
        decades = np.ceil(np.log10(-axis.get_ylim()[0]))
        ticks = [*-(10.0 ** np.arange(decades, 0, -1)), -1, -0.5, 0, 0.5, 1]
        axis.set_yticks(ticks, [_signed(tick) for tick in ticks])
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(top=1.1)


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
    if lo > 0 and hi / lo < DECADES:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        if hi / lo > 10:  # noqa: PLR2004
            axis.yaxis.set_minor_formatter(NullFormatter())


def durations(axis: Axes, seconds: Array) -> None:
    """A logarithmic abscissa, in units, that shows these seconds with room around them.

    Its limits are set, not found: around a lone point matplotlib finds limits that rounding alone
    keeps apart.
    """
    room = max(float(seconds.max() / seconds.min()) ** ROOM, LEAST_ROOM)
    axis.set_xscale("log")
    axis.set_xlim(seconds.min() / room, seconds.max() * room)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _duration(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _signed(y: float) -> str:
    return f"{y:g}".replace("-", "\u2212")


def _duration(x: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6), ("ns", 1e-9)):
        if x >= 0.999 * scale:  # noqa: PLR2004
            return f"{x / scale:g} {unit}"
    return f"{x:g} s"
