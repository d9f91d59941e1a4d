"""Figures of the train task."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from bench.report import drawing
from bench.report.align.looks import COLOURS, looks
from bench.report.align.plots import SCALES
from bench.report.facets import Facet
from bench.report.sheet import Drawn
from bench.report.train.frame import PHASES
from bench.report.train.reach import level

CAPTIONS = {
    "seconds": "Samples of averaged weights against seconds of training: every run a thin line, "
    "their mean a thick one. Dotted: the level that time to target is read at.",
    "samples": "The same against samples that were drawn to learn from.",
    "phases": "Where the seconds of a training step go; beside each method a step of the "
    "published one, timed in turns.",
}


def figures(facet: Facet) -> list[Drawn]:
    """All figures of a facet, those that have something to show."""
    rows = facet.frame
    there = {
        "seconds": (rows["phase"] == "run").any(),
        "samples": (rows["phase"] == "run").any(),
        "phases": (rows["phase"] == "cost").any(),
    }
    return [
        Drawn(name, CAPTIONS[name], draw(facet)) for name, draw in DRAWS.items() if there[name]
    ]


def curves(facet: Facet, against: str) -> Figure:
    """Target, verifier and judge as training goes on."""
    rows = facet.frame[facet.frame["phase"] == "run"]
    look = looks(rows)
    shown = [m for m in SCALES if f"{m}_by_prompt" in rows and rows[m].notna().any()]
    out, axes = drawing.figure(f"{facet.title}: training", len(shown), share_y="none")
    for axis, metric in zip(axes, shown, strict=True):
        title, scale = SCALES[metric]
        for name, part in rows.groupby("method", sort=False):
            style = look[str(name)]
            for _, run in part.groupby("run"):
                axis.plot(run[against], scale * run[metric], color=style.colour, linewidth=0.6,
                          alpha=0.5)  # fmt: skip
            mean = part.groupby("step")[[against, metric]].mean()
            axis.plot(mean[against], scale * mean[metric], color=style.colour,
                      marker=style.marker, markersize=3.5, label=str(name),
                      markeredgecolor="white")  # fmt: skip
        if metric == "target":
            for algorithm in rows["algorithm"].unique():
                goal = level(facet.frame, algorithm)
                if goal is not None:
                    axis.axhline(goal, color="#888888", linestyle=":", linewidth=0.9)
        axis.set_title(title)
    drawing.label(out, axes, LABELS[against], "")
    drawing.legend(out, axes, columns=2)
    return out


LABELS = {"seconds": "seconds of training", "samples": "samples"}


def phases(facet: Facet) -> Figure:
    """Stacked bars of a training step, of each method and of the published one beside it."""
    rows = facet.frame[facet.frame["phase"] == "cost"]
    names = [str(name) for name in rows["method"]]
    out = Figure(figsize=(7.0, 1.3 + 0.42 * len(names)), layout="constrained")
    drawing.head(out, f"{facet.title}: a training step")
    axis = out.add_subplot()
    for prefix, shift, alpha in (("", -0.19, 1.0), ("published_", 0.19, 0.45)):
        left = np.zeros(len(names))
        for phase, colour in zip(PHASES, COLOURS, strict=False):
            x = rows[f"{prefix}{phase}_seconds"].to_numpy(float)
            axis.barh(np.arange(len(names)) + shift, x, left=left, height=0.34, color=colour,
                      alpha=alpha, label=phase if not prefix else None)  # fmt: skip
            left = left + x
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("seconds a step; pale: published")
    drawing.legend(out, [axis], columns=len(PHASES))
    return out


def by_seconds(facet: Facet) -> Figure:
    """Curves against seconds of training."""
    return curves(facet, "seconds")


def by_samples(facet: Facet) -> Figure:
    """Curves against samples."""
    return curves(facet, "samples")


DRAWS: dict[str, Callable[[Facet], Figure]] = {
    "seconds": by_seconds,
    "samples": by_samples,
    "phases": phases,
}
