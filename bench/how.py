"""How cells are run: where, how often, within what limits, and which ended ones run again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.attempt import Isolation
from bench.limits import Limits
from bench.stale import stale
from bench.statuses import RERUNS


@dataclass(frozen=True)
class How:
    """How cells are run.

    Attributes:
        isolation: In the runner's own process, or each in a fresh one.
        device: `cpu`; `cuda`, every visible GPU with a cell at a time each; or one, `cuda:1`.
        threads: CPU threads of a cell; one by default, so that numbers repeat and timings do not
            depend on who else computes.
        jobs: Cells at once; None: one, or one per GPU.
        backend: Processes of this machine, or tasks of a Ray cluster.
        address: Of the cluster; None starts one on this machine.
        limits: What a cell may use.
        rerun: Which ended cells run again, names of `RERUNS`.
        processes: How many times each cell is measured, in turns, each in a process of its own;
            tables take what varies between them as the uncertainty of times.
        max_failures: Failed cells after which no other is started; None: any.
        budget: Seconds that are to be spent: no cell is started that, by the longest so far,
            would end later; None: any.
        began: When that time began, by `time.perf_counter`; None: with the first cell.
        refused: Why cells are not started for want of room, by their ids.
        unlock: Whether cells are taken from runners that seem to be at work on them.
        command: What was typed, for records to say how to repeat one cell.
    """

    isolation: Isolation = "process"
    device: str = "cpu"
    threads: int = 1
    jobs: int | None = None
    backend: Literal["process", "ray"] = "process"
    address: str | None = None
    limits: Limits = Limits()
    rerun: Sequence[str] = ("failed",)
    processes: int = 1
    max_failures: int | None = None
    budget: float | None = None
    began: float | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    unlock: bool = False
    command: str = "stitchbench run"

    @property
    def inline(self) -> bool:
        """Whether cells run in this process: several at once or with limits need their own."""
        once = self.jobs in {None, 1} and self.processes == 1
        here = self.backend == "process" and self.device != "cuda"
        return self.isolation == "inline" and once and here and not self.limits

    def times(self, records: Sequence[Mapping[str, Any]]) -> range:
        """The numbers of a cell's good attempts that are still to be made.

        Args:
            records: The cell's, oldest first.
        """
        good = [record for record in records if record["status"] == "ok"]
        if not self.wants(good[-1] if good else records[-1] if records else None):
            return range(len(good) + 1, self.processes + 1) if good else range(0)
        return range(len(good) + 1, len(good) + 1 + self.processes)

    def wants(self, record: Mapping[str, Any] | None) -> bool:
        """Whether a cell of that latest record is to run."""
        if record is None or record["status"] == "interrupted" or "all" in self.rerun:
            return True
        again = any(record["status"] in RERUNS[name] for name in self.rerun)
        return again or ("stale" in self.rerun and stale(record))


INLINE = How("inline")
