"""The machine as Linux tells it: processors, load, who else computes, memory, disk.

What the system does not tell is None.  Seconds, bytes, and shares of one core.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
BUSY = 0.1  # of a core; less than that is nobody's competitor
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Process(NamedTuple):
    """A process: its number, name, state (R: running or ready) and CPU-seconds so far."""

    pid: int
    name: str
    state: str
    seconds: float


def affinity() -> list[int] | None:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def quota() -> float | None:
    """How many cores a container grants; None where there is no limit."""
    words = _read(CGROUP / "cpu.max").split()
    return float(words[0]) / float(words[1]) if len(words) == 2 and words[0] != "max" else None  # noqa: PLR2004


def load() -> list[float] | None:
    """Load averages of 1, 5 and 15 minutes: how many processes wished to run."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except OSError:
        return None


def busy_seconds() -> float | None:
    """Seconds that all cores together have computed since the start of the machine."""
    words = _read(PROC / "stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":  # noqa: PLR2004 - eight counts follow the name
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def own_seconds() -> float:
    """Seconds that this process and its ended children have computed."""
    return sum(os.times()[:4])


def processes() -> Iterator[Process]:
    """All that can be seen, this one left out."""
    for folder in PROC.glob("[0-9]*"):
        head, _, tail = _read(folder / "stat").rpartition(")")
        words = tail.split()
        if int(folder.name) != os.getpid() and len(words) > 12:  # noqa: PLR2004 - up to stime
            spent = (int(words[11]) + int(words[12])) / TICKS
            yield Process(int(folder.name), head.partition("(")[2], words[0], spent)


def running() -> list[str]:
    """Names of other processes that run, or are ready to, at this moment."""
    return sorted(process.name for process in processes() if process.state == "R")


def busiest(during: float) -> list[tuple[Process, float]]:
    """Other processes that compute, and their share of a core, the busiest first.

    Args:
        during: Seconds to watch them.
    """
    start, before = time.monotonic(), {p.pid: p.seconds for p in processes()}
    time.sleep(during)
    spent = time.monotonic() - start
    found = [(p, (p.seconds - before.get(p.pid, p.seconds)) / spent) for p in processes()]
    return sorted((x for x in found if x[1] >= BUSY), key=lambda x: -x[1])


def memory() -> tuple[int | None, int | None]:
    """Bytes that are still available, and in all; a container's limit counts."""
    lines = (line.split() for line in _read(PROC / "meminfo").splitlines())
    known = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    free, whole = known.get("MemAvailable"), known.get("MemTotal")
    limit, used = (_read(CGROUP / f"memory.{name}").strip() for name in ("max", "current"))
    if free is None or whole is None or not (limit.isdigit() and used.isdigit()):
        return free, whole
    return min(free, max(0, int(limit) - int(used))), min(whole, int(limit))


def free_disk(path: Path) -> int:
    """Bytes left where a path is, or would be."""
    status = os.statvfs(standing(path))
    return status.f_bavail * status.f_frsize


def standing(path: Path) -> Path:
    """The nearest folder of a path that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def _read(path: Path) -> str:
    """A file of the system; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
