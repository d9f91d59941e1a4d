"""What of a machine keeps from measuring, or makes numbers doubtful: a finding each.

A check that fails itself is a finding too: a broken driver is what one comes here for.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.doctor import computer, files, gpus, hub, software
from bench.doctor.finding import Finding

Check = Callable[[], Iterator[Finding]]


def examine(store: Path, *, offline: bool = False) -> Iterator[Finding]:
    """All findings, one after the other.

    Args:
        store: Where records would go.
        offline: Whether the hub is left alone.
    """
    checks: dict[str, Check] = {
        "versions": software.versions,
        "checkout": software.checkout,
        "processor": computer.processor,
        "load": computer.load,
        "memory": computer.memory,
        "peak memory": computer.peak_memory,
        "disk": lambda: files.disk(
            {"store": store, "temporary files": Path(tempfile.gettempdir())}
        ),
        "results": lambda: files.results(store),
        "torch": software.torch_devices,
        "GPU": gpus.gpus,
        "hub": lambda: hub.reach(offline=offline),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # whatever is broken, the other checks still speak
            yield Finding(
                "warning",
                name,
                f"not known: {type(error).__name__}: {error}",
                "this check failed itself; please report it",
            )
