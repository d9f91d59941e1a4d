"""Whether there is room for files, and leave to write them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from bench.doctor.finding import GB, Finding, enough

LITTLE, NONE = 2 * GB, 0.1 * GB  # of a disk


def disk(places: dict[str, Path]) -> Iterator[Finding]:
    """Room where files go."""
    for name, path in places.items():
        free = machine.free_disk(path)
        yield Finding(
            enough(free, LITTLE, NONE),
            f"disk of {name}",
            f"{free / GB:.1f} GB free in {path}",
            "make room, or name another place" if free < LITTLE else "",
        )


def results(store: Path) -> Iterator[Finding]:
    """Whether records can be written, tried where the store is or would be."""
    if store.exists() and not store.is_dir():
        yield Finding("problem", "results", f"{store} is a file", "name a folder with --store")
        return
    folder = machine.standing(store)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            "problem",
            "results",
            f"{folder} cannot be written to: {error.strerror}",
            "change its rights, or name another folder with --store",
        )
    else:
        yield Finding("ok", "results", f"{store} can be written to")
