"""Processes that train one model together, each on its share of every batch.

Every process draws the whole batch and takes its own rows, so that a loss is the same, but for
rounding, however many there are.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

PATIENCE = timedelta(days=1)  # while one searches, the others wait


@dataclass(frozen=True)
class Workers:
    """One process, alone.

    Attributes:
        rank: Which of them it is, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and tells."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Its own of some rows.

        Raises:
            ValueError: if they cannot be shared equally: means would not be means of all.
        """
        if rows % self.count:
            raise ValueError(f"expected a batch that {self.count} processes share, got {rows}")
        own = rows // self.count
        return slice(self.rank * own, (self.rank + 1) * own)

    def expect(self, device: torch.device) -> None:
        """Refuse a device on which processes cannot meet, or not each on its own.

        Raises:
            ValueError: saying which is this one's.
        """

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""

    def wait(self) -> None:
        """Go on when all have come as far."""


ALONE = Workers()


class Launched(Workers):
    """One of the processes of `accelerate launch`."""

    def expect(self, device: torch.device) -> None:
        """Refuse another device than the GPU that is this process's, or the CPU without GPUs."""
        own = torch.device("cpu")
        if torch.cuda.is_available():
            own = torch.device("cuda", torch.cuda.current_device())
        if device != own:
            raise ValueError(
                f"expected {own} for process {self.rank} of {self.count}, as --device "
                f"{own.type} gives it, got {device}"
            )

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor."""
        from accelerate.utils import reduce  # noqa: PLC0415 - slow to import

        for x in tensors:
            x.copy_(reduce(x, "mean"))

    def wait(self) -> None:
        """Go on when all have come as far."""
        from accelerate import PartialState  # noqa: PLC0415

        PartialState().wait_for_everyone()


def workers() -> Workers:
    """The processes that this one was launched with, each on a GPU of its own; else it alone.

    By `accelerate launch`, or `torchrun`; without GPUs they meet over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState  # noqa: PLC0415 - slow to import

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Launched(state.process_index, state.num_processes)
