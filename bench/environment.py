"""Where and with what a cell was measured: versions, commit, machine, threads."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("stitchvm-bench", "torch", "diffusers", "transformers", "numpy", "scipy")


@cache
def versions() -> dict[str, str | None]:
    """Installed versions of what results may depend on; None for what is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@cache
def commit() -> dict[str, Any]:
    """The checkout's commit and whether it was changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != folder:  # installed inside somebody else's checkout
        return {"commit": None, "dirty": None}
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def environment(device: str) -> dict[str, Any]:
    """Everything a reader needs to judge a number's machine.

    Args:
        device: Where the cell ran, "cpu" or "cuda:0".
    """
    import torch  # noqa: PLC0415 - the only slow one

    cuda = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "versions": versions(),
        **commit(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@cache
def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
