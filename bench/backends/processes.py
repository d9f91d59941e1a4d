"""On this machine, each cell in a fresh process: one per GPU at once, or so many on the CPU."""

import os
import select
import time
from pathlib import Path
from typing import NamedTuple

from bench.attempt import Job
from bench.backends import Announce, Backend, Ended
from bench.child import Child

LISTEN_EVERY = 2.0  # seconds


class Slot(NamedTuple):
    """A place where one cell runs at a time.

    Attributes:
        device: As the cell's process calls it.
        variables: Environment variables that make it so.
    """

    device: str
    variables: dict[str, str]


def slots_of(device: str, jobs: int | None, gpus: int) -> list[Slot]:
    """The slots of this machine.

    Args:
        device: `cpu`; `cuda`, for every visible GPU; or one of them, `cuda:1`.
        jobs: Cells at once; None: one per GPU, or one.
        gpus: How many GPUs are visible.
    """
    if device != "cuda":
        return [Slot(device, {})] * (jobs or 1)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(k) for k in range(gpus)]
    places = [Slot("cuda:0", {"CUDA_VISIBLE_DEVICES": name.strip()}) for name in names]
    return [places[k % len(places)] for k in range(jobs or len(places))]


class Processes(Backend):
    """Runs every job in a process of its own.

    Args:
        slots: Where.
        seconds: Wall time of each; None: any.
        announce: Takes what cells say of long work that is done once.
    """

    def __init__(self, slots: list[Slot], seconds: float | None, announce: Announce) -> None:
        self.slots, self.seconds, self.announce = len(slots), seconds, announce
        self._free = list(slots)
        self._running: dict[Child, Slot] = {}

    @property
    def busy(self) -> int:
        """How many processes run."""
        return len(self._running)

    def start(self, job: Job, attempt: Path) -> None:
        """Start a process for a job."""
        slot = self._free.pop(0)
        job = job.model_copy(update={"device": slot.device})
        self._running[Child(job, attempt, self.seconds, slot.variables)] = slot

    def wait(self) -> list[Ended]:
        """Sleep until one ends, one is due, or there may be news."""
        dues = [child.due - time.monotonic() for child in self._running if child.due is not None]
        patience = max(0.0, min([LISTEN_EVERY, *dues]))
        readable, _, _ = select.select(list(self._running), [], [], patience)
        for child in readable:
            child.reap()
        return [ended for child in list(self._running) if (ended := self._look(child))]

    def _look(self, child: Child) -> Ended | None:
        for news in child.news():
            self.announce(news)
        if (how := child.ended) is None:
            child.press()
            return None
        self._free.append(self._running.pop(child))
        child.close()
        return Ended(child.attempt, how)

    def stop(self) -> None:
        """Tell all to end."""
        for child in self._running:
            if child.cause is None:
                child.end("interrupted")

    def close(self) -> None:
        """Kill what still runs."""
        for child in self._running:
            child.close()
        self._running.clear()
