"""What a task returns, and where its seconds went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Phases:
    """Seconds spent in named phases; `harness` is what remains of the wall time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count a block of code towards a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Seconds by phase."""
        wall = time.perf_counter() - self._start
        return {**self.seconds, "harness": wall - sum(self.seconds.values()), "task": wall}


@dataclass
class Outcome:
    """What a task returns.

    Attributes:
        rows: One mapping per noise level, plain data.
        arrays: Per-sample numbers, by name, the noise level first.
        phases: Seconds by phase.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
