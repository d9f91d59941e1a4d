"""Figures of the align task."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.meter import STAGES
from bench.report import drawing, numbers
from bench.report.align.frame import PLAIN_STAGE, STAGE, judged, staged
from bench.report.align.insight import INSIGHT, gain_of
from bench.report.align.looks import COLOURS, looks
from bench.report.align.memory import held, memory
from bench.report.estimators import MARKERS, Style
from bench.report.facets import Facet
from bench.report.sheet import Drawn
from bench.stats import Array, Interval, mean_interval

SCALES = {"target": ("target reward", 1.0), "correct": ("share that shows the prompt, %", 100.0),
          "pick": ("held-out judge", 1.0)}  # fmt: skip
INCH = 0.62  # of a picture
PLAIN = Style("#000000", "X", "none")
CAPTIONS = {
    "quality": "What samples gain over unsteered ones, paired by prompt, against what they take. "
    "Lines: the strengths that were tried, on prompts of their own; filled: the chosen strength "
    "on prompts that nothing was chosen on, with 95 % intervals.",
    "tuning": "Every strength that was tried; ringed: the chosen one. Dashed: unsteered samples "
    "of these prompts.",
    "trade": "Gain in target reward against the change in the share that shows the prompt, a line "
    "over the strengths of each method, on the prompts for tuning, the same noise for all.",
    "steps": "A guided step over an unsteered one, timed in turns, with 95 % intervals, what "
    "FLOPs predict (open), and live memory.",
    "memory": "Live memory of a guided step, the leanest at the bottom; each bar is what a method "
    "holds above the next leaner one.",
    "stages": "The time of a guided step by stage, in unsteered steps. Blocks: those of the "
    "generator, estimator's and sampler's. What is computed again in the backward pass belongs "
    "to that.",
    "particles": "Effective share of particles and distinct ancestors left, means over samples.",
    "scaling": "Target reward against seconds as particles and proposals grow, with 95 % "
    "intervals.",
    "target": "Distance to the tilted target, and target reward over its draws, against the "
    "number of particles; both are 0 for samples of the target. Dotted: what draws of the target "
    "have.",
    "errors": "How well an estimator ranks latents, and points where the truth does, against what "
    "pushing along its gradient in the window before gains: a point for each estimator and "
    "window.",
    "samples": "One sample of each of the first prompts, the same noise for every method.",
}


def figures(facet: Facet) -> list[Drawn]:
    """All figures of a facet, those that have something to show."""
    rows = facet.frame
    there = {
        "quality": len(judged(rows)) > 1,
        "tuning": (rows["phase"] == "tune").any(),
        "trade": "correct" in rows and rows.loc[rows["phase"] == "tune", "correct"].notna().any(),
        "steps": (rows["phase"] == "cost").any(),
        "memory": len(held(rows)) > 1,
        "stages": len(staged(rows)) > 0,
        "particles": any(isinstance(log, list) and log for log in judged(rows)["log"]),
        "scaling": _scales(judged(rows)),
        "target": "energy" in rows and judged(rows)["energy"].notna().sum() > 1,
        "errors": (rows["phase"] == "error").any(),
        "samples": "pictures" in rows and rows["pictures"].notna().any(),
    }
    return [
        Drawn(name, CAPTIONS[name], draw(facet)) for name, draw in DRAWS.items() if there[name]
    ]


def _shown(rows: pd.DataFrame) -> list[str]:
    return [m for m in SCALES if f"{m}_by_prompt" in rows and rows[m].notna().any()]


def quality(facet: Facet) -> Figure:
    """Gains in target, verifier and judge against seconds."""
    rows, look = facet.frame, looks(facet.frame)
    shown = _shown(rows)
    out, axes = drawing.figure(f"{facet.title}: worth against time", len(shown), share_y="none")
    for axis, metric in zip(axes, shown, strict=True):
        title, scale = SCALES[metric]
        axis.set_xscale("log")
        trials = rows[(rows["phase"] == "tune") & rows[metric].notna()].sort_values("strength")
        for name, part in trials.groupby("method", sort=False):
            gains = [scale * _gain(rows, row, metric, "unsteered tune")[0]
                     for _, row in part.iterrows()]  # fmt: skip
            axis.plot(part["seconds_all"], gains, color=look[str(name)].colour, marker=".",
                      markersize=3, linewidth=0.7, alpha=0.6)  # fmt: skip
        for _, row in rows[rows["phase"] == "eval"].iterrows():
            _point(axis, row["seconds_all"], scale * np.array(_gain(rows, row, metric)[:3]),
                   look[str(row["method"])], str(row["method"]))  # fmt: skip
        plain = rows[rows["phase"] == "unsteered"]["seconds_all"].median()
        _point(axis, plain, np.zeros(3), PLAIN, "unsteered")
        axis.axhline(0, color="#888888", linestyle=":", linewidth=0.9, zorder=1)
        axis.set_title(f"gain in {title}")
        _plain_ticks(axis)
    drawing.label(out, axes, "seconds per sample", "")
    drawing.legend(out, axes, columns=2)
    return out


def _gain(rows: pd.DataFrame, row: pd.Series, metric: str, phase: str = "unsteered") -> Interval:
    """A row's gain over unsteered samples of its cell, paired by prompt."""
    base = rows[(rows["cell"] == row["cell"]) & (rows["phase"] == phase)].iloc[0]
    return mean_interval(row[f"{metric}_by_prompt"] - base[f"{metric}_by_prompt"])


def _point(axis: Axes, x: float, y: Array, style: Style, name: str) -> None:
    """A point with its interval: mean, lower and upper end."""
    ends = np.array([[y[0] - y[1]], [y[2] - y[0]]])
    bars = np.maximum(ends, 0) if np.isfinite(ends).all() else None  # one prompt has none
    axis.errorbar([x], [y[0]], yerr=bars, color=style.colour, marker=style.marker,
                  markersize=5, elinewidth=0.9, linestyle="none", label=name,
                  markeredgecolor="white")  # fmt: skip


def _plain_ticks(axis: Axes) -> None:
    """Numbers as people write them on a logarithmic axis."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def tuning(facet: Facet) -> Figure:
    """Target, judge and verifier against strength."""
    rows, look = facet.frame, looks(facet.frame)
    shown, trials = _shown(rows), rows[rows["phase"] == "tune"]
    out, axes = drawing.figure(
        f"{facet.title}: strengths that were tried", len(shown), share_y="none"
    )
    plain = rows[rows["phase"] == "unsteered tune"]
    for axis, metric in zip(axes, shown, strict=True):
        title, scale = SCALES[metric]
        axis.set_xscale("log")
        if len(plain):
            axis.axhline(scale * plain.iloc[0][metric], color="#888888", linestyle="--",
                         linewidth=0.9)  # fmt: skip
        known = trials[trials[metric].notna()].sort_values("strength")
        for name, part in known.groupby("method", sort=False):
            style = look[str(name)]
            axis.plot(part["strength"], scale * part[metric], color=style.colour,
                      marker=style.marker, label=str(name), markeredgecolor="white")  # fmt: skip
            best = part[part["chosen"].astype(bool)]
            axis.plot(best["strength"], scale * best[metric], color=style.colour, marker="o",
                      markersize=11, markerfacecolor="none", linestyle="none")  # fmt: skip
        axis.set_title(title)
        _plain_ticks(axis)
    drawing.label(out, axes, "strength", "")
    drawing.legend(out, axes, columns=2)
    return out


def trade(facet: Facet) -> Figure:
    """Gain in target reward against what happens to the prompt, over all strengths."""
    rows, look = facet.frame, looks(facet.frame)
    trials = rows[(rows["phase"] == "tune") & rows["correct"].notna()].sort_values("strength")
    out, (axis,) = drawing.figure(f"{facet.title}: what a gain in target reward costs")
    for name, part in trials.groupby("method", sort=False):
        style = look[str(name)]
        x, y = (
            [scale * _gain(rows, row, metric, "unsteered tune")[0] for _, row in part.iterrows()]
            for metric, scale in (("target", 1.0), ("correct", 100.0))
        )
        axis.plot(x, y, color=style.colour, marker=style.marker, label=str(name),
                  markeredgecolor="white")  # fmt: skip
    axis.axhline(0, color="#888888", linestyle=":", linewidth=0.9, zorder=1)
    axis.set_xlabel("gain in target reward")
    axis.set_ylabel("gain in share that shows the prompt, %")
    drawing.legend(out, [axis], columns=2)
    return out


def steps(facet: Facet) -> Figure:
    """Ratios of time at every batch, and memory."""
    rows = facet.frame[facet.frame["phase"] == "cost"]
    names = list(dict.fromkeys(str(name) for name in rows["method"]))
    batches = sorted(rows["batch"].unique())
    out = Figure(figsize=(7.6, 1.3 + 0.3 * len(names)), layout="constrained")
    drawing.head(out, f"{facet.title}: a guided step")
    left, right = out.subplots(1, 2, sharey=True)
    for k, batch in enumerate(batches):
        part = rows[rows["batch"] == batch]
        y = np.array([names.index(str(n)) for n in part["method"]])
        y = y + 0.22 * (k - (len(batches) - 1) / 2)
        colour = COLOURS[k]
        bars = np.array([part["over_unsteered"] - part["over_unsteered_lo"],
                         part["over_unsteered_hi"] - part["over_unsteered"]])  # fmt: skip
        left.errorbar(part["over_unsteered"], y, xerr=np.maximum(bars, 0), fmt="o", markersize=3.5,
                      elinewidth=1, color=colour, label=f"batch {batch:g}")  # fmt: skip
        left.plot(part["over_unsteered_flops"], y, marker="o", markersize=5.5, linestyle="none",
                  markerfacecolor="none", markeredgecolor=colour)  # fmt: skip
        right.plot(part["memory"] / batch, y, marker="o", markersize=3.5, linestyle="none",
                   color=colour)  # fmt: skip
    left.axvline(1.0, color="#888888", linestyle=":", linewidth=0.9)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_title("time over an unsteered step")
    right.set_title("live memory a sample")
    sizes = [digit * 10.0**power for power in range(13) for digit in (1, 2, 5)]
    for axis, marks, said in (
        (left, (1, 1.5, 2, 3, 5, 8, 12, 20, 40), "{:g}".format),
        (right, sizes, numbers.size),
    ):
        axis.set_xscale("log")
        axis.minorticks_off()
        ticks = [n for n in marks if _inside(axis, n)]
        axis.set_xticks(ticks, [said(n) for n in ticks])
    drawing.legend(out, [left])
    return out


def stages(facet: Facet) -> Figure:
    """Stacked bars: a method a line, a batch size a panel."""
    rows = staged(facet.frame)
    names = ["unsteered", *dict.fromkeys(str(name) for name in rows["method"])]
    batches = sorted(rows["batch"].unique())
    out = Figure(figsize=(7.6, 1.4 + 0.26 * len(names)), layout="constrained")
    drawing.head(out, f"{facet.title}: where the time of a guided step goes")
    grid = out.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for axis, batch in zip(grid, batches, strict=True):
        part = rows[rows["batch"] == batch].drop_duplicates("method").set_index("method")
        left = np.zeros(len(names))
        for stage, colour in zip(STAGES, COLOURS, strict=False):
            plain = part[f"{PLAIN_STAGE}{stage}"].median()
            x = np.array([plain, *part[f"{STAGE}{stage}"].reindex(names[1:]).fillna(0)])
            axis.barh(range(len(names)), x, left=left, height=0.7, color=colour, label=stage)
            left = left + x
        axis.axvline(1.0, color="#888888", linestyle=":", linewidth=0.9)
        axis.set_title(f"batch {batch:g}")
        axis.set_xlabel("unsteered steps")
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    drawing.legend(out, list(grid), columns=len(STAGES))
    return out


def _inside(axis: Axes, x: float) -> bool:
    lo, hi = axis.get_xlim()
    return lo <= x <= hi


def particles(facet: Facet) -> Figure:
    """Effective share and ancestors against the step."""
    rows, look = judged(facet.frame), looks(facet.frame)
    out, axes = drawing.figure(f"{facet.title}: particles", 2, share_y="none")
    for _, row in rows.iterrows():
        log, style = row["log"], look[str(row["method"])]
        if not isinstance(log, list) or not log:
            continue
        k = [entry["step"] for entry in log]
        n = row["algorithm.particles"]
        for axis, name, by in zip(axes, ("ess", "ancestors"), (n, 1), strict=True):
            y = [float(np.mean(entry[name])) / by for entry in log]
            axis.plot(k, y, color=style.colour, marker=style.marker, label=str(row["method"]),
                      markeredgecolor="white")  # fmt: skip
    axes[0].set_title("effective share of N")
    axes[1].set_title("ancestors left")
    drawing.label(out, axes, "step", "")
    drawing.legend(out, axes, columns=2)
    return out


def samples(facet: Facet) -> Figure:
    """A grid of pictures: a method a row, a prompt a column."""
    rows = facet.frame[facet.frame["pictures"].notna()]
    plain = rows["phase"] == "unsteered"
    rows = pd.concat([rows[plain].drop_duplicates(["kernel", "steps"]), rows[~plain]])
    count = max(len(x) for x in rows["pictures"])
    height = 0.8 + (INCH + 0.06) * len(rows)
    out = Figure(figsize=(2.3 + INCH * count, height), layout="constrained")
    drawing.head(out, f"{facet.title}: samples")
    grid = out.subplots(len(rows), count, squeeze=False)
    for line, (_, row) in zip(grid, rows.iterrows(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, picture in zip(line, row["pictures"], strict=False):
            axis.imshow(np.moveaxis(picture, 0, 2), interpolation="nearest")
        name = "unsteered" if row["phase"] == "unsteered" else str(row["method"])
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right",
                     va="center", fontsize=7)  # fmt: skip
    return out


def _scales(rows: pd.DataFrame) -> bool:
    """Whether some estimator is there with several numbers of particles."""
    if "algorithm.particles" not in rows:
        return False
    return bool((rows.groupby("estimator")["algorithm.particles"].nunique() > 1).any())


def _families(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows by estimator and number of proposals."""
    m = rows.get("algorithm.proposals", pd.Series(1.0, rows.index)).fillna(1)
    several = m.groupby(rows["estimator"]).nunique() > 1
    names = [
        f"{name}, M = {k:g}" if several[name] else str(name)
        for name, k in zip(rows["estimator"], m, strict=True)
    ]
    return [(str(name), part) for name, part in rows.groupby(names, sort=False)]


def scaling(facet: Facet) -> Figure:
    """Target reward against seconds, a line for each way to spend more."""
    rows = judged(facet.frame)
    out, axes = drawing.figure(f"{facet.title}: more particles, more proposals", 1)
    for k, (name, part) in enumerate(_families(rows)):
        style = Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], "-")
        drawing.points(axes[0], [drawing.series(part, name, style, "seconds_all", "target")])
        for _, row in part.iterrows():
            n = row.get("algorithm.particles", np.nan)
            if np.isfinite(n):
                axes[0].annotate(f"{n:g}", (row["seconds_all"], row["target"]), fontsize=6.5,
                                 xytext=(3, 3), textcoords="offset points")  # fmt: skip
    axes[0].set_xlabel("seconds per sample")
    axes[0].set_ylabel("target reward")
    drawing.legend(out, axes, columns=2)
    return out


def target(facet: Facet) -> Figure:
    """Energy distance and excess reward against the number of particles."""
    rows = judged(facet.frame)
    rows = rows[rows["energy"].notna()].assign(
        n=rows.get("algorithm.particles", pd.Series(1.0, rows.index)).fillna(1)
    )
    out, axes = drawing.figure(f"{facet.title}: the tilted target", 2, share_y="none")
    titles = {"energy": "energy distance", "excess": "target reward over the target's"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        axis.set_xscale("log")
        shown = [
            drawing.series(part, label, Style(COLOURS[k], MARKERS[k], "-"), "n", name)
            for k, (label, part) in enumerate(_families(rows))
        ]
        drawing.points(axis, shown)
        level = rows["energy_floor"].mean() if name == "energy" else 0.0
        axis.axhline(level, color="#888888", linestyle=":", linewidth=0.9)
        ticks = sorted(rows["n"].unique())
        axis.set_xticks(ticks, [f"{n:g}" for n in ticks])
        axis.minorticks_off()
        axis.set_title(title)
    drawing.label(out, axes, "particles", "")
    drawing.legend(out, axes, columns=2)
    return out


def errors(facet: Facet) -> Figure:
    """Rank correlation and gradient cosine against the gain of steering."""
    rows = facet.frame
    known = rows[rows["phase"] == "error"]
    gains = {row["cell"]: gain_of(rows, row) for _, row in judged(rows).iterrows()}
    out, axes = drawing.figure(f"{facet.title}: error and gain", 2, share_y="all")
    names = list(dict.fromkeys(rows["estimator"]))
    for axis, (column, title) in zip(axes, INSIGHT.items(), strict=True):
        for k, name in enumerate(names):
            part = known[known["estimator"] == name]
            axis.plot(part[column], [gains[cell][0] for cell in part["cell"]], color=COLOURS[k],
                      marker=MARKERS[k], linestyle="none", label=str(name),
                      markeredgecolor="white")  # fmt: skip
            for _, row in part.iterrows():
                axis.annotate(f"{row['sigma']:g}", (row[column], gains[row["cell"]][0]),
                              fontsize=6, xytext=(3, 3), textcoords="offset points")  # fmt: skip
        axis.set_xlabel(title)
    axes[0].set_ylabel("gain in target reward")
    drawing.legend(out, axes, columns=2)
    return out


DRAWS: dict[str, Callable[[Facet], Figure]] = {
    "quality": quality,
    "tuning": tuning,
    "trade": trade,
    "steps": steps,
    "memory": memory,
    "stages": stages,
    "particles": particles,
    "scaling": scaling,
    "target": target,
    "errors": errors,
    "samples": samples,
}
