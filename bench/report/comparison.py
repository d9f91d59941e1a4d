"""Two compared stores for a terminal, and as plain data for a script."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.compare import Stores
from bench.comparison import CLEAR, Comparison
from bench.report import numbers

MOST = 20  # clear differences that are listed
FEW = 3  # values of an environment that are listed


def text(stores: Stores, *, every: bool = False) -> Iterator[str]:
    """What was compared, figure by figure, and where stores differ clearly.

    Args:
        stores: The comparison.
        every: Whether each comparison is listed.
    """
    yield from _cells(stores)
    yield from _environments(stores)
    yield from (f"note: {note}" for note in stores.notes)
    by_task: defaultdict[str, list[Comparison]] = defaultdict(list)
    for one in stores.comparisons:
        by_task[one.task].append(one)
    for task, found in by_task.items():
        yield ""
        yield f"{task}: second over first, or second minus first"
        yield f"  {'figure':24} compared identical  lower higher  typical ratio"
        yield from (_figure(name, of) for name, of in _by_figure(found).items())
    yield from _listed(stores, every=every)


def data(stores: Stores) -> dict[str, Any]:
    """All of it as plain data."""
    compared = []
    for one in stores.comparisons:
        intervals = {k: getattr(one, k) for k in ("first", "second", "ratio", "difference")}
        named = {k: None if x is None else x._asdict() for k, x in intervals.items()}
        compared.append(one._asdict() | named | {"clear": one.clear})
    return stores._asdict() | {"comparisons": compared}


def _cells(stores: Stores) -> Iterator[str]:
    compared = len({one.cell for one in stores.comparisons})
    yield f"{compared} cells compared"
    for title, cells in (
        ("ok in the first, failed in the second", stores.failed),
        ("failed in the first, ok in the second", stores.mended),
        ("only in the first", stores.missing),
        ("only in the second", stores.added),
        ("measured on other latents, quality not compared", stores.unpaired),
    ):
        if cells:
            yield f"{title} ({len(cells)}): {_some(cells, MOST)}"


def _environments(stores: Stores) -> Iterator[str]:
    for number, (key, (ours, theirs)) in enumerate(stores.environments.items()):
        if number == 0:
            yield "environments differ:"
        yield f"  {key:24} {_some(ours, FEW) or '-'}  ->  {_some(theirs, FEW) or '-'}"


def _some(values: Sequence[str], most: int) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def _by_figure(found: list[Comparison]) -> dict[str, list[Comparison]]:
    out: dict[str, list[Comparison]] = {}
    for one in found:
        out.setdefault(one.figure, []).append(one)
    return out


def _figure(name: str, found: list[Comparison]) -> str:
    """A figure over all cells and places: the typical ratio is a geometric mean."""
    up, down = (sum(one.clear and _sign(one) == sign for one in found) for sign in (1, -1))
    same = sum(one.same for one in found)
    ratios = np.array([one.ratio.mean for one in found if one.ratio is not None])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    typical = f"{numbers.plain(float(np.exp(np.log(ratios).mean())))}×" if ratios.size else ""
    return f"  {name:24} {len(found):8} {same:9} {down:6} {up:6}  {typical}"


def _sign(one: Comparison) -> int:
    if one.ratio is None:
        return 0 if one.difference is None else int(np.sign(one.difference.mean))
    return int(np.sign(one.ratio.mean - 1))


def _listed(stores: Stores, *, every: bool) -> Iterator[str]:
    """Clear differences, the clearest first, or all comparisons in order."""
    clear = sorted((one for one in stores.comparisons if one.clear), key=lambda one: one.adjusted)
    shown = stores.comparisons if every else clear[:MOST]
    yield ""
    yield (
        f"{len(clear)} clear differences of {len(stores.comparisons)} "
        f"(95 % interval and Holm-adjusted p < {CLEAR:g})"
    )
    for one in shown:
        yield f"  {one.figure:20} {_size(one):32} {numbers.p_value(one.adjusted):10}  {one.where}"
    if not every and len(clear) > MOST:
        yield f"  and {len(clear) - MOST} more: --all lists every comparison"


def _size(one: Comparison) -> str:
    if one.ratio is not None:
        return f"× {numbers.interval(*one.ratio[:3])}"
    return numbers.MISSING if one.difference is None else numbers.interval(*one.difference[:3])
