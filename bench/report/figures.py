"""The figures of a facet: each a function of its rows, None where the rows lack what it shows."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from bench.report import drawing
from bench.report.drawing import Series
from bench.report.estimators import MARKERS, Palette, Style, families, headline
from bench.report.facets import Facet
from bench.report.trust import candidates
from bench.stats import paired

LINEAR_SKILL = 1.0  # below minus this the axis is logarithmic: some are very bad
SWEEP = 2  # settings make a sweep
SIGMAS_OF_STEPS = 3  # noise levels in the figure of solver steps


def bias(facet: Facet, look: Palette) -> Figure | None:
    """Bias against the noise level."""
    lines = _lines(facet, look, "sigma", "bias")
    if not lines:
        return None
    out, (axis,) = drawing.figure(facet.title)
    scale = drawing.signed_axis(axis, lines)
    drawing.points(axis, lines)
    return _finish_line_plot(out, axis, lines, f"bias (units of the reward{scale})")


def error(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against the noise level."""
    lines = _lines(facet, look, "sigma", "rmse")
    if not lines:
        return None
    out, (axis,) = drawing.figure(facet.title)
    visible, note = drawing.log_axis(axis, lines)
    axis.set_title(note, loc="right", fontsize=7, color="#555555")
    drawing.points(axis, visible)
    drawing.plain_logs(axis)
    return _finish_line_plot(out, axis, visible, "RMSE (units of the reward)")


def skill(facet: Facet, look: Palette) -> Figure | None:
    """Skill against the noise level: 0 is the prompt's mean, 1 the truth."""
    lines = _lines(facet, look, "sigma", "skill")
    if not lines:
        return None
    out, (axis,) = drawing.figure(facet.title)
    drawing.points(axis, lines)
    for level in (0, 1):
        axis.axhline(level, color="#888888", linewidth=0.8, zorder=1)
    if min(float(s.y.min()) for s in lines) < -LINEAR_SKILL:
        axis.set_yscale("symlog", linthresh=LINEAR_SKILL, linscale=2)
        lowest = -(10 ** np.ceil(np.log10(-axis.get_ylim()[0])))
        decades = -(10.0 ** np.arange(np.log10(-lowest), 0, -1))
        ticks = [*decades, -1, -0.5, 0, 0.5, 1]
        axis.set_yticks(ticks, [f"{tick:g}".replace("-", "\u2212") for tick in ticks])
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(top=1.1)
    return _finish_line_plot(out, axis, lines, "skill (0: prompt's mean, 1: truth)")


def cost(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against seconds per value, a panel per noise level, with the front of the best."""
    frame = facet.frame[(facet.frame["estimator_build"] != "truth") & facet.frame["rmse"].notna()]
    frame = frame[(frame["rmse"] > drawing.NOTHING * frame["rmse"].max()) & (frame["seconds"] > 0)]
    if frame.empty:
        return None
    sigmas = sorted(frame["sigma"].unique())
    out, axes = drawing.figure(facet.title, len(sigmas))
    for sigma, axis in zip(sigmas, axes, strict=True):
        rows = frame[frame["sigma"] == sigma]
        axis.set_yscale("log")
        drawing.durations(axis)
        _front(axis, candidates(rows))
        level = rows.loc[rows["estimator_build"] == "constant", "rmse"]
        for height in level:
            axis.axhline(height, color="#7f7f7f", linewidth=0.9, linestyle="--", zorder=1)
        for name, style in look.styles.items():
            one = drawing.series(rows[rows["estimator"] == name], name, style, "seconds", "rmse")
            drawing.points(axis, [one], joined=False)
        axis.set_title(rf"$\sigma$ = {sigma:g}")
        drawing.plain_logs(axis)
    drawing.label(out, axes, "time per value", "RMSE (units of the reward)")
    drawing.legend(out, axes)
    return out


def ranking(facet: Facet, look: Palette) -> Figure | None:
    """Pairs put in true order, and rank correlation, against the noise level."""
    shown = {"pairwise": "pairs in true order", "spearman": "Spearman correlation"}
    lines = {name: _lines(facet, look, "sigma", name) for name in shown}
    if not any(lines.values()):
        return None
    out, axes = drawing.figure(facet.title, len(shown), share_y="none")
    for (name, label), axis, chance in zip(shown.items(), axes, (0.5, 0.0), strict=True):
        drawing.points(axis, lines[name])
        axis.axhline(chance, color="#888888", linewidth=0.8, linestyle=":", zorder=1)
        axis.annotate("chance", (0.02, chance), xycoords=("axes fraction", "data"), va="bottom",
                      fontsize=7, color="#777777")  # fmt: skip
        axis.set_title(label)
        drawing.noise_levels(axis, facet.frame["sigma"].unique())
    drawing.legend(out, axes)
    return out


def gradient(facet: Facet, look: Palette) -> Figure | None:
    """Cosine between the estimator's gradient and the true one, against the noise level."""
    lines = _lines(facet, look, "sigma", "gradient_cosine")
    if not lines:
        return None
    out, (axis,) = drawing.figure(facet.title)
    drawing.points(axis, lines)
    axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
    return _finish_line_plot(out, axis, lines, "cosine with the true gradient")


def particles(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against the number of rollouts N, with a guide of slope -1/2."""
    sweeps = _sweeps(facet.frame, "particles", ("kernel", "steps", "value"))
    if not sweeps:
        return None
    sigmas = sorted({sigma for rows in sweeps.values() for sigma in rows["sigma"]})
    out, axes = drawing.figure(facet.title, len(sigmas))
    counts = np.unique(np.concatenate([rows["estimator.particles"] for rows in sweeps.values()]))
    for sigma, axis in zip(sigmas, axes, strict=True):
        lines = _sweep_lines(sweeps, look, sigma, "estimator.particles", "rmse")
        drawing.powers_of_two(axis, counts, "")
        lines, _ = drawing.log_axis(axis, lines)
        drawing.points(axis, lines)
        for s in lines[:1]:
            guide = s.y[0] * (counts / s.x[0]) ** -0.5
            axis.plot(counts, guide, ":", color="#555555", linewidth=1, label=r"slope $-1/2$")
        axis.set_title(rf"$\sigma$ = {sigma:g}")
        drawing.plain_logs(axis)
    drawing.label(out, axes, "rollouts N", "RMSE (units of the reward)")
    drawing.legend(out, axes)
    return out


def steps(facet: Facet, look: Palette) -> Figure | None:
    """Bias against solver steps k; below, the part of it that more steps would remove."""
    sweeps = _sweeps(facet.frame, "steps", ("kernel", "value"))
    if not sweeps:
        return None
    every = sorted({sigma for rows in sweeps.values() for sigma in rows["sigma"]})
    sigmas = [every[k] for k in sorted({0, len(every) // 2, len(every) - 1})]
    out, axes = drawing.figure(facet.title, 2 * SIGMAS_OF_STEPS, share_y="row")
    counts = np.unique(np.concatenate([rows["estimator.steps"] for rows in sweeps.values()]))
    for column in range(len(sigmas), SIGMAS_OF_STEPS):
        axes[column].remove()
        axes[column + SIGMAS_OF_STEPS].remove()
    for column, sigma in enumerate(sigmas):
        upper, lower = axes[column], axes[column + SIGMAS_OF_STEPS]
        apart = {name: _against_most_steps(rows) for name, rows in sweeps.items()}
        for axis, shown, y in ((upper, sweeps, "bias"), (lower, apart, "discretisation")):
            lines = _sweep_lines(shown, look, sigma, "estimator.steps", y)
            drawing.powers_of_two(axis, counts, "")
            axis.yaxis.set_major_locator(MaxNLocator(5))
            axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
            drawing.points(axis, lines)
        upper.set_title(rf"$\sigma$ = {sigma:g}")
    axes[0].set_ylabel("bias")
    axes[SIGMAS_OF_STEPS].set_ylabel("bias \u2212 bias at most steps")
    for axis in axes[SIGMAS_OF_STEPS:]:
        axis.set_xlabel("solver steps k")
    drawing.legend(out, axes[: len(sigmas)])
    return out


def realised(facet: Facet, look: Palette) -> Figure | None:
    """Bias against realised clean rewards, against bias to the truth: should lie on the diagonal."""
    frame = facet.frame[facet.frame["bias_realised"].notna() & facet.frame["bias"].notna()]
    if frame.empty:
        return None
    out, (axis,) = drawing.figure(facet.title, height=4.4)
    ends = np.array([frame["bias"].min(), frame["bias"].max()])
    ends += np.array([-0.06, 0.06]) * max(float(np.ptp(ends)), 1e-12)
    axis.plot(ends, ends, color="#888888", linewidth=0.8, zorder=1)
    for name, style in look.styles.items():
        rows = frame[frame["estimator"] == name]
        one = drawing.series(rows, name, style, "bias", "bias_realised")
        drawing.points(axis, [one], joined=False)
    axis.set_xlabel("bias against the truth, one point per noise level")
    axis.set_ylabel("bias against realised clean rewards")
    drawing.legend(out, [axis])
    return out


FIGURES: dict[str, Callable[[Facet, Palette], Figure | None]] = {
    "bias": bias,
    "rmse": error,
    "skill": skill,
    "cost": cost,
    "ranking": ranking,
    "gradient": gradient,
    "particles": particles,
    "steps": steps,
    "realised": realised,
}


def _lines(facet: Facet, look: Palette, x: str, y: str) -> list[Series]:
    frame = facet.frame
    lines = [
        drawing.series(frame[frame["estimator"] == name], name, look.styles[name], x, y)
        for name in headline(frame[frame[y].notna()])
    ]
    return [s for s in lines if s.x.size]


def _finish_line_plot(out: Figure, axis: Axes, lines: list[Series], label: str) -> Figure:
    drawing.noise_levels(axis, {float(x) for s in lines for x in s.x})
    axis.set_ylabel(label)
    out.draw_without_rendering()
    drawing.end_labels(axis, lines)
    return out


def _front(axis: Axes, rows: pd.DataFrame) -> None:
    """The cheapest way to every RMSE."""
    ordered = rows.sort_values(["seconds", "rmse"])
    best = ordered["rmse"].cummin()
    front = ordered[ordered["rmse"] == best].drop_duplicates("rmse")
    axis.step(front["seconds"], front["rmse"], where="post", color="#bbbbbb", linewidth=3.5,
              alpha=0.6, zorder=1, solid_capstyle="round", label="best at its cost")  # fmt: skip


def _sweeps(frame: pd.DataFrame, over: str, fixed: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Name to the rows of every family that varies one setting while the others stay."""
    needed = {f"estimator.{name}" for name in (over, *fixed)}
    if not needed <= set(frame.columns):
        return {}
    keys = ["estimator_build", *(f"estimator.{name}" for name in fixed)]
    groups: dict[str, pd.DataFrame] = {}
    for values, rows in frame.dropna(subset=sorted(needed)).groupby(keys, sort=False):
        at = dict(zip(fixed, values[1:], strict=True))
        if over == "steps":  # of several N the largest: least noise on the bias
            rows = rows[rows["estimator.particles"] == rows["estimator.particles"].max()]  # noqa: PLW2901
        if rows[f"estimator.{over}"].nunique() >= SWEEP and at["kernel"] != "exact":
            at |= {"particles": rows["estimator.particles"].iloc[0]}
            other = f"N={at['particles']:g}" if over == "steps" else f"k={at['steps']:g}"
            groups[f"{at['kernel']} {other} ({at['value']})"] = rows
    return groups


def _sweep_lines(
    sweeps: dict[str, pd.DataFrame], look: Palette, sigma: float, x: str, y: str
) -> list[Series]:
    out = []
    for k, (name, rows) in enumerate(sweeps.items()):
        hue = look.hues[families(rows).iloc[0]]
        style = Style(hue, MARKERS[k % len(MARKERS)], "-")
        out.append(drawing.series(rows[rows["sigma"] == sigma], name, style, x, y))
    return [s for s in out if s.x.size]


def _against_most_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Bias minus the bias at the most steps of the same kernel and noise level, paired by prompt."""
    out = []
    for _, row in rows.iterrows():
        kin = rows[rows["sigma"] == row["sigma"]]
        most = kin.loc[kin["estimator.steps"].idxmax()]
        gap = paired(row["bias_by_prompt"], most["bias_by_prompt"]).difference
        out.append((*gap[:3],))
    names = ["discretisation", "discretisation_lo", "discretisation_hi"]
    return rows.assign(**pd.DataFrame(out, columns=names, index=rows.index))
