"""Figures of Monte Carlo's own settings: the number of rollouts N and the solver steps k."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report import drawing, scales
from bench.report.drawing import Series
from bench.report.estimators import MARKERS, Palette, Style, families, swept
from bench.report.facets import Facet
from bench.stats import paired

COLUMNS = 3  # noise levels in the figure of solver steps


def particles(facet: Facet, look: Palette) -> Figure | None:
    """RMSE against the number of rollouts N, with a guide of slope -1/2."""
    sweeps = swept(facet.frame, "particles")
    if not sweeps:
        return None
    sigmas = sorted({sigma for rows in sweeps.values() for sigma in rows["sigma"]})
    out, axes = drawing.figure(facet.title, len(sigmas))
    counts = np.unique(np.concatenate([rows["estimator.particles"] for rows in sweeps.values()]))
    for sigma, axis in zip(sigmas, axes, strict=True):
        lines = _sweep_lines(sweeps, look, sigma, "estimator.particles", "rmse")
        scales.powers_of_two(axis, counts, "")
        lines, _ = scales.log_axis(axis, lines)
        drawing.points(axis, lines)
        for s in lines[:1]:
            guide = s.y[0] * (counts / s.x[0]) ** -0.5
            axis.plot(counts, guide, ":", color="#555555", linewidth=1, label=r"slope $-1/2$")
        scales.floor_level(axis, drawing.floor(facet.frame[facet.frame["sigma"] == sigma]))
        axis.set_title(rf"$\sigma$ = {sigma:g}")
        scales.plain_logs(axis)
    drawing.label(out, axes, "rollouts N", "RMSE (units of the reward)")
    drawing.legend(out, axes)
    return out


def steps(facet: Facet, look: Palette) -> Figure | None:
    """Bias per latent against solver steps k; below, what more steps would remove of its mean.

    Above stands the root of the squared bias: in the mean bias, errors of opposite sign cancel.
    """
    sweeps = swept(facet.frame, "steps")
    if not sweeps:
        return None
    every = sorted({sigma for rows in sweeps.values() for sigma in rows["sigma"]})
    sigmas = [every[k] for k in sorted({0, len(every) // 2, len(every) - 1})]
    out, axes = drawing.figure(facet.title, 2 * COLUMNS, share_y="row")
    counts = np.unique(np.concatenate([rows["estimator.steps"] for rows in sweeps.values()]))
    for column in range(len(sigmas), COLUMNS):
        axes[column].remove()
        axes[column + COLUMNS].remove()
    for column, sigma in enumerate(sigmas):
        upper, lower = axes[column], axes[column + COLUMNS]
        whole = {name: rooted(rows) for name, rows in sweeps.items()}
        apart = {name: _against_most_steps(rows) for name, rows in sweeps.items()}
        for axis, shown, y in ((upper, whole, "rooted"), (lower, apart, "discretisation")):
            lines = _sweep_lines(shown, look, sigma, "estimator.steps", y)
            scales.powers_of_two(axis, counts, "")
            axis.yaxis.set_major_locator(MaxNLocator(5))
            axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
            drawing.points(axis, lines)
        upper.set_title(rf"$\sigma$ = {sigma:g}")
    axes[0].set_ylabel("root of the squared bias")
    axes[COLUMNS].set_ylabel("mean bias \u2212 that at most steps")
    for axis in axes[COLUMNS:]:
        axis.set_xlabel("solver steps k")
    drawing.legend(out, axes[: len(sigmas)])
    return out


def _sweep_lines(
    sweeps: dict[str, pd.DataFrame], look: Palette, sigma: float, x: str, y: str
) -> list[Series]:
    out = []
    for k, (name, rows) in enumerate(sweeps.items()):
        hue = look.hues[families(rows).iloc[0]]
        style = Style(hue, MARKERS[k % len(MARKERS)], "-")
        out.append(drawing.series(rows[rows["sigma"] == sigma], name, style, x, y))
    return [s for s in out if s.x.size]


def rooted(rows: pd.DataFrame) -> pd.DataFrame:
    """The root of the squared bias with its interval; an estimate below 0 keeps its sign."""
    roots = {}
    for end in ("", "_lo", "_hi"):
        squared = rows[f"squared_bias{end}"].astype(float)
        roots[f"rooted{end}"] = np.sign(squared) * squared.abs() ** 0.5
    return rows.assign(**roots)


def _against_most_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Bias minus that of the same kernel and noise level at the most steps, paired by prompt."""
    out = []
    for _, row in rows.iterrows():
        kin = rows[rows["sigma"] == row["sigma"]]
        most = kin.loc[kin["estimator.steps"].idxmax()]
        gap = paired(row["bias_by_prompt"], most["bias_by_prompt"]).difference
        out.append((*gap[:3],))
    names = ["discretisation", "discretisation_lo", "discretisation_hi"]
    return rows.assign(**pd.DataFrame(out, columns=names, index=rows.index))
