"""In the runner's own process, one cell after the other: warm, but a crash ends them all."""

from pathlib import Path

from bench.attempt import Job, measure, set_threads
from bench.backends import Backend, Ended
from bench.child import Exit


class Inline(Backend):
    """Measures a job as it is started."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    @property
    def busy(self) -> int:
        """Whether the last job's end has not been told yet."""
        return len(self._ended)

    def start(self, job: Job, attempt: Path) -> None:
        """Measure a job."""
        set_threads(job.threads)
        measure(job, attempt)
        self._ended.append(Ended(attempt, Exit(0)))

    def wait(self) -> list[Ended]:
        """The job that was started."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Nothing runs between two calls."""

    def close(self) -> None:
        """Nothing runs between two calls."""
