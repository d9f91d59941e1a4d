"""What a record says in numbers that can be held against those of another run of the same cell.

A figure has a place in its record (a noise level, a batch size ...), a name, and the numbers
behind it: one per prompt or item, or one per timed call.  Its kind says how they are read:

    quality     numbers by prompt, whose mean counts
    rmse        squared errors by prompt, the root of whose mean counts
    items       marks by item, read as `bench.metrics.robustness` does
    seconds     of repeated calls, whose median counts, in one process or several
    bytes       one peak
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bench import repeats
from bench.metrics.robustness import FIGURES as ITEMS
from bench.metrics.value import rmse
from bench.stats import Interval, mean_interval

Row = dict[str, Any]
Kind = Literal["quality", "rmse", "items", "seconds", "bytes"]


class Figure(NamedTuple):
    """A figure of a record.

    Attributes:
        place: Where in the record.
        name: What.
        kind: How it is read.
        numbers: Behind it.
        latents: Names what it was measured on, where the record knows.
        others: Of seconds, those of the cell's other processes.
    """

    place: str
    name: str
    kind: Kind
    numbers: list[Any]
    latents: str | None = None
    others: Sequence[list[float]] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What finds it in another record of the cell."""
        return self.place, self.name

    @property
    def x(self) -> np.ndarray:
        """The numbers; what is missing is NaN."""
        return np.array(self.numbers, dtype=float)

    @property
    def processes(self) -> list[np.ndarray]:
        """Of seconds, those of every process."""
        return [np.array(numbers, dtype=float) for numbers in (self.numbers, *self.others)]

    def estimate(self) -> Interval:
        """The figure with its interval."""
        if self.kind == "seconds":
            return repeats.seconds(self.processes)
        if self.kind == "items":
            return ITEMS[self.name].estimate(self.x)
        return ESTIMATES[self.kind](self.x)


def _single(x: np.ndarray) -> Interval:
    return Interval(float(x[0]), np.nan, np.nan, 1)


ESTIMATES: dict[Kind, Callable[[np.ndarray], Interval]] = {
    "quality": mean_interval,
    "rmse": rmse,
    "bytes": _single,
}


def figures(record: dict[str, Any]) -> list[Figure]:
    """All figures of a record that is ok; none of another.

    Raises:
        ValueError: if its rows are not those of its task.
    """
    if record["status"] != "ok":
        return []
    told = (f for row in record["rows"] for f in BY_TASK[record["spec"]["task"]](row))
    try:
        return [figure for figure in told if figure.numbers]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"expected rows of the task {record['spec']['task']!r} in the record of "
            f"{record['id']}, got some without {error}"
        ) from None


def _metrics(place: str, metrics: dict[str, Any], latents: str | None = None) -> Iterator[Figure]:
    for name, numbers in metrics.items():
        if numbers is not None:
            yield Figure(place, name, "quality", numbers, latents)


def _seconds(place: str, name: str, row: Row, take: Callable[[Any], npt.ArrayLike]) -> Figure:
    own, *others = (x.tolist() for x in repeats.of(row, take))
    return Figure(place, name, "seconds", own, others=others)


def _each(row: Row, kind: str) -> np.ndarray:
    """Seconds of every call, by what it was asked about at once."""
    return np.array(row[f"{kind}_seconds"]) / np.array(row[f"{kind}_rows"])


def _bytes(place: str, name: str, peak: dict[str, int | None] | None) -> Iterator[Figure]:
    for kind, size in (peak or {}).items():
        if size is not None:
            yield Figure(place, f"{name}_{kind}", "bytes", [size])


def _value(row: Row) -> Iterator[Figure]:
    place, latents = f"sigma {row['sigma']:g}", row["z_digest"]
    yield from _metrics(place, row["metrics"], latents)
    if (squares := row["metrics"].get("mse")) is not None:
        yield Figure(place, "rmse", "rmse", squares, latents)
    yield _seconds(place, "seconds", row, partial(_each, kind="call"))
    yield _seconds(place, "gradient_seconds", row, partial(_each, kind="gradient"))
    yield from _bytes(place, "peak", row["peak"])
    yield from _bytes(place, "gradient_peak", row["gradient_peak"])


def _tested(row: Row) -> Iterator[Figure]:
    place = f"sigma {row['sigma_reference']:g}"
    for name, marks in row["marks"].items():
        yield Figure(place, name, "items", marks, row["z_digest"])
    yield _seconds(place, "seconds", row, partial(_each, kind="call"))


def _pair(row: Row) -> Iterator[Figure]:
    place = f"({row['i']}, {row['j']})"
    yield from _metrics(place, row["metrics"])
    yield _seconds(place, "seconds", row, lambda one: [one["seconds"]])


def _cost(row: Row) -> Iterator[Figure]:
    place = f"{row['what']} of {row['batch']}, against {row['against']}"
    yield _seconds(place, "seconds", row, itemgetter("seconds"))
    yield from _bytes(place, "peak", row["peak"])


def _aligned(row: Row) -> Iterator[Figure]:
    """Samples that count, and timed steps; trials lie where earlier ones said and have no pair."""
    if row["phase"] == "cost":
        place = f"step of {row['batch']}"
        yield _seconds(place, "seconds", row, lambda one: one["step_seconds"]["guided"])
        yield from _bytes(place, "peak", row["peaks"]["guided"])
    elif row["phase"] == "error":
        yield from _metrics(f"error at sigma {row['sigma']:g}", row["metrics"])
    elif "tune" not in row["phase"]:
        yield from _metrics(row["phase"], row["metrics"])
        if row.get("seconds"):
            yield _seconds(row["phase"], "seconds", row, _of_samples)


def _of_samples(row: Row) -> np.ndarray:
    return np.array(row["seconds"]) / np.array(row["rows"])


def _trained(row: Row) -> Iterator[Figure]:
    """The last evaluation of a run that is compared, and timed steps."""
    if row["phase"] == "cost":
        yield _seconds("step", "seconds", row, _whole)
        yield from _bytes("step", "peak", row["peaks"]["this"])
    elif row["phase"] == "run" and row["curve"]:
        last = row["curve"][-1]
        yield from _metrics(f"run {row['seed']}, step {last['step']}", last["metrics"])


def _whole(row: Row) -> np.ndarray:
    """Seconds of whole training steps."""
    whole: np.ndarray = np.sum(list(row["step_seconds"]["this"].values()), axis=0)
    return whole


BY_TASK: dict[str, Callable[[Row], Iterator[Figure]]] = {
    "value": _value,
    "robustness": _tested,
    "interface": _pair,
    "cost": _cost,
    "align": _aligned,
    "train": _trained,
}
