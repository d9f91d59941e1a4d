"""The report of the cost suite: search, training and a value, each beside a yardstick."""

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench import repeats
from bench.frame import provenance, spread
from bench.report import drawing, floor, held, numbers
from bench.report.claims import PAPER, Claim
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.report.paper import printed
from bench.report.places import by_cell
from bench.report.sheet import Drawn, Sheet, Table

SEARCH_TARGET = 1.5  # of its feature pass
VALUE_TARGET = 0.3  # of Tweedie's
CHEAP = ("stitched", "cheap")  # build and pick of the value model as it would be used
PASSES = "probe and held-out"  # in the name of the pass that sees what the search sees
TRAINED = ("step", "training")  # optimiser steps, by what they are held against
TIMED = (
    "stitching",
    "searches",
    "steps",
    "trainings",
    "values",
    "gradients",
)  # tables that hold times
ASKED = {"value": "value", "gradient": "value and gradient"}


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row for each pair of calls timed in turns; failed cells have none."""
    return pd.DataFrame(
        [
            provenance(record) | {"steps": record["spec"]["protocol"]["steps"]} | _compared(row)
            for record in records
            if record["status"] == "ok"
            for row in record["rows"]
        ]
    )


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds of both with intervals, their ratio, and what FLOPs predict for it."""
    found = {name: row[name] for name in ("what", "batch", "against", "unit")}
    both = {name: repeats.of(row, itemgetter(name)) for name in ("seconds", "against_seconds")}
    for name, x in both.items():
        found |= spread(name, repeats.seconds(x))
    found |= spread("ratio", repeats.ratio(*both.values()))
    found["flops"] = np.nan if row["flops"] is None else row["flops"]
    known = row["flops"] is not None and row["against_flops"]
    found["flop_ratio"] = row["flops"] / row["against_flops"] if known else np.nan
    for name in ("peak", "against_peak"):
        found[f"{name}_bytes"] = _bytes(row[name])
        found |= held.columns([row[name]], held.ALLOCATED, held.DRIVER, of=f"{name}_")
    return found


def _bytes(peak: dict[str, int | None] | None) -> float:
    """Memory made by a call: tensors that live at once."""
    live = None if peak is None else peak["live"]
    return np.nan if live is None else live


def searches(rows: pd.DataFrame) -> pd.DataFrame:
    """The search against the pass over all images that it sees."""
    return rows[(rows["what"] == "search") & rows["against"].str.contains(PASSES)]


def cheap(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of StitchVM at its cheap pick."""
    build, pick = CHEAP
    if "estimator.pick" not in rows:
        return rows.iloc[:0]
    return rows[(rows["estimator_build"] == build) & (rows["estimator.pick"] == pick)]


def search_cheap(facet: Facet) -> Iterator[Evidence]:
    """One piece of evidence a reward."""
    for _, row in searches(facet.frame).iterrows():
        figures = f"{row['reward']}: {numbers.of(row, 'ratio')} times its feature pass"
        yield Evidence(facet.title, _below(row, SEARCH_TARGET), figures)


def value_cheap(facet: Facet) -> Iterator[Evidence]:
    """One piece of evidence for each reward, batch, and with or without gradient."""
    rows = cheap(facet.frame)
    for _, row in rows[rows["what"].isin(list(ASKED))].iterrows():
        figures = (
            f"{row['reward']}, {ASKED[row['what']]}, batch {row['batch']}: "
            f"{numbers.of(row, 'ratio')} times Tweedie's seconds; FLOPs say "
            f"{numbers.plain(row['flop_ratio'], 2)}"
        )
        yield Evidence(facet.title, _below(row, VALUE_TARGET), figures)


def _below(row: pd.Series, level: float) -> bool | None:
    """Whether a ratio's interval lies at or below a level; None where it includes it."""
    if row["ratio_hi"] <= level:
        return True
    return False if row["ratio_lo"] > level else None


def answer(facet: Facet) -> list[str]:
    """What a facet comes to."""
    rows, out = facet.frame, []
    found, asked = searches(rows), cheap(rows)
    asked = asked[asked["what"].isin(list(ASKED))]
    if len(found):
        out.append(
            f"A search over all pairs takes {_span(found['ratio'])} times the feature pass over "
            f"its own images (aim: at most {SEARCH_TARGET:g})."
        )
    if len(asked):
        out.append(
            f"A value by StitchVM at its cheap pick takes {_span(asked['ratio'])} times what "
            f"Tweedie's takes, with or without gradient (aim: at most {VALUE_TARGET:g}); FLOPs "
            f"say {_span(asked['flop_ratio'])}."
        )
    return [*out, *(_each(rows) if asked.empty else [])]


def _each(rows: pd.DataFrame) -> Iterator[str]:
    """A sentence on the values of every estimator, the cheapest first."""
    values = rows[rows["what"] == "value"]
    for (reward, batch), part in values.groupby(["reward", "batch"], sort=False):
        said = "; ".join(
            f"{row['estimator']} {numbers.of(row, 'ratio')}"
            for row in part.sort_values("ratio").to_dict("records")
        )
        yield f"A value over Tweedie's, null prompt, {reward} reward, batch {batch:g}: {said}."


def _span(x: pd.Series) -> str:
    least, most = numbers.plain(x.min(), 2), numbers.plain(x.max(), 2)
    return least if least == most else f"{least} to {most}"


def tables(facet: Facet) -> list[Table]:
    """The paper's Table 4 beside ours, then searches, steps and values."""
    rows = facet.frame
    steps = ", ".join(f"{n:g}" for n in sorted(rows["steps"].unique()))
    trained = rows.loc[rows["what"].isin(TRAINED), "batch"]
    batch = ", ".join(f"{n:g}" for n in sorted(trained.unique()))
    units = " and ".join(sorted(f"{unit}s" for unit in rows["unit"].unique()))
    made = [
        Table("stitching", f"Search, and training of {steps} steps of {batch} images",
              f"{units} here, GPU-hours in the paper (Table 4, SD 3.5 Medium): shares can be "
              f"compared, numbers cannot.", stitching(rows)),
        Table("searches", "A search beside a plain pass of images through both models",
              "The search passes the probe images and as many held-out ones, which judge the "
              "fits.", _listed(rows[rows["what"] == "search"])),
        Table("steps", "An optimiser step beside one of StitchVM at its cheap pick",
              "Each arm alone, nothing shared. FLOPs leave out the optimiser. StitchVM beside "
              "itself shows how well times repeat.", _listed(rows[rows["what"] == "step"])),
        Table("trainings", "An optimiser step beside its values alone",
              "StitchVM at a pair that was not searched for, its layer drawn at random: the step "
              "has a backward pass and targets to meet besides, FLOPs leave out the optimiser.",
              _listed(rows[rows["what"] == "training"])),
        *(Table(f"{what}s", f"A {title} beside Tweedie's", "Null prompt, full decoder.",
                _listed(rows[rows["what"] == what])) for what, title in ASKED.items()),
    ]  # fmt: skip
    return floor.under((held.noted(table) for table in made if len(table.frame)), TIMED, rows)


def stitching(rows: pd.DataFrame) -> pd.DataFrame:
    """Training, search and total of every reward, and the paper's; nothing of values alone."""
    if not rows["what"].isin((*TRAINED, "search")).any():
        return pd.DataFrame()
    rewards = list(rows["reward"].drop_duplicates())
    out = []
    trained = rows[rows["what"].isin(TRAINED)]
    of_cheap = cheap(trained).set_index("reward")
    found = searches(rows).set_index("reward")
    for name, part in trained.groupby("estimator", sort=False):
        times = part["steps"] * part["seconds"]
        out.append(
            _line("here", f"training, {name}", dict(zip(part["reward"], times, strict=True)))
        )
    out.append(_line("here", "search", dict(found["seconds"])))
    totals = found["seconds"] + of_cheap["steps"] * of_cheap["seconds"]
    out.append(_line("here", "search and training at the cheap pick", dict(totals)))
    out.append(_line("here", "share of the search", dict(found["seconds"] / totals)))
    for where, columns in printed("cost").items():
        for k, what in enumerate(("training", "search", "total")):
            out.append(_line(f"paper, {where}", what, {r: x[k] for r, x in columns.items()}))
        shares = {reward: x[1] / x[2] for reward, x in columns.items()}
        out.append(_line(f"paper, {where}", "share of the search", shares))
    shown = pd.DataFrame(out)
    return shown[["where", "what", *(r for r in shown.columns if r in rewards)]]


def _line(where: str, what: str, by_reward: dict[Any, float]) -> dict[str, str]:
    return {"where": where, "what": what} | {r: numbers.plain(x) for r, x in by_reward.items()}


def _listed(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparisons as text, one a line."""
    out = []
    for row in rows.to_dict("records"):
        times = [
            numbers.seconds_interval(row[name], row[f"{name}_lo"], row[f"{name}_hi"])
            for name in ("seconds", "against_seconds")
        ]
        out.append({
            "cell": row["cell"],
            "reward": row["reward"],
            "estimator": row["estimator"],
            "batch": f"{row['batch']}",
            "time": times[0],
            "beside": row["against"],
            "its time": times[1],
            "ratio": numbers.of(row, "ratio"),
            "ratio of FLOPs": numbers.plain(row["flop_ratio"]),
            "GFLOP": numbers.plain(row["flops"] / 1e9),
            "memory": numbers.size(row["peak_bytes"]),
            "its memory": numbers.size(row["against_peak_bytes"]),
            **held.shown(row, rows, of="peak_"),
            **held.shown(row, rows, of="against_peak_", its="its "),
        })  # fmt: skip
    return by_cell(out)


def figures(facet: Facet) -> list[Drawn]:
    """Measured ratios with what FLOPs predict."""
    rows = facet.frame
    panels = [
        (f"{title}, batch {batch}", part)
        for what, title in ASKED.items()
        for batch, part in rows[rows["what"] == what].groupby("batch")
    ]
    made = []
    if panels:
        made.append(Drawn(
            "values", "Seconds of a value over Tweedie's, with 95 % intervals, and what FLOPs "
            f"predict (open). Dotted: the aim of {VALUE_TARGET:g} for the cheap pick.",
            _ratios(f"{facet.title}: a value over Tweedie's", panels, VALUE_TARGET),
        ))  # fmt: skip
    steps = rows[rows["what"] == "step"]
    if len(steps):
        panels = [(f"step of {batch} images", part) for batch, part in steps.groupby("batch")]
        made.append(Drawn(
            "steps", "Seconds of an optimiser step over one of StitchVM at its cheap pick, with "
            "95 % intervals, and what FLOPs predict (open).",
            _ratios(f"{facet.title}: an optimiser step", panels, 1.0),
        ))  # fmt: skip
    return made


def _ratios(title: str, panels: list[tuple[str, pd.DataFrame]], level: float) -> Figure:
    """Ratios of each estimator and reward, a panel each."""
    names = list(dict.fromkeys(name for _, part in panels for name in part["estimator"]))
    rewards = list(dict.fromkeys(name for _, part in panels for name in part["reward"]))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = 0.8 + rows * (0.5 + 0.32 * len(names))
    out = Figure(figsize=(1.4 + 3.1 * columns, height), layout="constrained")
    drawing.head(out, title)
    axes = out.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (heading, part) in zip(axes.flat, panels, strict=False):
        for k, reward in enumerate(rewards):
            _dots(axis, part[part["reward"] == reward], names, (k, len(rewards)), reward)
        axis.axvline(level, color="#888888", linestyle=":", linewidth=0.9, zorder=1)
        axis.set_title(heading)
        axis.set_yticks(range(len(names)), names)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    for axis in axes[-1]:
        axis.set_xlabel("ratio")
    drawing.legend(out, [axes[0, 0]])
    return out


def _dots(
    axis: Axes, rows: pd.DataFrame, names: list[str], place: tuple[int, int], label: str
) -> None:
    """A line of dots for one reward, moved a little so that none hides."""
    k, count = place
    colour = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")[k % 5]
    y = np.array([names.index(name) for name in rows["estimator"]]) + 0.22 * (k - (count - 1) / 2)
    bars = np.array([rows["ratio"] - rows["ratio_lo"], rows["ratio_hi"] - rows["ratio"]])
    axis.errorbar(rows["ratio"], y, xerr=bars, fmt="o", markersize=3.5, elinewidth=1,
                  color=colour, label=label)  # fmt: skip
    axis.plot(rows["flop_ratio"], y, marker="o", markersize=5.5, linestyle="none",
              markerfacecolor="none", markeredgecolor=colour)  # fmt: skip


SHEET = Sheet(
    title="What search, training and a value cost",
    about=(
        "Each cost is timed in turns with a yardstick in one process: the search with a plain "
        "pass of its images through both models, an optimiser step of each learned estimator with "
        "one of StitchVM at its cheap pick, a value with Tweedie's. Ratios are geometric means "
        "over rounds. Estimators are untrained, for weights do not change a cost. On a CPU "
        "seconds are those of the CPU."
    ),
    apart=("world",),
    tidy=tidy,
    answer=answer,
    claims=(
        Claim(
            f"A search over all pairs costs at most {SEARCH_TARGET:g} times its feature pass",
            f"{PAPER}, section 4.1: one pass, closed forms",
            "the ratio's interval lies at or below it; did not hold: above",
            search_cheap,
            "search 0.6 to 1.3 of 7.0 to 32.3 GPU-hours (Table 4)",
            "table4",
        ),
        Claim(
            f"A value by StitchVM at its cheap pick costs at most {VALUE_TARGET:.0%} of Tweedie's",
            f"{PAPER}, section 4.2: no decode, few blocks",
            "for every reward and batch, with and without gradient, the ratio's interval lies at "
            "or below it; did not hold: above in one",
            value_cheap,
            table="table4",
        ),
    ),
    tables=tables,
    figures=figures,
)
