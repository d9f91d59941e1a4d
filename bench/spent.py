"""What a value model took to make, as the paper's Table 4 counts it: written where it is spent.

    search      every pair of blocks                        search.json
    preparing   latents and targets, which others share     the files that hold them
    tuning      learning rates                              trials.json
    training    the steps that the model stands on          log.jsonl

Seconds are those of the clock, times the processes that shared the work and, on a CPU, times the
threads of each: of GPUs, or of cores.  What a kill undid is not counted.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Amount(NamedTuple):
    """Seconds, and on which kinds of devices."""

    seconds: float
    devices: frozenset[str]

    def over(self, parts: int) -> "Amount":
        """An equal share of it."""
        return self._replace(seconds=self.seconds / parts)

    def plain(self) -> dict[str, Any]:
        """As files hold it."""
        return {"seconds": self.seconds, "device": "+".join(sorted(self.devices))}


class Spent(NamedTuple):
    """What each part took; None where it is not known."""

    search: Amount | None
    preparing: Amount | None
    tuning: Amount | None
    training: Amount | None

    @property
    def total(self) -> Amount | None:
        """Of search, preparing and training: of a model whose learning rate is known."""
        return total((self.search, self.preparing, self.training))


def of(seconds: float, device: torch.device, processes: int = 1) -> Amount:
    """What so many seconds of the clock were of GPUs, or of cores."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return Amount(seconds * processes * threads, frozenset((device.type,)))


def timed(
    items: Iterable[T], device: torch.device, processes: int = 1
) -> Iterator[tuple[T, Amount]]:
    """Items with what each took to be made."""
    start = time.perf_counter()
    for item in items:
        yield item, of(time.perf_counter() - start, device, processes)
        start = time.perf_counter()


def read(said: Mapping[str, Any]) -> Amount | None:
    """An amount as a file holds it; None where it does not."""
    if said.get("seconds") is None or not said.get("device"):
        return None
    return Amount(float(said["seconds"]), frozenset(said["device"].split("+")))


def logged(log: Path) -> Amount | None:
    """Of all steps of a log; None where one does not say."""
    if not log.is_file():
        return None
    return total(read(json.loads(line)) for line in log.read_text().splitlines())


def total(parts: Iterable[Amount | None]) -> Amount | None:
    """The sum; None where a part is not known, or there is none."""
    known = list(parts)
    if not known or None in known:
        return None
    amounts = [x for x in known if x is not None]
    devices = frozenset(device for x in amounts for device in x.devices)
    return Amount(sum(x.seconds for x in amounts), devices)
