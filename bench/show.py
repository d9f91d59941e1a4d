"""One cell of a store: what it is, what came of every attempt, and how to repeat it."""

import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.comparable import figures
from bench.report import numbers
from bench.stale import stale
from bench.stats import Interval
from bench.store import RECORD, Store

SHOWN = {"seconds": numbers.seconds_interval, "bytes": lambda mean, *_: numbers.size(mean)}


def shown(store: Store, cell: str) -> dict[str, Any]:
    """All there is to say, as plain data.

    Args:
        store: Where it is.
        cell: Its id.
    """
    records = {record["attempt"]: record for record in store.records(cell)}
    counted = store.latest(cell).get(cell)
    folders = sorted((store.path / "cells" / cell).glob("[0-9]*"))
    owners = [store.at_work(folder) for folder in folders[-1:]]
    at_work = next((str(owner) for owner in owners if owner is not None), None)
    about = {
        "cell": cell,
        "store": str(store.path),
        "state": _state(counted, running=at_work is not None),
        "at_work": at_work,
        "attempts": [_attempt(folder, records.get(folder.name)) for folder in folders],
        "problems": store.problems,
    }
    return about if counted is None else about | _of_record(counted, store)


def _state(record: dict[str, Any] | None, *, running: bool) -> str:
    if running:
        return "running"
    if record is None:
        return "without a record"
    return f"{record['status']}, stale" if stale(record) else str(record["status"])


def _of_record(record: dict[str, Any], store: Store) -> dict[str, Any]:
    """What the attempt that counts says."""
    alone = ["stitchbench", "run", record["suite"], "--store", str(store.path)]
    alone += ["--only", f"id={record['id']}", "--rerun", "all"]
    return {
        "suite": record["suite"],
        "task": record["spec"]["task"],
        "coordinates": record["coordinates"],
        "attempt": record["attempt"],
        "quick": record.get("quick", False),
        "reason": record.get("reason"),
        "spec": record["spec"],
        "environment": record["environment"],
        "phases": record.get("phases") or {},
        "wall_seconds": record.get("wall_seconds"),
        "rows": [
            {"place": f.place, "figure": f.name, "kind": f.kind, **f.estimate()._asdict()}
            for f in figures(record)
        ],
        "log": record["log"],
        "command": record.get("command") or shlex.join(alone),
    }


def _attempt(folder: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    """One attempt, whether it left a record or not."""
    files = [str(path) for path in sorted(folder.iterdir()) if path.is_file()]
    if record is None:
        torn = (folder / RECORD).exists()
        status = "record not readable" if torn else "no record: at work, or killed"
        return {"attempt": folder.name, "status": status, "files": files}
    names = ("attempt", "status", "reason", "exit", "started", "wall_seconds", "code")
    return {name: record.get(name) for name in names} | {"files": files}


def text(about: dict[str, Any]) -> Iterator[str]:
    """The same for a terminal, line by line."""
    yield f"{about['cell']}  {about['state']}"
    if "spec" in about:
        yield "  ".join(f"{k}={v}" for k, v in about["coordinates"].items() if v)
        quick = ", quick" if about["quick"] else ""
        yield f"suite {about['suite']}, task {about['task']}{quick}"
    if about["at_work"]:
        yield f"at work: {about['at_work']}"
    if "spec" in about:
        yield from _of_measured(about)
    yield from _block("attempts", map(_attempt_line, about["attempts"]))
    yield from _block("files", (file for a in about["attempts"] for file in a["files"]))
    yield from _block("problems", about["problems"])
    if "command" in about:
        yield from _block("log", about["log"])
        yield from _block("to repeat it", [about["command"]])


def _of_measured(about: dict[str, Any]) -> Iterator[str]:
    yield from _block("specification", _lines(about["spec"]))
    yield from _block("environment", _lines(about["environment"]))
    spent = [f"{name:24} {numbers.seconds(x)}" for name, x in about["phases"].items()]
    whole = about["wall_seconds"]
    yield from _block("phases", [*spent, f"{'in all':24} {numbers.seconds(whole)}"])
    yield from _block("rows", map(_row, about["rows"]))


def _row(row: dict[str, Any]) -> str:
    estimate = Interval(row["mean"], row["lo"], row["hi"], row["n"])
    said = SHOWN.get(row["kind"], numbers.interval)(*estimate[:3])
    return f"{row['place']:24} {row['figure']:24} {said}  (n = {row['n']})"


def _attempt_line(attempt: dict[str, Any]) -> str:
    words = [attempt["attempt"], attempt["status"]]
    if started := attempt.get("started"):
        words.append(_when(started))
    if (spent := attempt.get("wall_seconds")) is not None:
        words.append(numbers.seconds(spent))
    ended = attempt.get("exit") or {}
    words += [f"{name} {value}" for name, value in ended.items() if value is not None]
    words += [str(attempt["reason"])] if attempt.get("reason") else []
    return "  ".join(words)


def _when(started: str) -> str:
    """A time of day without its fractions; as it is where it is none."""
    try:
        return datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return started


def _lines(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested data, a line a value."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _lines(value, f"{prefix}{key}.")
        elif value not in (None, {}, []):
            yield f"{prefix + key:32} {value}"


def _block(title: str, lines: Any) -> Iterator[str]:
    """A titled block; nothing where it would be empty."""
    for number, line in enumerate(lines):
        if number == 0:
            yield f"\n{title}"
        yield f"  {line}"
