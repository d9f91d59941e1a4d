"""The name of a line beside its end, so that nobody has to match colours with a legend."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from bench.report.drawing import Array, Series, lay_out

LABEL_GAP = 0.138  # inches between labels


def end_labels(out: Figure, axis: Axes, shown: Iterable[Series]) -> None:
    """Write each line's name beside its last point, moved apart where they would overlap.

    Call when the axes' scale and limits are settled.
    """
    lay_out(out)
    shown = [s for s in shown if s.x.size]
    if not shown:
        return
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = np.array([to_axes.transform((s.x[-1], s.y[-1])) for s in shown])
    wanted = np.clip(ends[:, 1], 0, 1)
    inches = axis.get_position().height * out.get_figheight()
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


def readable(colour: str) -> str:
    """A colour dark enough for small type on white."""
    channels = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    luminance = (0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]) / 255
    share = min(1.0, 0.45 / max(luminance, 1e-9))
    return "#{:02x}{:02x}{:02x}".format(*(round(c * share) for c in channels))
