"""Who runs an attempt: a file in its folder names the process, so that no cell runs twice at once.

On one machine a dead owner is known by its process id and that process's start.  Of an owner on
another machine nothing is known, and it counts as alive until `--unlock` says otherwise.
"""

import json
import os
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

OWNER = "owner.json"
SAME = 5.0  # seconds; a process of that id that started at another time is another one


class Owner(NamedTuple):
    """A process that runs cells.

    Attributes:
        host: Its machine's name.
        pid: Its process id there.
        created: When it was started, seconds since 1970.
    """

    host: str
    pid: int
    created: float

    @property
    def here(self) -> bool:
        """Whether it is of this machine, where one can see if it lives."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it may be at work: known of this machine, assumed of others."""
        if not self.here:
            return True
        try:
            process = psutil.Process(self.pid)
            here = process.status() != psutil.STATUS_ZOMBIE
            return here and abs(process.create_time() - self.created) < SAME
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}"


@cache
def _me(pid: int) -> Owner:
    return Owner(socket.gethostname(), pid, psutil.Process(pid).create_time())


def me() -> Owner:
    """This process."""
    return _me(os.getpid())


def of(attempt: Path) -> Owner | None:
    """The owner of an attempt, None where no readable file names one."""
    try:
        return Owner(**json.loads((attempt / OWNER).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
