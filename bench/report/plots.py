"""All plots of a frame as files, and any column against any other."""

import difflib
import io
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from bench.report import drawing, scales
from bench.report.drawing import Series
from bench.report.estimators import MARKERS, SPARE, Style, order, palette
from bench.report.facets import Facet, split
from bench.report.figures import FIGURES
from bench.report.lettering import lettered

METADATA: dict[str, dict[str, str | None]] = {  # nothing that differs between equal figures
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Date": None, "Creator": None},
}
TITLE = 34  # characters in a line of a panel's title
MOST = 16  # facets whose figures are drawn
EVERY = 500  # estimators in all facets together, beyond which not all are drawn
MANY = 30.0  # ratio of extremes above which an axis of positive numbers is logarithmic


Figures = dict[str, dict[str, Figure]]  # facet's slug to the name of a figure to the figure


def figures(frame: pd.DataFrame) -> Figures:
    """All figures of a frame: the slow part of a report, so made once for files and page.

    Of very many facets or estimators only the plainest of each world is drawn: hundreds of figures
    take minutes, and nobody looks at them.
    """
    if frame.empty:
        return {}
    frame = lettered(frame)
    look = palette(frame)
    out: Figures = {}
    with drawing.styled():
        for facet in _few(split(frame)):
            made = {name: draw_one(facet, look) for name, draw_one in FIGURES.items()}
            out[facet.slug] = {k: drawing.settled(f) for k, f in made.items() if f is not None}
    return out


def _few(facets: list[Facet]) -> list[Facet]:
    """All, or where they or their estimators are very many the first of each world."""
    estimators = sum(facet.frame["estimator"].nunique() for facet in facets)
    if len(facets) <= MOST and estimators <= EVERY:
        return facets
    return list({facet.world: facet for facet in reversed(facets)}.values())[::-1]


def write(drawn: Figures, folder: Path) -> list[Path]:
    """Write every figure of every facet as png and pdf; returns the files."""
    return [
        path
        for slug, made in drawn.items()
        for name, figure in made.items()
        for path in save(figure, folder, f"{slug}-{name}")
    ]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as png (150 dpi) and pdf; equal figures make equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        path.write_bytes(rendered(figure, path.suffix[1:]))
    return paths


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a png, pdf or svg file."""
    buffer = io.BytesIO()
    with drawing.styled():
        figure.savefig(buffer, format=kind, metadata=METADATA[kind])
    return buffer.getvalue()


def draw(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: str = "estimator",
    panels: Callable[[pd.DataFrame], list[Facet]] = split,
) -> Figure:
    """Any column against any other, one line per value of a third, a panel per facet.

    Panels of one world share an axis; worlds do not, for their rewards have other units.

    Args:
        frame: Rows of results.
        x: A numeric column.
        y: A numeric column; its interval is drawn where `<y>_lo` and `<y>_hi` exist.
        by: What tells the lines apart; the rows of one line and one x are all drawn.
        panels: What may stand in one panel.

    Raises:
        ValueError: for a column that does not exist or cannot be drawn, or without rows.
    """
    if frame.empty:
        raise ValueError("expected results to draw, got none")
    tellable = [c for c in frame.columns if not str(c).endswith(("_by_prompt", "_lo", "_hi"))]
    drawable = [c for c in tellable if is_numeric_dtype(frame[c]) and not is_bool_dtype(frame[c])]
    _check("x", x, drawable)
    _check("y", y, drawable)
    _check("by", by, tellable)
    frame = lettered(frame)
    look = _look(frame, by)
    with drawing.styled():
        facets = panels(frame.dropna(subset=[x, y]))
        if not facets:
            raise ValueError(f"expected rows that have both {x!r} and {y!r}, got none")
        out, axes = _panels(f"{y} against {x}, by {by}", facets)
        for facet, axis in zip(facets, axes, strict=True):
            rows = {name: facet.frame[facet.frame[by] == name] for name in look}
            lines = [drawing.series(rows[n], str(n), look[n], x, y) for n in look]
            note = _panel(axis, lines)
            axis.set_title("\n".join([*textwrap.wrap(facet.title, TITLE), note]).strip())
        drawing.label(out, axes, x, y)
        drawing.legend(out, axes)
        return drawing.settled(out)


def _panels(title: str, facets: list[Facet]) -> tuple[Figure, list[Axes]]:
    """A panel for each facet; those of one world share their axis upwards."""
    if len({facet.world for facet in facets}) == 1:
        return drawing.figure(title, len(facets))
    out, axes = drawing.figure(title, len(facets), share_y="none")
    firsts: dict[str, Axes] = {}
    for facet, axis in zip(facets, axes, strict=True):
        if (first := firsts.setdefault(facet.world, axis)) is not axis:
            axis.sharey(first)
    return out, axes


def _panel(axis: Axes, lines: list[Series]) -> str:
    """One facet, logarithmic where the numbers span much; returns what it cannot show.

    Points are joined where lines meet at shared abscissae, one point of a line at each.
    """
    lines = [s for s in lines if s.x.size]
    x, y, note = np.concatenate([s.x for s in lines]), np.concatenate([s.y for s in lines]), ""
    if x.min() > 0 and x.max() > MANY * x.min():
        axis.set_xscale("log")
    if y.min() >= 0 and y.max() > MANY * y[y > 0].min(initial=np.inf):
        lines, note = scales.log_axis(axis, lines)
    joined = all(np.unique(s.x).size == s.x.size for s in lines)
    drawing.points(axis, lines, joined=joined and (len(lines) == 1 or np.unique(x).size < x.size))
    return note


def _look(frame: pd.DataFrame, by: str) -> dict[object, Style]:
    """A style for every value of a column."""
    if by == "estimator":
        found = palette(frame).styles
        return {name: found[name] for name in order(frame)}
    values = frame[by].drop_duplicates().dropna().tolist()
    hues = [*("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), *SPARE]
    return {
        value: Style(hues[k % len(hues)], MARKERS[k % len(MARKERS)], "-")
        for k, value in enumerate(values)
    }


def _check(role: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"expected {role} to be one of {', '.join(known)}; got {name!r}{hint}")
