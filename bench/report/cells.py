"""What stands behind a number: a panel for every cell, reached from its rows in the tables.

It holds what was measured, where, with what, how it ended, and the command that repeats it.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.frame import SHOWN
from bench.report import numbers
from bench.store import Store

LOG = "log.txt"
TAIL = 30  # lines
Record = dict[str, Any]


class Panel(NamedTuple):
    """What a page says of one cell.

    Attributes:
        id: Of the cell.
        name: Of its estimator.
        ok: Whether it has numbers.
        status: How it ended, in a word.
        about: Heading to text: coordinates, reason, times, machine.
        command: What repeats it.
        texts: Heading to what is shown as it is: phases, log, specification, environment.
    """

    id: str
    name: str
    ok: bool
    status: str
    about: dict[str, str]
    command: str
    texts: dict[str, str]


class Behind(NamedTuple):
    """What a page says beside its numbers.

    Attributes:
        cells: A panel for each.
        verdicts: The claims of the task, judged; None: the page judges them.
    """

    cells: Sequence[Panel] = ()
    verdicts: list[Any] | None = None


ALONE = Behind()  # nothing


def panels(store: Store | None, records: Iterable[Record]) -> list[Panel]:
    """A panel for every record, in the order in which they were measured."""
    ordered = sorted(records, key=lambda record: (record.get("started", ""), record["id"]))
    return [_panel(store, record) for record in ordered]


def _panel(store: Store | None, record: Record) -> Panel:
    ok = record["status"] == "ok"
    status = SHOWN.get(record["status"], str(record["status"]))
    texts = {
        "Phases": _phases(record.get("phases") or {}),
        "End of its log": "\n".join(_log(store, record)),
        "Specification": _json(record["spec"]),
        "Environment": _json(record["environment"]),
    }
    return Panel(
        id=record["id"],
        name=record["coordinates"]["estimator"],
        ok=ok,
        status=f"{status}, stale" if record.get("stale") else status,
        about=_about(record),
        command=record.get("command") or command(record),
        texts={heading: text for heading, text in texts.items() if text},
    )


def _about(record: Record) -> dict[str, str]:
    """Headings and texts, without what is empty."""
    environment = record["environment"]
    wall = record.get("wall_seconds")
    found = {
        "reason": record.get("reason"),
        "exit": _exit(record.get("exit")),
        "suite": f"{record['suite']}{' (quick)' if record.get('quick') else ''}",
        **record["coordinates"],
        "seed": record["spec"].get("seed"),
        "started": str(record.get("started", ""))[:19].replace("T", " "),
        "took": "" if wall is None else numbers.seconds(wall),
        "isolation": record.get("isolation"),
        "attempt": record.get("attempt"),
        "machine": environment.get("device_name"),
        "device": environment.get("device"),
        "threads": environment.get("threads"),
        "commit": _commit(environment),
        "code": record.get("code"),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "", [])}


def _exit(ended: dict[str, Any] | None) -> str:
    """`signal SIGKILL` or `code 1`."""
    if not ended:
        return ""
    return f"signal {ended['signal']}" if ended.get("signal") else f"code {ended.get('code')}"


def _commit(environment: dict[str, Any]) -> str:
    commit = environment.get("commit")
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    return f"{commit[:12]}{changed}" if commit else ""


def _phases(spent: dict[str, float]) -> str:
    """A line for each, the name and its seconds."""
    wide = max(map(len, spent), default=0)
    return "\n".join(f"{name:{wide}}  {numbers.seconds(x)}" for name, x in spent.items())


def _log(store: Store | None, record: Record) -> list[str]:
    """The last lines that a cell wrote: as recorded, or of its file where it failed."""
    if record.get("log") is not None:
        return [str(line) for line in record["log"]][-TAIL:]
    if store is None or record["status"] == "ok":
        return []
    path = store.path / "cells" / record["id"] / str(record.get("attempt")) / LOG
    return _read(path).splitlines()[-TAIL:]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)


def command(record: Record) -> str:
    """What repeats a cell alone, of a record that does not say."""
    quick = ["--quick"] if record.get("quick") else []
    seed = ["--seed", str(record["spec"].get("seed", 0))]
    only = ["--only", f"id={record['id']}", "--rerun", "all"]
    return shlex.join(["stitchbench", "run", record["suite"], *quick, *seed, *only])
