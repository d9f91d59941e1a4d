"""Running cells: in this process, or in a fresh one each; every attempt ends as a record.

`python -m bench.run ATTEMPT_FOLDER STORE DEVICE THREADS START` measures the cell of an
attempt's folder: what the parent starts for suites with `isolation: process`.  START is the
parent's monotonic clock, which processes share, so that a record knows what starting cost.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench.cell import SCHEMA, Cell
from bench.store import RECORD, Store

CELL = "cell.json"
LOG = "log.txt"
WORK = "work"  # what killed cells go on from, by cell
ANNOUNCED = "making the "  # begins what a cell says of long work that is done once
LISTEN_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Progress:
    """What a runner tells while it works.

    Attributes:
        cell: The cell at work or just ended.
        index: Its number among those to run, from 0.
        total: How many there are to run.
        status: None while it works, then "ok" or "error".
        reason: Why it failed.
        seconds: How long it took.
    """

    cell: Cell
    index: int
    total: int
    status: str | None = None
    reason: str | None = None
    seconds: float = 0.0


def run(
    cells: Sequence[Cell],
    store: Store,
    *,
    isolation: Literal["inline", "process"] = "process",
    device: str = "cpu",
    threads: int = 1,
    tell: Callable[[Progress], None] = lambda _: None,
) -> dict[str, int]:
    """Run the cells that the store lacks.

    A failed cell is recorded with its reason and the others go on.

    Args:
        cells: What to run.
        store: Where records go.
        isolation: Here, one after the other, or each in a fresh process.
        device: Where to compute.
        threads: CPU threads of a cell; one by default, so that numbers repeat and timings do not
            depend on who else computes.
        tell: Takes the progress.

    Returns:
        How many cells are `ok`, `error`, or were there `before`.

    Raises:
        ValueError: if the store cannot be written to, or there is no such device.
        KeyboardInterrupt: passed on; finished cells are safe, the one at work is lost.
    """
    store.prepare()
    check_device(device)
    done = store.done()
    missing = [cell for cell in cells if cell.id not in done]
    counts = {"ok": 0, "error": 0, "before": len(cells) - len(missing)}
    for index, cell in enumerate(missing):
        tell(Progress(cell, index, len(missing)))
        start = time.perf_counter()
        attempt = store.begin(cell.id)
        if isolation == "process":
            status, reason = _spawn(cell, attempt, store, device, threads)
        else:
            set_threads(threads)
            status, reason = measure(cell, attempt, store, device, isolation)
        counts["ok" if status == "ok" else "error"] += 1
        spent = time.perf_counter() - start
        tell(Progress(cell, index, len(missing), status, reason, spent))
    return counts


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: saying which are.
    """
    import torch  # noqa: PLC0415

    known = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if device not in known and not (device == "cuda" and len(known) > 1):
        raise ValueError(f"expected a device of this machine, {', '.join(known)}, got {device!r}")


def set_threads(threads: int) -> None:
    """Let torch use so many CPU threads."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)


def measure(
    cell: Cell,
    attempt: Path,
    store: Store,
    device: str,
    isolation: Literal["inline", "process"],
    start: float | None = None,
) -> tuple[str, str | None]:
    """Run one cell here and record what came of it: its status, and why it failed.

    Args:
        cell: The cell.
        attempt: Its attempt's folder.
        store: Where the record goes.
        device: Where to run.
        isolation: How it is run, for the record.
        start: When its process was started, if it has one of its own (`time.monotonic`).
    """
    from bench.tasks import TASKS, Outcome  # noqa: PLC0415 - imports torch
    from stitchvm.sample import Diverged  # noqa: PLC0415

    began = time.monotonic()
    record = _record(cell, device, isolation)
    outcome, status, reason = Outcome(), "ok", None
    try:
        outcome = TASKS[cell.spec.task](cell.spec, device, store.path / WORK / cell.id)
    except Exception as error:
        status = "diverged" if isinstance(error, Diverged) else "error"
        reason = f"{type(error).__name__}: {error}"
        (attempt / LOG).write_text(traceback.format_exc())
    phases = outcome.phases | {"start": 0.0 if start is None else began - start}
    record |= {
        "status": status,
        "reason": reason,
        "rows": outcome.rows,
        "phases": phases,
        "wall_seconds": time.monotonic() - (began if start is None else start),
    }
    store.write(attempt, record, outcome.arrays)
    if status == "ok":
        shutil.rmtree(store.path / WORK / cell.id, ignore_errors=True)
    return status, reason


def _spawn(
    cell: Cell, attempt: Path, store: Store, device: str, threads: int
) -> tuple[str, str | None]:
    """Run one cell in a fresh process."""
    (attempt / CELL).write_text(cell.model_dump_json(indent=1))
    start = str(time.monotonic())
    command = [sys.executable, "-m", "bench.run", str(attempt), str(store.path), device]
    command += [str(threads), start]
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with (attempt / LOG).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        try:
            code = _await(process, attempt / LOG)
        finally:
            process.kill()
            process.wait()
    if (attempt / RECORD).is_file():
        record = json.loads((attempt / RECORD).read_bytes())
        return record["status"], record["reason"]
    tail = (attempt / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    reason = f"its process ended with code {code}: {' '.join(tail)}"
    failed = {"status": "error", "reason": reason, "rows": [], "phases": {}}
    wall = time.monotonic() - float(start)
    store.write(attempt, _record(cell, device, "process") | failed | {"wall_seconds": wall}, {})
    return "error", reason


def _await(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for a cell's process, and pass on what it announces; returns its exit code."""
    passed_on = 0
    while True:
        try:
            return process.wait(timeout=LISTEN_EVERY)
        except subprocess.TimeoutExpired:
            lines = log.read_text(errors="replace").splitlines()
            announced = [line for line in lines if line.startswith(ANNOUNCED)]
            for line in announced[passed_on:]:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
            passed_on = len(announced)


def _record(cell: Cell, device: str, isolation: str) -> dict[str, Any]:
    """The head of a cell's record: what it is and where it was measured."""
    from bench.environment import environment  # noqa: PLC0415 - imports torch

    return {
        "schema": SCHEMA,
        **cell.model_dump(mode="json"),
        "id": cell.id,
        "isolation": isolation,
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "environment": environment(device),
    }


def _main(arguments: Sequence[str]) -> None:
    """Measure the cell of an attempt's folder in this process."""
    attempt, store, device, threads, start = arguments
    set_threads(int(threads))
    cell = Cell.model_validate_json((Path(attempt) / CELL).read_text())
    measure(cell, Path(attempt), Store(store), device, "process", start=float(start))


if __name__ == "__main__":
    _main(sys.argv[1:])
