"""The noise floor of a machine: by how much two equal methods seem to differ.

With x_p the mean log ratio of a method to itself in process p and s their root mean square, 95 %
of such comparisons lie within exp(+-1.96 s), so

    floor = exp(1.96 s) - 1

and a ratio of times closer to 1 than that is not to be told from none, however narrow its
interval.  The floor of a store is the larger of its workloads', kept in `calibration.json` for
every machine, device and number of threads that was calibrated.
"""

import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from bench.frame import spread
from bench.stats import (
    Interval,
    log_ratio_interval,
    process_log_ratios,
    process_ratio_interval,
    rms_interval,
)
from bench.store import Store

FILE, SCHEMA = "calibration.json", 1
WITHIN = 1.959964  # normal quantile at 97.5 %
COLUMNS = ("noise_floor", "noise_floor_lo", "noise_floor_hi")
Place = tuple[str | None, str, int]  # machine, device, threads


class _Environment(BaseModel):
    device: str
    device_name: str | None
    threads: int


class _Calibration(BaseModel):
    """What a reader relies on."""

    started: str
    environment: _Environment
    noise_floor: float
    noise_floor_lo: float
    noise_floor_hi: float


class _File(BaseModel):
    calibrations: list[_Calibration]


def floor(seconds: list[list[float]], others: list[list[float]]) -> Interval:
    """The floor from seconds of two equal arms, (processes, calls), with its interval."""
    found = rms_interval(process_log_ratios(seconds, others))
    low, mean, high = (math.expm1(WITHIN * s) for s in (found.lo, found.mean, found.hi))
    return Interval(mean, low, high, found.n)


def clear(ratio: Interval) -> bool:
    """Whether a comparison declares a winner, as timing tables do: its interval excludes 1."""
    return ratio.lo > 1 or ratio.hi < 1


def winners(seconds: list[list[float]], others: list[list[float]]) -> int:
    """In how many processes the comparison that timing tables make declares one."""
    ratios = (log_ratio_interval(a, b) for a, b in zip(seconds, others, strict=True))
    return sum(clear(ratio) for ratio in ratios)


def appraised(measured: dict[str, Any]) -> dict[str, Any]:
    """A calibration as it is kept: what `calibrate` measured, and what it comes to.

    By workload the floor, the ratio of both arms over all processes, the median seconds of a call,
    and how many comparisons declared a winner; over all of them the largest floor, and the sum of
    comparisons.
    """
    by_workload = {}
    for name, arms in measured["seconds"].items():
        one, other = arms["first"], arms["second"]
        by_workload[name] = {
            **dict(zip(COLUMNS, floor(one, other)[:3], strict=True)),
            **spread("ratio", process_ratio_interval(one, other)),
            "call_seconds": statistics.median(x for part in one for x in part),
            "winners": winners(one, other),
            "comparisons": len(one),
        }
    largest = max(by_workload.values(), key=lambda found: found[COLUMNS[0]])
    total = {n: sum(w[n] for w in by_workload.values()) for n in ("winners", "comparisons")}
    return (
        measured | {name: largest[name] for name in COLUMNS} | total | {"workloads": by_workload}
    )


def keep(folder: Path, calibration: dict[str, Any]) -> Path:
    """Put a calibration into a store, in the place of an earlier one of the same machine.

    Args:
        folder: The store's; made where there is none.
        calibration: As `appraised` gives it.

    Returns:
        The file.

    Raises:
        ValueError: if what is there cannot be read: it is not overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [
        c for c in read(folder) if place(c["environment"]) != place(calibration["environment"])
    ]
    path = folder / FILE
    text = json.dumps(
        {"schema": SCHEMA, "calibrations": [*others, calibration]}, indent=1, allow_nan=False
    )
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    temporary.write_text(text + "\n")
    temporary.replace(path)
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """The calibrations of a store; none where it has no file.

    Raises:
        ValueError: if the file is not one of ours.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_bytes())
        _File.model_validate(found)
    except (ValidationError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"expected calibrations in {path}, got {first}") from None
    return found["calibrations"]


def place(environment: Mapping[str, Any]) -> Place:
    """What a floor holds for."""
    return environment["device_name"], environment["device"], environment["threads"]


def with_floor(frame: pd.DataFrame, store: Store) -> pd.DataFrame:
    """A frame with the floor of the machine that each row was measured on, NaN where unknown.

    A file that cannot be read joins the store's problems.
    """
    if frame.empty:
        return frame
    try:
        found = read(store.path)
    except ValueError as error:
        found = []
        store.problems = list(dict.fromkeys([*store.problems, str(error)]))
    known = {place(c["environment"]): [c[name] for name in COLUMNS] for c in found}
    places = zip(frame["machine"], frame["device"], frame["threads"], strict=True)
    rows = [known.get(where, [math.nan] * len(COLUMNS)) for where in places]
    return pd.concat([frame, pd.DataFrame(rows, index=frame.index, columns=list(COLUMNS))], axis=1)
