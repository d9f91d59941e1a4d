"""Ctrl-C and SIGTERM as a request to stop, which a runner heeds when it suits its cells."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from bench.backends import Announce


@dataclass
class Asked:
    """Whether somebody asked to stop: once, no cell is started; twice, those at work end."""

    times: int = 0


@contextmanager
def listening(announce: Announce) -> Iterator[Asked]:
    """Ctrl-C and SIGTERM as a request, while this runs in the main thread."""
    asked = Asked()

    def ask(number: int, _: FrameType | None) -> None:
        asked.times += 1 if number == signal.SIGINT else 2
        if asked.times > 1:
            raise KeyboardInterrupt
        announce("finishing the cells at work; Ctrl-C again ends them")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # another thread: there is nobody to ask
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
