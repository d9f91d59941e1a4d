"""Timing calls in turns: A B A B ..., so that whatever slows the machine slows all of them.

On a CPU the unit is the CPU-second, of all threads of this process: what others compute meanwhile
does not count.  On a GPU it is the second of the clock on the wall, once queued work is done.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from bench.meter import Clock, Moments, Queued, synchronized

UNITS = {"cpu": "CPU-second", "cuda": "GPU-second"}


def clock_of(device: torch.device) -> Clock:
    """What tells the time of a device, in `UNITS`."""
    return time.process_time if device.type == "cpu" else partial(synchronized, device)


def stage_clock_of(device: torch.device) -> Moments:
    """What tells the stages of one call apart, in `UNITS`, without making a device wait."""
    return clock_of(device) if device.type == "cpu" else partial(Queued, device)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of each call in each round; all are called once before, untimed.

    Args:
        calls: What to time, in the order of every round.
        rounds: How often.
        clock: Tells the time.
    """
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            spent[name].append(clock() - start)
    return spent
