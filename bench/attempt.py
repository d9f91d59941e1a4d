"""One attempt at a cell, measured in this process: it ends as a record, whatever happens.

`python -m bench.attempt FOLDER START PARENT` measures the job in an attempt's folder.  START is
the monotonic clock of the process that started it, which processes of one machine share, so that
a record knows what starting cost; PARENT is that process, with which this one ends.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench.cell import SCHEMA, Cell, Spec
from bench.part import Model
from bench.resolve import place
from bench.statuses import Status, out_of_memory
from bench.store import LOG, Store

JOB = "job.json"
WORK = "work"  # what killed cells go on from, by cell
CODE = "code.json"  # which code left it there
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)

Isolation = Literal["inline", "process"]


class Job(Model):
    """What a process needs to measure a cell.

    Attributes:
        cell: The cell.
        isolation: How it is run, for the record.
        device: Where to compute.
        threads: CPU threads.
        jobs: Cells at work at once on this machine; timings of several disturb each other.
        memory: Bytes of private memory it may take; None: any.
        command: What repeats it.
        code: Digest of the code that it depends on, `code_of`; None: to be taken where it runs.
    """

    cell: Cell
    isolation: Isolation = "process"
    device: str = "cpu"
    threads: int = 1
    jobs: int = 1
    memory: int | None = None
    command: str = ""
    code: dict[str, Any] | None = None


def measure(job: Job, attempt: Path, start: float | None = None) -> None:
    """Run one cell here and record what came of it.

    Args:
        job: What to measure.
        attempt: Its attempt's folder.
        start: When its process was started, if it has one of its own (`time.monotonic`).

    Raises:
        OSError: if the record cannot be written.
    """
    from bench.environment import conditions  # noqa: PLC0415
    from bench.tasks import RESUMED, TASKS, Outcome  # noqa: PLC0415 - imports torch

    began = time.monotonic()
    store, cell = Store.of(attempt), job.cell
    record = head(job)
    outcome, status, reason = Outcome(), "ok", None
    work, before = store.path / WORK / cell.id, conditions(job.device)
    try:
        if cell.spec.task in RESUMED:
            _make_room(work, record["code"])
        outcome = TASKS[cell.spec.task](cell.spec, job.device, work)
    except (Exception, SystemExit) as error:
        status, reason = of_exception(error)
        with (attempt / LOG).open("a") as log:
            log.write(traceback.format_exc())
    record["environment"] |= _disturbed(before, conditions(job.device), job.threads)
    record |= {
        "status": status,
        "reason": reason,
        "rows": outcome.rows,
        "phases": outcome.phases | {"start": 0.0 if start is None else began - start},
        "wall_seconds": time.monotonic() - (began if start is None else start),
    }
    problem = (_unwritable(record) or store.fault(record)) if status == "ok" else None
    if problem is not None:
        record |= {"status": "invalid", "reason": problem, "rows": []}
    store.write(attempt, record, outcome.arrays if problem is None else {})
    if record["status"] == "ok":
        shutil.rmtree(work, ignore_errors=True)


def _make_room(folder: Path, code: dict[str, Any] | None) -> None:
    """Make the folder of what a killed run goes on from, and set aside what other code left."""
    said = json.dumps(code, sort_keys=True)
    if folder.is_dir() and _said(folder / CODE) != said:
        aside = folder.with_name(f"{folder.name}-stale-{time.time_ns()}")
        folder.rename(aside)
        print(f"began anew: {aside} is of other code", file=sys.stderr)  # noqa: T201
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CODE).write_text(said)


def _said(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


def _disturbed(before: dict[str, Any], after: dict[str, Any], threads: int) -> dict[str, Any]:
    """What a record keeps of the machine's state meanwhile."""
    from bench.environment import disturbances  # noqa: PLC0415

    found = disturbances(before, after, threads)
    return {"before": before, "after": after, "disturbed": found}


def _unwritable(record: dict[str, Any]) -> str | None:
    """What keeps a record from being written as JSON."""
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"expected plain data and finite numbers: {error}"
    return None


def of_exception(error: BaseException) -> tuple[Status, str]:
    """The status and the reason of a cell that ended with an exception.

    One from a user's file says where in it.
    """
    from stitchvm.sample import Diverged  # noqa: PLC0415 - imports torch
    from stitchvm.value import NotApplicable  # noqa: PLC0415

    text = f"{type(error).__name__}: {error}{place(error)}"
    if isinstance(error, NotApplicable):
        return "skipped", str(error)
    if isinstance(error, Diverged):
        return "diverged", str(error)
    if isinstance(error, SystemExit):
        return "error", f"it called sys.exit({error.code!r}){place(error)}"
    if isinstance(error, MemoryError):
        return "oom_host", text
    return out_of_memory(text) or "error", text


def head(job: Job) -> dict[str, Any]:
    """The head of a cell's record: what it is, of which code, and where it was measured."""
    from bench.environment import environment  # noqa: PLC0415 - imports torch

    return {
        "schema": SCHEMA,
        **job.cell.model_dump(mode="json"),
        "id": job.cell.id,
        "isolation": job.isolation,
        "jobs": job.jobs,
        "command": f"{job.command} --only id={job.cell.id} --rerun all",
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "environment": environment(job.device),
        "code": job.code or code_of(job.cell.spec),
    }


def code_of(spec: Spec) -> dict[str, Any] | None:
    """The code that measures a cell; None where a name does not resolve."""
    from bench.stale import code  # noqa: PLC0415

    try:
        return code(_roots(spec))
    except ValueError:
        return None


def _roots(spec: Spec) -> Iterator[str]:
    """The modules of a cell's task and builds, and of estimators that its settings name."""
    from bench.algorithms import ALGORITHMS  # noqa: PLC0415 - imports torch
    from bench.resolve import resolve  # noqa: PLC0415
    from bench.tasks import ESTIMATORS  # noqa: PLC0415
    from bench.trainers import TRAINERS  # noqa: PLC0415
    from bench.worlds import WORLDS  # noqa: PLC0415

    yield f"bench.tasks.{spec.task}"
    known = ESTIMATORS[spec.task]
    yield resolve(spec.world.build, WORLDS, "world").__module__
    yield resolve(spec.estimator.build, known, "estimator").__module__
    for setting in spec.estimator.settings.values():
        if isinstance(setting, str) and setting in known:
            yield known[setting].__module__
    if spec.algorithm is not None:
        registry = ALGORITHMS if spec.task == "align" else TRAINERS
        yield resolve(spec.algorithm.build, registry, "algorithm").__module__


def set_threads(threads: int) -> None:
    """Let torch use so many CPU threads."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)


def _die_with_parent(parent: int) -> None:
    """End with the process that started this one, where the system knows how (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before that
            os.kill(os.getpid(), signal.SIGKILL)


def _limit_memory(size: int) -> None:
    """Refuse private memory beyond a size: Python raises MemoryError, torch a RuntimeError."""
    import resource  # noqa: PLC0415 - not everywhere

    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main(arguments: Sequence[str]) -> None:
    """Measure the job of an attempt's folder in this process."""
    folder, start, parent = arguments
    _die_with_parent(int(parent))
    job = Job.model_validate_json((Path(folder) / JOB).read_bytes())
    if job.memory is not None:
        _limit_memory(job.memory)
    set_threads(job.threads)
    measure(job, Path(folder), start=float(start))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written, and taking torch down would take half a second


if __name__ == "__main__":
    main(sys.argv[1:])
