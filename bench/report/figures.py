"""The figures of a facet: each a function of its rows, None where the rows lack what it shows."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report import certainty, drawing, scales, sweeps
from bench.report.drawing import Series
from bench.report.estimators import MOST, Palette, families, headline
from bench.report.facets import Facet
from bench.report.labels import end_labels
from bench.report.trust import candidates

NAMES = 40  # in a legend


def bias(facet: Facet, look: Palette) -> Figure | None:
    """Bias against the noise level."""
    lines = _lines(facet, look, "sigma", "bias")
    if not lines:
        return None
    out, (axis,) = drawing.figure(_title(facet, lines, "bias"))
    scale = scales.signed_axis(axis, lines)
    drawing.points(axis, lines)
    return _finished(out, axis, lines, f"bias (units of the reward{scale})")


def variance(facet: Facet, look: Palette) -> Figure | None:
    """Variance between replicates against the noise level; estimators without any are named."""
    lines = _lines(facet, look, "sigma", "variance")
    if not any((s.y > 0).any() for s in lines):
        return None
    out, (axis,) = drawing.figure(_title(facet, lines, "variance"))
    visible, note = scales.log_axis(axis, lines)
    drawing.note(axis, note.replace("0 up to rounding", "none"))
    drawing.points(axis, visible)
    scales.plain_logs(axis)
    return _finished(out, axis, visible, "variance (squared units of the reward)")


def error(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against the noise level; the floor of the truth, where it has one, for the truth."""
    frame = facet.frame
    others = frame[(frame["estimator_build"] != "truth") | frame["truth_floor"].isna()]
    lines = _lines(facet._replace(frame=others), look, "sigma", "rmse")
    if not lines:
        return None
    out, (axis,) = drawing.figure(_title(facet, lines, "rmse"))
    visible, note = scales.log_axis(axis, lines)
    drawing.note(axis, note)
    drawing.points(axis, visible)
    floor = scales.floor_line(axis, drawing.floor(frame))
    scales.plain_logs(axis)
    return _finished(out, axis, [*visible, floor], "RMSE (units of the reward)")


def skill(facet: Facet, look: Palette) -> Figure | None:
    """Skill against the noise level: 0 is the prompt's mean, 1 the truth."""
    lines = _lines(facet, look, "sigma", "skill")
    if not lines:
        return None
    out, (axis,) = drawing.figure(_title(facet, lines, "skill"))
    drawing.points(axis, lines)
    scales.skill_axis(axis, lines)
    return _finished(out, axis, lines, "skill (0: prompt's mean, 1: truth)")


def cost(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against seconds per value, a panel per noise level, with the front of the best."""
    frame = facet.frame[(facet.frame["estimator_build"] != "truth") & facet.frame["rmse"].notna()]
    frame = frame[(frame["rmse"] > scales.NOTHING * frame["rmse"].max()) & (frame["seconds"] > 0)]
    if frame.empty:
        return None
    sigmas, named = sorted(frame["sigma"].unique()), _named(frame)
    out, axes = drawing.figure(facet.title, len(sigmas))
    for sigma, axis in zip(sigmas, axes, strict=True):
        rows = frame[frame["sigma"] == sigma]
        axis.set_yscale("log")
        scales.durations(axis, frame["seconds"].to_numpy())
        _front(axis, candidates(rows))
        level = rows.loc[rows["estimator_build"] == "constant", "rmse"]
        for height in level:
            axis.axhline(height, color="#7f7f7f", linewidth=0.9, linestyle="--", zorder=1)
        _scattered(axis, rows, named, look, "seconds", "rmse")
        scales.floor_level(axis, drawing.floor(rows))
        axis.set_title(rf"$\sigma$ = {sigma:g}")
        scales.plain_logs(axis)
    drawing.label(out, axes, "time per value", "RMSE (units of the reward)")
    drawing.legend(out, axes)
    return out


def ranking(facet: Facet, look: Palette) -> Figure | None:
    """Pairs put in true order, and rank correlation, against the noise level."""
    shown = {"pairwise": "pairs in true order", "spearman": "Spearman correlation"}
    lines = {name: _lines(facet, look, "sigma", name) for name in shown}
    if not any(lines.values()):
        return None
    out, axes = drawing.figure(
        _title(facet, lines["pairwise"], "pairwise"), len(shown), share_y="none"
    )
    for (name, label), axis, chance in zip(shown.items(), axes, (0.5, 0.0), strict=True):
        drawing.points(axis, lines[name])
        axis.axhline(chance, color="#888888", linewidth=0.8, linestyle=":", zorder=1)
        axis.annotate("chance", (0.02, chance), xycoords=("axes fraction", "data"), va="bottom",
                      fontsize=7, color="#777777")  # fmt: skip
        axis.set_title(label)
        scales.noise_levels(axis, facet.frame["sigma"].unique())
    drawing.legend(out, axes)
    return out


def gradient(facet: Facet, look: Palette) -> Figure | None:
    """Cosine between the estimator's gradient and the true one, against the noise level."""
    frame = facet.frame[certainty.has_gradient(facet.frame)]
    lines = _lines(facet._replace(frame=frame), look, "sigma", "gradient_cosine")
    if not lines:
        return None
    out, (axis,) = drawing.figure(_title(facet, lines, "gradient_cosine"))
    drawing.points(axis, lines)
    axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
    return _finished(out, axis, lines, "cosine with the true gradient")


def realised(facet: Facet, look: Palette) -> Figure | None:
    """Bias against realised clean rewards, against bias to the truth: a diagonal."""
    frame = facet.frame[facet.frame["bias_realised"].notna() & facet.frame["bias"].notna()]
    if frame.empty:
        return None
    out, (axis,) = drawing.figure(facet.title, height=4.4)
    ends = np.array([frame["bias"].min(), frame["bias"].max()])
    ends += np.array([-0.06, 0.06]) * max(float(np.ptp(ends)), 1e-12)
    axis.plot(ends, ends, color="#888888", linewidth=0.8, zorder=1)
    _scattered(axis, frame, _named(frame), look, "bias", "bias_realised")
    axis.set_xlabel("bias against the truth, one point per noise level")
    axis.set_ylabel("bias against realised clean rewards")
    drawing.legend(out, [axis])
    return out


FIGURES: dict[str, Callable[[Facet, Palette], Figure | None]] = {
    "bias": bias,
    "variance": variance,
    "rmse": error,
    "skill": skill,
    "cost": cost,
    "ranking": ranking,
    "gradient": gradient,
    "particles": sweeps.particles,
    "steps": sweeps.steps,
    "realised": realised,
}


def _lines(facet: Facet, look: Palette, x: str, y: str) -> list[Series]:
    frame = facet.frame
    lines = [
        drawing.series(frame[frame["estimator"] == name], name, look.styles[name], x, y)
        for name in headline(frame[frame[y].notna()])
    ]
    return [s for s in lines if s.x.size]


def _named(frame: pd.DataFrame) -> list[str]:
    """The estimators that a plot of points names: all, while a legend can carry them."""
    every = list(families(frame).index.astype(str))
    return every if len(every) <= NAMES else headline(frame)


def _scattered(
    axis: Axes, rows: pd.DataFrame, named: list[str], look: Palette, x: str, y: str
) -> None:
    """A point a row, those of no named estimator in grey."""
    others = rows[~rows["estimator"].isin(named)]
    if len(others):
        axis.plot(others[x], others[y], ".", color="#bbbbbb", markersize=3, zorder=1,
                  label="all others")  # fmt: skip
    for name, style in look.styles.items():
        if name in named:
            one = drawing.series(rows[rows["estimator"] == name], name, style, x, y)
            drawing.points(axis, [one], joined=False)


def _title(facet: Facet, lines: list[Series], metric: str) -> str:
    """The facet's title, and whether all estimators that have the metric are shown."""
    every = facet.frame.loc[facet.frame[metric].notna(), "estimator"].nunique()
    few = every > MOST and len(lines) < every
    return f"{facet.title} ({len(lines)} of {every} estimators)" if few else facet.title


def _finished(out: Figure, axis: Axes, lines: list[Series], label: str) -> Figure:
    scales.noise_levels(axis, {float(x) for s in lines for x in s.x})
    axis.set_ylabel(label)
    end_labels(out, axis, lines)
    return out


def _front(axis: Axes, rows: pd.DataFrame) -> None:
    """The cheapest way to every RMSE."""
    ordered = rows.sort_values(["seconds", "rmse"])
    best = ordered["rmse"].cummin()
    front = ordered[ordered["rmse"] == best].drop_duplicates("rmse")
    axis.step(front["seconds"], front["rmse"], where="post", color="#bbbbbb", linewidth=3.5,
              alpha=0.6, zorder=1, solid_capstyle="round", label="best at its cost")  # fmt: skip
