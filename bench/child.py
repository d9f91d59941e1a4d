"""A cell in a fresh process, watched: it is told to end in time, and ends with its parent.

The parent waits on a pipe that the child holds open, so that it sleeps until a child ends or is
due; a child that ignores SIGTERM is killed with its whole group.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.attempt import JOB, Job
from bench.store import LOG

GRACE = 5.0  # seconds from SIGTERM to SIGKILL
ANNOUNCED = "making the "  # begins what a cell says of long work that is done once


class Exit(NamedTuple):
    """How a process ended.

    Attributes:
        code: As `subprocess` returns it, the negative number of a signal.
        cause: `timeout` or `interrupted` where we ended it.
        killed_for_memory: Whether the system was seen to kill for want of memory meanwhile.
    """

    code: int
    cause: str | None = None
    killed_for_memory: bool = False

    def as_dict(self) -> dict[str, int | str | None]:
        """For a record."""
        if self.code >= 0:
            return {"code": self.code, "signal": None}
        return {"code": None, "signal": signal.Signals(-self.code).name}


class Child:
    """A process that measures the job of an attempt's folder.

    Args:
        job: What to measure.
        attempt: The folder.
        seconds: Wall time it has; None: any.
        variables: Environment variables beside our own.
    """

    def __init__(
        self, job: Job, attempt: Path, seconds: float | None, variables: dict[str, str]
    ) -> None:
        self.attempt, self._announced = attempt, 0
        self.cause: str | None = None
        self.start = time.monotonic()
        self.due = None if seconds is None else self.start + seconds
        self._kills = _kills_for_memory()
        (attempt / JOB).write_text(job.model_dump_json(indent=1))
        threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
        command = [sys.executable, "-m", "bench.attempt", str(attempt), str(self.start)]
        self._pipe, held = os.pipe()
        try:
            with (attempt / LOG).open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | threads | variables,
                    start_new_session=True,
                    pass_fds=(held,),
                )
        finally:
            os.close(held)

    def fileno(self) -> int:
        """Of the pipe, which is readable when the process has ended."""
        return self._pipe

    @property
    def ended(self) -> Exit | None:
        """How it ended, None while it works."""
        code = self._process.poll()
        if code is None:
            return None
        killed = code == -signal.SIGKILL and _kills_for_memory() > self._kills
        return Exit(code, self.cause, killed)

    def reap(self) -> None:
        """Wait for it to be gone, once its end of the pipe is closed: an instant."""
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:  # it closed the pipe, and goes on
            pass

    def press(self) -> None:
        """End it if it is overdue, and kill it if it was told to and does not."""
        if self.due is None or time.monotonic() < self.due:
            return
        if self.cause is None:
            self.end("timeout")
        else:
            self._signal(signal.SIGKILL)

    def outlast(self) -> Exit:
        """Wait until it has ended, and end it when it is due."""
        while (how := self.ended) is None:
            patience = None if self.due is None else max(0.0, self.due - time.monotonic())
            if select.select([self], [], [], patience)[0]:
                self.reap()
            self.press()
        return how

    def end(self, cause: str) -> None:
        """Tell it to end."""
        self.cause, self.due = cause, time.monotonic() + GRACE
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Leave nothing of it behind."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._pipe)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # it ended; macOS refuses to signal a zombie
            pass

    def news(self) -> list[str]:
        """What it has announced since last asked."""
        try:
            lines = (self.attempt / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return []
        announced = [line for line in lines if line.startswith(ANNOUNCED)]
        news, self._announced = announced[self._announced :], len(announced)
        return news


def last_line(attempt: Path) -> str:
    """The last line of an attempt's log."""
    try:
        lines = (attempt / LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _kills_for_memory() -> int:
    """How often this system's kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
