"""Running cells: those that are missing, each to its end, which is a record whatever happens.

Cells run where a backend puts them.  Killed at any moment, a second run does what is missing; a
runner that shares a store with others leaves them the cells they are at work on.
"""

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from bench.attempt import Job, code_of, head
from bench.backends import Announce, Backend, Ended
from bench.backends.inline import Inline
from bench.backends.processes import Processes, slots_of
from bench.cell import Cell
from bench.child import Exit, last_line
from bench.how import How
from bench.owner import OWNER, Owner
from bench.planned import keep
from bench.signals import Asked, listening
from bench.statuses import GOOD, Status, of_exit
from bench.store import RECORD, Store


@dataclass(frozen=True)
class Progress:
    """What a runner tells while it works.

    Attributes:
        cell: The cell at work or just ended.
        index: How many ended before it, of those to run.
        total: How many there are to run.
        status: None while it works, then how it ended.
        reason: Why it failed.
        seconds: How long it took.
    """

    cell: Cell
    index: int
    total: int
    status: Status | None = None
    reason: str | None = None
    seconds: float = 0.0


Outcome = Literal["ok", "error", "before", "skipped", "elsewhere", "left"]
Tell = Callable[[Progress], None]
Turn = tuple[Cell, int]  # a cell, and which of its good attempts this is to be


def run(
    cells: Sequence[Cell],
    store: Store,
    how: How = How(),  # noqa: B008 - frozen
    *,
    tell: Tell = lambda _: None,
    announce: Announce = lambda _: None,
) -> dict[str, int]:
    """Run the cells that the store lacks.

    A failed cell is recorded with its reason and the others go on.

    Args:
        cells: What to run.
        store: Where records go.
        how: How.
        tell: Takes the progress.
        announce: Takes what cells say of long work that is done once.

    Returns:
        How many cells ended `ok`, all their attempts, with an `error` of any kind, or were there
        `before`; and, where there are any, how many were `skipped`, are `elsewhere`, with another
        runner, or were `left` after too many failures or for want of time.  Every cell counts
        once.

    Raises:
        ValueError: if the store cannot be written to, or there is no such device or cluster.
        KeyboardInterrupt: asked to stop; cells that had not ended are recorded as interrupted.
    """
    store.prepare()
    check_device(how.device)
    missing = _missing(cells, store, how)
    left = {cell.id for cell, _ in missing}
    outcomes: dict[str, Outcome] = {cell.id: "before" for cell in cells if cell.id not in left}
    with closing(_backend(how, announce)) as backend, listening(announce) as asked:
        runner = _Runner(store, how, backend, asked, tell, outcomes, deque(missing))
        try:
            keep(store.path, [cell.id for cell in cells])
            runner.run()
        except OSError as error:
            raise ValueError(
                f"expected a store that can be written to, got {store.path}: {error.strerror}; "
                f"finished cells are kept"
            ) from error
        finally:
            for attempt in runner.at_work:  # nobody is at work there any more
                (attempt / OWNER).unlink(missing_ok=True)
    return {"ok": 0, "error": 0, "before": 0, **Counter(outcomes.values())}


def _missing(cells: Sequence[Cell], store: Store, how: How) -> list[Turn]:
    """What is to run: of cells that are measured several times, all once, then all again."""
    known = defaultdict(list)
    for record in store.records():
        known[record["id"]].append(record)
    turns = [[(cell, number) for number in how.times(known[cell.id])] for cell in cells]
    rounds = zip_longest(*turns)
    return [turn for of_round in rounds for turn in of_round if turn is not None]


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: saying which are.
    """
    import torch  # noqa: PLC0415

    known = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    if device not in known and not (device == "cuda" and len(known) > 1):
        raise ValueError(f"expected a device of this machine, {', '.join(known)}, got {device!r}")


def _backend(how: How, announce: Announce) -> Backend:
    import torch  # noqa: PLC0415

    if how.inline:
        return Inline()
    if how.backend == "ray":
        from bench.backends.ray import Ray  # noqa: PLC0415

        return Ray(how.address, how.limits.seconds)
    slots = slots_of(how.device, how.jobs, torch.cuda.device_count())
    return Processes(slots, how.limits.seconds, announce)


@dataclass
class _Runner:
    """One run: cells wait in a queue, run, and end.

    Attributes:
        outcomes: What came of cells so far, by their id.
        queue: What is to run.
        at_work: The cells that run, with when they began, by their attempt.
        elsewhere: What another runner is at work on.
        longest: Seconds of the longest cell so far.
    """

    store: Store
    how: How
    backend: Backend
    asked: Asked
    tell: Tell
    outcomes: dict[str, Outcome]
    queue: deque[Turn]
    at_work: dict[Path, tuple[Cell, float]] = field(default_factory=dict)
    elsewhere: list[Turn] = field(default_factory=list)
    longest: float = 0.0

    def run(self) -> None:
        """Run all, and stop where asked to."""
        self.total, self.ended = len(self.queue), 0
        self.began = time.perf_counter() if self.how.began is None else self.how.began
        try:
            self._drain()
            if not self.queue:  # what others were at work on may have been left by them
                self.queue, self.elsewhere = deque(self.elsewhere), []
                self._drain()
        except KeyboardInterrupt:
            self.asked.times = max(self.asked.times, 2)
            self.backend.stop()
            self._drain()
            self._interrupted()
            raise
        for cell, _ in self.elsewhere:
            self._settle(cell, "elsewhere")
        for cell, _ in self.queue:
            self._settle(cell, "left")
        if self.asked.times and (self.queue or self.elsewhere):
            raise KeyboardInterrupt

    def _drain(self) -> None:
        while (self.queue and not self._enough) or self.backend.busy:
            while self.queue and not self._enough and self.backend.busy < self.backend.slots:
                self._start(*self.queue.popleft())
            for ended in self.backend.wait():
                self._end(ended)

    @property
    def _late(self) -> bool:
        """Whether a cell that takes as long as the longest would end after the budget."""
        spent, first = time.perf_counter() - self.began, not (self.ended or self.at_work)
        return (
            self.how.budget is not None
            and not first  # however long it took until here, each run gets on
            and spent + self.longest > self.how.budget
        )

    @property
    def _enough(self) -> bool:
        if self._late:
            return True
        if self.asked.times or self.how.max_failures is None:
            return self.asked.times > 0
        return list(self.outcomes.values()).count("error") >= self.how.max_failures

    def _is_over(self, cell: Cell) -> bool:
        """Whether a cell failed or was skipped: it is not tried again in this run."""
        return self.outcomes.get(cell.id) in {"error", "skipped"}

    def _settle(self, cell: Cell, outcome: Outcome) -> None:
        """Say what came of a cell, unless it is over."""
        if not self._is_over(cell):
            self.outcomes[cell.id] = outcome

    def _start(self, cell: Cell, number: int) -> None:
        if self._is_over(cell):
            return
        attempt = self.store.begin(cell.id, unlock=self.how.unlock)
        if isinstance(attempt, Owner):
            self.elsewhere.append((cell, number))
            return
        if self._done_meanwhile(cell, number):
            self.store.withdraw(attempt)
            self.outcomes.setdefault(cell.id, "before")
            return
        self.at_work[attempt] = cell, time.perf_counter()
        if (why := self.how.refused.get(cell.id)) is not None:
            kept = Ended(attempt, Exit(0))
            self._record(cell, kept, "oom_gpu", why, 0.0)
            self._end(kept)
            return
        self.tell(Progress(cell, self.ended, self.total))
        self.backend.start(self._job(cell), attempt)

    def _done_meanwhile(self, cell: Cell, number: int) -> bool:
        """Whether another runner has made an attempt since we asked what is missing."""
        return sum(r["status"] == "ok" for r in self.store.records(cell.id)) >= number

    def _job(self, cell: Cell) -> Job:
        return Job(
            cell=cell,
            isolation="inline" if self.how.inline else "process",
            device=self.how.device,
            threads=self.how.threads,
            jobs=self.backend.slots,
            memory=self.how.limits.memory,
            command=self.how.command,
            code=code_of(cell.spec) if self.how.backend == "process" else None,
        )

    def _end(self, ended: Ended) -> None:
        cell, began = self.at_work.pop(ended.attempt)
        if not (ended.attempt / RECORD).is_file():
            status, reason = self._why(ended)
            self._record(cell, ended, status, reason, time.perf_counter() - began)
        record = json.loads((ended.attempt / RECORD).read_bytes())
        status, reason = record["status"], record["reason"]
        self._settle(cell, status if status in GOOD else "error")
        spent = time.perf_counter() - began
        self.longest = max(self.longest, spent)
        self.tell(Progress(cell, self.ended, self.total, status, reason, spent))
        self.ended += 1

    def _why(self, ended: Ended) -> tuple[Status, str]:
        """Why an attempt has no record."""
        how = ended.exit
        if how.cause == "timeout":
            return "timeout", f"it took longer than {self.how.limits.seconds:g} s"
        if how.cause == "interrupted":
            return "interrupted", "it was ended before it was done"
        if how.killed_for_memory:
            return "oom_host", "the system killed it for want of memory"
        if how.cause is not None:
            return "error", f"its process was {how.cause}"
        return of_exit(how.code, last_line(ended.attempt))

    def _record(
        self, cell: Cell, ended: Ended, status: Status, reason: str, seconds: float
    ) -> None:
        failed = {"status": status, "reason": reason, "exit": ended.exit.as_dict()}
        rest: dict[str, Any] = {"rows": [], "phases": {}, "wall_seconds": seconds}
        self.store.write(ended.attempt, head(self._job(cell)) | failed | rest, {})

    def _interrupted(self) -> None:
        """Record what ran here, in this process, when it was interrupted."""
        for attempt, (cell, began) in self.at_work.items():
            if not (attempt / RECORD).is_file():
                spent = time.perf_counter() - began
                how = Ended(attempt, Exit(0, "interrupted"))
                self._record(cell, how, "interrupted", "it was ended before it was done", spent)
