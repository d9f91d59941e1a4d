"""What is timed in several processes: `stitchbench run --processes 3` measures each cell thrice.

A cell's good attempts of one code on one machine are repeats.  Their seeds are one, so they differ
in what they took alone, and by how much is how sure a time is.  Rows carry those of the other
attempts beside them as `repeats`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.stats import (
    Interval,
    log_ratio_interval,
    median_interval,
    process_ratio_interval,
    process_seconds_interval,
)

REPEATS = "repeats"
Row = Mapping[str, Any]


def together(record: dict[str, Any], attempts: Sequence[Row]) -> dict[str, Any]:
    """A record whose rows carry the same rows of its other good attempts.

    Args:
        record: The one that is shown.
        attempts: All readable records of its cell.
    """
    others = [a["rows"] for a in attempts if a["attempt"] != record["attempt"]
              and a["status"] == "ok" and _alike(a) == _alike(record)]  # fmt: skip
    others = [rows for rows in others if len(rows) == len(record["rows"])]
    if not others or record["status"] != "ok":
        return record
    columns = zip(record["rows"], *others, strict=True)
    return record | {"rows": [row | {REPEATS: list(rest)} for row, *rest in columns]}


def _alike(record: Row) -> tuple[Any, ...]:
    """What attempts have in common whose times may be held beside each other."""
    environment = record["environment"]
    kept = (record.get("code") or {}).get("digest")
    return kept, environment["device_name"], environment["versions"], environment["threads"]


def processes(record: Row) -> int:
    """How many processes measured a record's cell."""
    return 1 + max((len(row.get(REPEATS, ())) for row in record["rows"]), default=0)


def of(row: Row, take: Callable[[Any], npt.ArrayLike]) -> list[np.ndarray]:
    """Seconds in each process, this row's own first.

    Args:
        row: Of a record.
        take: Seconds of the calls in one row.
    """
    return [np.asarray(take(one), dtype=float) for one in (row, *row.get(REPEATS, ()))]


def seconds(x: Sequence[np.ndarray]) -> Interval:
    """The time of a call: over processes where there are several, else over its calls."""
    return median_interval(x[0]) if len(x) == 1 else process_seconds_interval(x)


def ratio(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Interval:
    """The ratio of two times taken in turns, likewise."""
    return log_ratio_interval(a[0], b[0]) if len(a) == 1 else process_ratio_interval(a, b)
