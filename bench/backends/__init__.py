"""Where cells run: each backend starts jobs in attempts' folders and says when they ended."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.attempt import Job
from bench.child import Exit


class Ended(NamedTuple):
    """An attempt that ended, with a record in its folder or without."""

    attempt: Path
    exit: Exit


class Backend(ABC):
    """Runs jobs, several at once where it has several slots.

    Attributes:
        slots: How many it runs at once.
    """

    slots: int

    @property
    @abstractmethod
    def busy(self) -> int:
        """How many it runs now."""

    @abstractmethod
    def start(self, job: Job, attempt: Path) -> None:
        """Begin a job; there is a free slot."""

    @abstractmethod
    def wait(self) -> list[Ended]:
        """What ended, once something did or a moment has passed."""

    @abstractmethod
    def stop(self) -> None:
        """Tell all that run to end; `wait` goes on returning them."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing running."""


Announce = Callable[[str], None]
