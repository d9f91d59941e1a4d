"""The report of the interface suite: does the loss of stage 1 filter out what cannot be mended.

    catastrophic    a pair that after finetuning keeps less than half of the best pair's Recall@1
    near            a pair whose loss is within 5 % of the lowest
    filtered        no near pair is catastrophic, and some pair is, or there is nothing to filter
    found           the pair of lowest loss ends within three points of the best pair

each *clearly*, by paired 95 % intervals over the same pictures.  The best pair is selected on the
pictures that it is compared on, which favours it a little.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.frame import provenance, spread
from bench.report import drawing, numbers
from bench.report.claims import PAPER, Claim
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.report.paper import printed
from bench.report.places import CELLS, Failure, word
from bench.report.sheet import Drawn, Sheet, Table
from bench.spearman import rank_correlation
from bench.stats import Interval, mean_interval

NEAR = 0.05  # of the lowest loss
HALF = 0.5  # of the best pair's recall: below it a pair is catastrophic
MARGIN = 0.03  # of recall: how far from the best pair the pick may end
LOSSES = {"loss": "raw loss", "normalised": "normalised loss"}
SHOWN = {  # heat maps and tables: column to title, and whether more is better
    "held_loss": ("held-out loss of stage 1", False),
    "held_normalised": ("held-out normalised loss", False),
    "error_before": ("embedding error before finetuning", False),
    "recall_before": ("Recall@1 before finetuning", True),
    "recall": ("Recall@1 after finetuning", True),
    "error": ("embedding error after finetuning", False),
}
QUALITIES = {"recall": "Recall@1", "error": "embedding error"}
MARKS = {"paper": "*", "cheap": "~"}
LINES = {"paper": "-", "cheap": "--"}
FRAME = "#d00000"
COLOURS = ("#332288", "#0072b2", "#44aa99", "#117733", "#e69f00", "#d55e00", "#882255", "#888888")


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per pair; failed cells have none."""
    return pd.DataFrame(
        [
            provenance(record) | _pair(row)
            for record in records
            if record["status"] == "ok"
            for row in record["rows"]
        ]
    )


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    """A pair with intervals over pictures; by t, for the pictures are hundreds."""
    found = {k: v for k, v in row.items() if k not in {"metrics", "picked"}}
    found |= {pick: pick in row["picked"] for pick in MARKS}
    for name, x in row["metrics"].items():
        found[f"{name}_by_picture"] = np.array(x)
        found |= spread(name, mean_interval(x, method="t"))
    return found


def catastrophic(row: pd.Series, best: pd.Series) -> bool | None:
    """Whether a pair keeps less than half of the best one's recall; None where it is not clear."""
    gap = _difference(row, best, HALF)
    if gap.hi < 0:
        return True
    return False if gap.lo > 0 else None


def _difference(row: pd.Series, best: pd.Series, share: float = 1.0) -> Interval:
    """Recall of a pair over a share of the best one's, paired by picture."""
    x = row["recall_by_picture"] - share * best["recall_by_picture"]
    return mean_interval(x, method="t")


def ends(rows: pd.DataFrame, loss: str) -> tuple[pd.Series, pd.Series]:
    """The pair of lowest loss, and the pair of best recall after finetuning."""
    lowest, best = rows[loss].to_numpy().argmin(), rows["recall"].to_numpy().argmax()
    return rows.iloc[int(lowest)], rows.iloc[int(best)]


def filters(facet: Facet, loss: str) -> Iterator[Evidence]:
    """Whether a loss of stage 1 filters out catastrophic pairs."""
    rows = facet.frame
    if len(rows) < 2:  # noqa: PLR2004 - nothing to compare
        return
    pick, best = ends(rows, loss)
    fate = pd.Series([catastrophic(row, best) for _, row in rows.iterrows()], rows.index, object)
    near = fate[rows[loss] <= (1 + NEAR) * pick[loss]]
    ruined, unsure = (sum(x is value for x in near) for value in (True, None))
    everywhere = sum(x is True for x in fate)
    held = False if ruined else None if unsure or not everywhere else True
    figures = (
        f"{LOSSES[loss]}: of {len(near)} pairs within 5 % of the lowest {ruined} catastrophic and "
        f"{unsure} unclear, of all {len(rows)} {everywhere} catastrophic"
    )
    yield Evidence(facet.title, held, figures)


def finds(facet: Facet, pick: str) -> Iterator[Evidence]:
    """Whether a pick of stage 1 ends where the best pair does."""
    rows = facet.frame
    picked = rows[rows[pick]]
    if len(rows) < 2 or picked.empty:  # noqa: PLR2004 - nothing to compare
        return
    one, (_, best) = picked.iloc[0], ends(rows, "loss")
    short = _difference(one, best)
    held = False if short.hi < -MARGIN else True if short.lo >= -MARGIN else None
    figures = (
        f"{_at(one)} ends at Recall@1 {numbers.of(one, 'recall')}, "
        f"{numbers.interval(*short[:3])} from the best pair {_at(best)}"
    )
    yield Evidence(facet.title, held, figures)


def _at(row: pd.Series) -> str:
    return f"({row['i']:g}, {row['j']:g})"


def answer(facet: Facet) -> list[str]:
    """What a facet comes to."""
    rows = facet.frame
    pick, best = ends(rows, "loss")
    ruined = rows[[catastrophic(row, best) is True for _, row in rows.iterrows()]]
    lost = ", ".join(_at(row) for _, row in ruined.iterrows()) or "none"
    return [
        f"The pair of lowest loss, {_at(pick)}, ends at Recall@1 {numbers.of(pick, 'recall')}, "
        f"the best of {len(rows)} pairs, {_at(best)}, at {numbers.of(best, 'recall')}; clean "
        f"pictures reach {numbers.plain(pick['clean_recall'])}. Catastrophic: {lost}.",
        _scales(rows),
        _printed(),
    ]


def _scales(rows: pd.DataFrame) -> str:
    """What raw losses compare across j."""
    spread_of = (rows["held_loss"] / (1 - rows["held_r2"])).groupby(rows["j"]).median()
    first, last = spread_of.index.min(), spread_of.index.max()
    times = numbers.plain(spread_of[last] / spread_of[first], 2)
    within = rows.groupby("j")["held_normalised"].agg(lambda x: x.max() / x.min()).max()
    return (
        f"Raw losses of different j are errors in targets of different scale: what enters block "
        f"{last} varies {times} times as much as what enters block {first}, so the raw loss "
        f"prefers early blocks whatever the backbone knows. The normalised loss divides each "
        f"channel's error by its variance; among the pairs of one j it differs by a factor of at "
        f"most {numbers.plain(within, 2)}."
    )


def _printed() -> str:
    """The paper's figure by the same rule, without intervals, for it prints none."""
    loss, recall = (_paper(name).stack() for name in ("loss", "recall"))
    at, best = int(loss.to_numpy().argmin()), recall.max()
    j, i = loss.index[at]
    ruined, near = recall < HALF * best, loss <= (1 + NEAR) * loss.min()
    return (
        f"In the paper (Fig. 6: CLIP ViT-L/14, SD 3.5 Medium, MSCOCO) the lowest loss is at "
        f"({i}, {j}), Recall@1 {recall.iloc[at]:g} % against {best:g} % of the best pair; "
        f"{ruined.sum()} of its {len(loss)} pairs are catastrophic, {(ruined & near).sum()} of "
        f"the {near.sum()} within 5 %."
    )


def _paper(name: str) -> pd.DataFrame:
    """A grid of the paper's: rows j, columns i."""
    found = printed("interface")
    return pd.DataFrame(found[name], index=found["i"]).T


def tables(facet: Facet) -> list[Table]:
    """Rank correlations, a grid for each figure, and the paper's."""
    note = (
        "Rows are blocks j of the reward, columns blocks i of the backbone; * the pair of lowest "
        "loss, ~ the cheap pick."
    )
    made = [
        Table("ranks", "Rank correlation of the held-out loss with what finetuning ends at",
              "Spearman's, over all pairs and over the i of one j. Over all pairs it is mostly j "
              "that is ranked.", ranks(facet.frame)),
        *(Table(name.replace("_", "-"), title, note, grid(facet.frame, name, facet.failures))
          for name, (title, _) in SHOWN.items()),
    ]  # fmt: skip
    for name, title in (("loss", "loss in the paper"), ("recall", "Recall@1 in the paper, %")):
        shown = _paper(name).map(lambda x: f"{x:g}")
        shown.insert(0, "j", [f"j = {j}" for j in shown.index])
        shown.columns = ["", *(f"i = {i}" for i in shown.columns[1:])]
        made.append(Table(f"paper-{name}", title, "Fig. 6: CLIP ViT-L/14, SD 3.5 Medium.", shown))
    return made


def grid(rows: pd.DataFrame, column: str, failures: Iterable[Failure] = ()) -> pd.DataFrame:
    """A figure of every pair as text, j down and i across: a cell is a column."""
    marked = [
        numbers.plain(row[column]) + "".join(m for name, m in MARKS.items() if row[name])
        for _, row in rows.iterrows()
    ]
    shown = rows.assign(text=marked).pivot_table(
        index="j", columns="i", values="text", aggfunc="first", observed=True
    )
    shown = shown.astype(object).fillna(numbers.MISSING)
    shown.columns = [f"i = {i}" for i in shown.columns]
    shown.insert(0, "", [f"j = {j}" for j in shown.index])
    of = rows.drop_duplicates("i")
    shown.attrs[CELLS] = {f"i = {i}": cell for i, cell in zip(of["i"], of["cell"], strict=True)}
    for failure in failures:
        head = f"i = {failure['i']} ({word(failure)})"
        shown[head] = numbers.MISSING
        shown.attrs[CELLS][head] = failure["cell"]
    return shown.reset_index(drop=True)


def ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations of both held-out losses with both qualities."""
    out = []
    for loss, name in LOSSES.items():
        for quality, called in QUALITIES.items():
            groups = {"all pairs": rows} | {f"j = {j}": part for j, part in rows.groupby("j")}
            found = {
                at: numbers.interval(*rank_correlation(part[f"held_{loss}"], part[quality])[:3])
                for at, part in groups.items()
            }
            out.append({"loss": name, "quality": called} | found)
    return pd.DataFrame(out)


def figures(facet: Facet) -> list[Drawn]:
    """Heat maps over (i, j), and loss against quality."""
    return [
        Drawn("pairs", "Every pair (i, j). Bright is good. Framed: the pair of lowest loss; "
              "dashed: the cheap pick.", heat(facet)),
        Drawn("scatter", "Held-out loss of stage 1 against what finetuning ends at, a point a "
              "pair with its interval over pictures; dotted: half of the best pair's Recall@1. "
              "Rings: the pair of lowest loss; dashed: the cheap pick.", scatter(facet)),
    ]  # fmt: skip


def heat(facet: Facet) -> Figure:
    """A heat map for each figure."""
    out, axes = drawing.figure(facet.title, len(SHOWN))
    rows = facet.frame
    for axis, (name, (title, more)) in zip(axes, SHOWN.items(), strict=True):
        cells = rows.pivot_table(index="j", columns="i", values=name)
        shades = _ranked(cells) if name == "held_loss" else cells.to_numpy()
        axis.imshow(shades, origin="lower", aspect="auto", cmap="viridis" if more else "viridis_r")
        axis.set_xticks(range(len(cells.columns)), cells.columns)
        axis.set_yticks(range(len(cells.index)), cells.index)
        axis.set_title(title)
        axis.grid(visible=False)
        _numbers(axis, cells, shades, more=more)
        for pick, line in LINES.items():
            _frame(axis, rows.pivot_table(index="j", columns="i", values=pick), line)
    drawing.label(out, axes, "backbone block i", "reward block j")
    return out


def _numbers(axis: Axes, cells: pd.DataFrame, shades: np.ndarray, *, more: bool) -> None:
    """The figure of every cell, readable on its shade."""
    span = np.nanmax(shades) - np.nanmin(shades)
    share = (shades - np.nanmin(shades)) / (span if span > 0 else 1)
    bright = share if more else 1 - share
    for (y, x), value in np.ndenumerate(cells.to_numpy()):
        if np.isfinite(value):
            axis.text(x, y, numbers.plain(value, 2), ha="center", va="center", fontsize=5,
                      color="black" if bright[y, x] > HALF else "white")  # fmt: skip


def _frame(axis: Axes, picked: pd.DataFrame, line: str) -> None:
    """A frame round the cell that was picked."""
    for y, x in np.argwhere(picked.to_numpy(dtype=float) > 0):
        at = (float(x) - 0.5, float(y) - 0.5)
        axis.add_patch(Rectangle(at, 1, 1, fill=False, zorder=5, linestyle=line,
                                 edgecolor=FRAME, linewidth=1.6))  # fmt: skip


def _ranked(cells: pd.DataFrame) -> np.ndarray:
    """Ranks over all cells: raw losses differ by orders of magnitude."""
    ranks = pd.Series(cells.to_numpy().ravel()).rank().to_numpy()
    return ranks.reshape(cells.shape)


def scatter(facet: Facet) -> Figure:
    """Both losses against both qualities, a colour for each j."""
    out = Figure(figsize=(7.6, 5.6), layout="constrained")
    drawing.head(out, facet.title)
    axes = out.subplots(2, 2, sharex="col", sharey="row")
    rows = facet.frame
    for (quality, called), line in zip(QUALITIES.items(), axes, strict=True):
        for loss, axis in zip(LOSSES, line, strict=True):
            _cloud(axis, rows, f"held_{loss}", quality)
            rho = rank_correlation(rows[f"held_{loss}"], rows[quality])
            axis.set_title(f"Spearman {numbers.interval(*rho[:3])}")
        line[0].set_ylabel(f"{called} after finetuning")
        axes[0, 0].set_xscale("log")
    for name, axis in zip(LOSSES.values(), axes[-1], strict=True):
        axis.set_xlabel(f"held-out {name}")
    for axis in axes[0]:
        axis.axhline(HALF * rows["recall"].max(), color="#888888", linestyle=":", linewidth=0.9)
    drawing.legend(out, [axes[0, 0]], columns=6)
    return out


def _cloud(axis: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    for k, (j, part) in enumerate(rows.groupby("j")):
        bars = [part[y] - part[f"{y}_lo"], part[f"{y}_hi"] - part[y]]
        colour = COLOURS[k % len(COLOURS)]
        axis.errorbar(part[x], part[y], yerr=np.array(bars), fmt="o", markersize=3.5,
                      elinewidth=0.6, color=colour, label=f"j = {j}")  # fmt: skip
    for (pick, line), size in zip(LINES.items(), (190, 130), strict=True):
        at = rows[rows[pick]]
        axis.scatter(at[x], at[y], s=size, facecolors="none", edgecolors="black",
                     linestyle=line, linewidth=1.2, zorder=5)  # fmt: skip


RULE = (
    "clearly, by paired intervals over pictures: no pair whose loss is within 5 % of the lowest "
    "keeps less than half of the best pair's Recall@1 after finetuning; undecided as well where "
    "no pair at all keeps less than half"
)
FOUND = (
    "clearly, by paired intervals over pictures: it ends within 0.03 of the best pair's Recall@1"
)
SHEET = Sheet(
    title="Does the stitching loss filter out catastrophic interfaces?",
    about=(
        "Stage 1 of StitchVM fits a linear map from block i of the backbone to block j of the "
        "reward, in closed form, and takes the pair of lowest loss. Here every pair is finetuned "
        "alike, the reward's last blocks included, and judged on pictures that nothing has seen: "
        "by the squared error of its embedding over all noise levels, and by Recall@1 of captions "
        "and pictures, both directions averaged, at one noise level."
    ),
    apart=("world", "reward", "estimator"),
    tidy=tidy,
    answer=answer,
    claims=(
        Claim(
            "The stitching loss filters out catastrophic interfaces",
            f"{PAPER}, Fig. 6",
            RULE,
            partial(filters, loss="loss"),
            "lowest loss 0.025 at (4, 1), where Recall@1 is 48.3 %, against 49.7 % at best",
            "fig6",
        ),
        Claim(
            "So does the loss normalised by the variance of its targets",
            "targets of different j have different scales",
            RULE,
            partial(filters, loss="normalised"),
        ),
        Claim(
            "The pair of lowest loss is as good as any after finetuning",
            f"{PAPER}, section 4.1, which takes it",
            FOUND,
            partial(finds, pick="paper"),
            "Recall@1 48.3 % against 49.7 % at best",
            "fig6",
        ),
        Claim(
            "So is the cheapest pair within 5 % of the lowest held-out loss",
            "this project's cheap pick",
            FOUND,
            partial(finds, pick="cheap"),
        ),
    ),
    tables=tables,
    figures=figures,
)
