"""How a store stands: what is done, failed, at work and left, who runs it, and for how long."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from bench.comparison import name
from bench.owner import Owner
from bench.planned import planned
from bench.report import numbers
from bench.stale import stale
from bench.statuses import GOOD, SHOWN
from bench.store import RECORD, Store

LAST = 5  # failures that are named
NOT_RUN = "interrupted"  # a cell that ended so is to run again


def standing(store: Store) -> dict[str, Any]:
    """All there is to say, as plain data.

    `planned` is the number of cells of the last run and `missing` how many of them are to run
    still, None where nobody says; `ended` counts cells that are not ok, by their status; `stale`
    those that are ok but of other code; `running` maps cells to who is at work on them,
    `abandoned` are cells whose attempt was killed; `per_minute` is the rate of who runs,
    `seconds_left` what it takes for the rest.
    """
    latest, plan = store.latest(), planned(store.path)
    running, abandoned = _unended(store)
    left = {cell for cell in plan or () if _is_left(latest.get(cell))}
    rate = _rate(latest.values(), running.values())
    failed = sorted(
        (r for r in latest.values() if r["status"] not in {*GOOD, NOT_RUN}), key=_ended_at
    )
    ended = Counter(r["status"] for r in latest.values() if r["status"] != "ok")
    return {
        "store": str(store.path),
        "planned": None if plan is None else len(plan),
        "ok": sum(record["status"] == "ok" for record in latest.values()),
        "ended": dict(ended),
        "stale": sum(record["status"] == "ok" and stale(record) for record in latest.values()),
        "missing": None if plan is None else len(left - running.keys()),
        "running": {cell: str(owner) for cell, owner in running.items()},
        "abandoned": [cell for cell in abandoned if _is_left(latest.get(cell))],
        "per_minute": rate,
        "seconds_left": None if plan is None or not rate else 60 * len(left) / rate,
        "last_failures": [_failure(record) for record in failed[-LAST:]],
        "problems": store.problems,
    }


def _is_left(record: Mapping[str, Any] | None) -> bool:
    return record is None or record["status"] == NOT_RUN


def _unended(store: Store) -> tuple[dict[str, Owner], list[str]]:
    """Cells whose last attempt has no record: those with somebody at work, and those without."""
    running, abandoned = {}, []
    for folder in sorted(store.path.glob("cells/*")):
        last = folder / f"{max(store.attempts(folder.name), default=0):04d}"
        owner = store.at_work(last)
        if owner is not None:
            running[folder.name] = owner
        elif last.is_dir() and not (last / RECORD).exists():
            abandoned.append(folder.name)
    return running, abandoned


def _rate(records: Iterable[Mapping[str, Any]], owners: Iterable[Owner]) -> float | None:
    """Cells a minute that have ended since the first of those at work was started."""
    since = min((owner.created for owner in owners), default=None)
    if since is None:
        return None
    ended, minutes = sum(_ended_at(r) >= since for r in records), (time.time() - since) / 60
    return ended / minutes if ended and minutes > 0 else None


def _ended_at(record: Mapping[str, Any]) -> float:
    """When an attempt ended, seconds since 1970; 0 where it does not say."""
    try:
        began = datetime.fromisoformat(record["started"]).timestamp()
        return began + float(record["wall_seconds"])
    except (KeyError, TypeError, ValueError):
        return 0.0


def _failure(record: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: record.get(key) for key in ("status", "reason", "started")}
    return {"cell": record["id"], "name": name(record), **about}


def text(about: Mapping[str, Any]) -> Iterator[str]:
    """The same for a terminal, line by line."""
    planned = "" if about["planned"] is None else f" (the last run planned {about['planned']})"
    yield about["store"]
    yield f"  {'ok':12} {about['ok']}{planned}"
    if about["stale"]:
        yield f"  {'stale':12} {about['stale']} of them: --rerun stale measures them again"
    for status, count in about["ended"].items():
        yield f"  {SHOWN.get(status, status):12} {count}"
    yield f"  {'running':12} {len(about['running'])}"
    yield from (f"  {'':12} {cell} by {who}" for cell, who in about["running"].items())
    if about["abandoned"]:
        yield f"  {'killed':12} {len(about['abandoned'])}: {', '.join(about['abandoned'])}"
    if about["missing"] is not None:
        yield f"  {'missing':12} {about['missing']}"
    if about["per_minute"] is not None:
        left = about["seconds_left"]
        rest = "" if left is None else f", {numbers.seconds(left)} left"
        yield f"  {'rate':12} {about['per_minute']:.2g} cells a minute{rest}"
    for failure in about["last_failures"]:
        word = SHOWN.get(failure["status"], failure["status"])
        yield f"  {word}: {failure['name']} ({failure['cell']}): {failure['reason']}"
    yield from (f"  warning: {problem}" for problem in about["problems"])
