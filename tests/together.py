"""Two threads in place of two processes that train together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stitchvm.workers import Workers

PATIENCE = 60.0  # seconds: a thread that fails must not leave the other waiting


@dataclass(frozen=True)
class Meeting:
    """Where two threads meet, and what they bring."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    brought: dict[int, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Thread(Workers):
    """One of two."""

    count: int = 2
    meeting: Meeting = field(default_factory=Meeting)

    def mean(self, tensors):
        tensors = list(tensors)
        self.meeting.brought[self.rank] = [x.detach().clone() for x in tensors]
        self.wait()
        for x, *parts in zip(tensors, *self.meeting.brought.values(), strict=True):
            x.detach().copy_(sum(parts) / len(parts))
        self.wait()

    def wait(self):
        self.meeting.barrier.wait(PATIENCE)


def both(work):
    """What `work` returns for each of two workers that run at the same time."""
    meeting = Meeting()

    def guarded(rank):
        try:
            return work(Thread(rank, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        return [made.result() for made in [pool.submit(guarded, rank) for rank in (0, 1)]]
