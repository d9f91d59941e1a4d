"""One figure of one cell in two stores: its ratio or difference, and whether it is clear.

All that is random in a cell follows from its seed, so its latents are the same in both stores and
quality is paired by prompt; where they are not (their digests differ), it is not compared.
Seconds are paired by call: the k-th call of a cell does the same work in both.  Where both stores
have measured a cell in several processes (`run --processes`), the unit is the process; of one
process, what differs from process to process is in no interval.

Ratios are second over first, differences second minus first; p-values are Holm-adjusted over those
of a task that are not identical.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.comparable import Figure, Kind, figures
from bench.metrics.robustness import FIGURES as ITEMS
from bench.stats import (
    Interval,
    holm,
    log_ratio_interval,
    paired,
    process_log_ratios,
    process_ratio_interval,
    ratio_interval,
)

CLEAR = 0.05


class Comparison(NamedTuple):
    """A figure of a cell in two stores.

    Attributes:
        cell: The cell's id.
        task: Its task.
        name: The cell's coordinates, in words.
        place: Where in the record.
        figure: What.
        kind: How it is read.
        first, second: Estimates in either store.
        ratio: Second over first; None where a ratio means nothing.
        difference: Second minus first; None where only the ratio counts.
        p: Of there being no difference; NaN where nobody can tell.
        same: Whether all numbers are identical.
        adjusted: p, adjusted for all comparisons of the task that are not identical.
    """

    cell: str
    task: str
    name: str
    place: str
    figure: str
    kind: Kind
    first: Interval
    second: Interval
    ratio: Interval | None
    difference: Interval | None
    p: float
    same: bool
    adjusted: float = np.nan

    @property
    def where(self) -> str:
        """The place among all compared cells, in words."""
        return f"{self.name} · {self.place} ({self.cell})"

    @property
    def clear(self) -> bool:
        """Whether there is a difference beyond doubt."""
        main, none = (self.difference, 0.0) if self.ratio is None else (self.ratio, 1.0)
        apart = main is not None and (main.lo > none or main.hi < none)
        return apart and self.adjusted < CLEAR


def name(record: Mapping[str, Any]) -> str:
    """A cell in words: its coordinates."""
    return " · ".join(value for value in record["coordinates"].values() if value)


def of_cell(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[Comparison], list[str]]:
    """All comparisons of a cell, and places where latents differ."""
    theirs = {figure.key: figure for figure in figures(b)}
    found, apart = [], dict[str, None]()
    for ours in figures(a):
        other = theirs.get(ours.key)
        if other is None:
            continue
        alike = ours.kind == "seconds" or len(ours.numbers) == len(other.numbers)
        if ours.latents != other.latents or not alike:
            apart[f"{name(a)} · {ours.place}"] = None
            continue
        ratio, difference, p = COMPARED[ours.kind](ours, other)
        about = (a["id"], a["spec"]["task"], name(a), *ours[:3])
        same = (ours.numbers, ours.others) == (other.numbers, other.others)
        found.append(
            Comparison(*about, ours.estimate(), other.estimate(), ratio, difference, p, same)
        )
    return found, list(apart)


Compared = tuple[Interval | None, Interval | None, float]


def _quality(a: Figure, b: Figure) -> Compared:
    difference, p, _ = paired(b.x, a.x)
    return None, difference, p


def _rmse(a: Figure, b: Figure) -> Compared:
    """Of roots of means: r_b - r_a = (r_b^2 - r_a^2) / (r_b + r_a), whose sum counts as known."""
    ratio = ratio_interval(b.x, a.x)
    mean, lo, hi = np.sqrt(np.maximum(ratio[:3], 0)).tolist()
    squares, p, _ = paired(b.x, a.x)
    roots = a.estimate().mean + b.estimate().mean
    ends = [x / roots if roots else 0.0 for x in squares[:3]]
    return Interval(mean, lo, hi, ratio.n), Interval(ends[0], ends[1], ends[2], squares.n), p


def _items(a: Figure, b: Figure) -> Compared:
    how = ITEMS[a.name]
    difference, p, _ = how.paired(b.x, a.x)
    return how.ratio(b.x, a.x), difference, p


def _seconds(a: Figure, b: Figure) -> Compared:
    """Over processes where both have several, else over calls."""
    x, y = zip(*_calls(a, b), strict=True)
    if not all((seconds > 0).all() for seconds in (*x, *y)):
        return None, None, np.nan
    if len(x) == 1:
        logs = np.log(y[0]), np.log(x[0])
        return log_ratio_interval(y[0], x[0]), None, paired(*logs, method="t").p
    ratios = process_log_ratios(y, x)
    p = paired(ratios, np.zeros_like(ratios), method="t").p
    return process_ratio_interval(y, x), None, p


def _calls(a: Figure, b: Figure) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Process by process, the seconds of calls that both have."""
    for one, other in zip(a.processes, b.processes, strict=False):
        n = min(one.size, other.size)
        yield one[:n], other[:n]


def _bytes(a: Figure, b: Figure) -> Compared:
    """A ratio without an interval: peaks are read once."""
    if not a.x[0]:
        return None, None, np.nan
    return Interval(float(b.x[0] / a.x[0]), np.nan, np.nan, 1), None, np.nan


COMPARED: dict[Kind, Callable[[Figure, Figure], Compared]] = {
    "quality": _quality,
    "rmse": _rmse,
    "items": _items,
    "seconds": _seconds,
    "bytes": _bytes,
}


def adjusted(found: list[Comparison]) -> list[Comparison]:
    """With p-values adjusted within each task, over what could be declared different at all."""
    by_task = defaultdict(list)
    for number, one in enumerate(found):
        by_task[one.task].append(number)
    out = list(found)
    for numbers in by_task.values():
        told = holm([np.nan if found[k].same else found[k].p for k in numbers])
        for k, p in zip(numbers, told, strict=True):
            out[k] = found[k]._replace(adjusted=1.0 if found[k].same else float(p))
    return out
