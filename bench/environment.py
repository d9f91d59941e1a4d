"""Where and with what a cell was measured: versions, commit, machine, threads, how quiet it was.

`environment` is what stays as it is while a cell runs; `conditions`, taken before and after, what
may change meanwhile; `disturbances` says which of it makes timings doubtful.
"""

import os
import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine, nvml

if TYPE_CHECKING:
    import torch

PACKAGES = ("stitchvm-bench", "torch", "diffusers", "transformers", "numpy", "scipy")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
ALONE = 0.1  # cores that others may always have


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

    `affinity` lists the cores that the process may use, `quota` how many a container grants;
    `memory_bytes` is the machine's; `cuda` what a GPU computes with, None on a CPU.

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
        "affinity": machine.affinity(),
        "quota": machine.quota(),
        "memory_bytes": machine.memory()[1],
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": _cuda(torch.device(device)) if cuda else None,
    }


def _cuda(device: "torch.device") -> dict[str, Any]:
    """What of a GPU changes a number's cost: libraries, switches, the device itself."""
    import torch  # noqa: PLC0415

    return {
        "version": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "allocator": next((os.environ[name] for name in ALLOCATOR if name in os.environ), None),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
    }


def conditions(device: str) -> dict[str, Any]:
    """What may change while a cell runs; to be taken before and after it.

    `at` is a monotonic clock and `busy_seconds` what all cores have computed up to it,
    `own_seconds` this process; `load` has the averages of 1, 5 and 15 minutes; `running` names
    other processes that ran at this moment; `memory_available_bytes` is the machine's; `gpu` is
    `nvml.Driver.state`, None without one.  It takes a few milliseconds.

    Args:
        device: Where the cell runs, "cpu" or "cuda:0".
    """
    return {
        "at": time.monotonic(),
        "busy_seconds": machine.busy_seconds(),
        "own_seconds": machine.own_seconds(),
        "load": machine.load(),
        "running": machine.running(),
        "memory_available_bytes": machine.memory()[0],
        "gpu": _gpu(device),
    }


def _gpu(device: str) -> dict[str, Any] | None:
    """The state of a GPU by NVML."""
    if not device.startswith("cuda"):
        return None
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return None
    return nvml.state(*nvml.identity(torch.device(device)))


def disturbances(before: dict[str, Any], after: dict[str, Any], threads: int = 1) -> list[str]:
    """What makes the timings between two `conditions` doubtful, in words; empty where nothing.

    Other processes disturb when they took more than half of the cores that we left them.

    Args:
        before: Conditions at the beginning.
        after: The same at the end.
        threads: Of the cell.
    """
    found = []
    others, cores = _others(before, after), os.cpu_count() or 1
    if others is not None and others > max(ALONE, (cores - threads) / 2):
        found.append(f"other processes took {others:.1f} of {cores} cores")
    for when, gpu in (("before", before["gpu"]), ("after", after["gpu"])):
        if gpu is None:
            continue
        if gpu["others"]:
            found.append(f"{len(gpu['others'])} other processes on the GPU {when}")
        if slowed := [name for name in gpu["throttle"] or () if name in nvml.SLOWED]:
            found.append(f"GPU slowed {when}: {', '.join(slowed)}")
    return found


def _others(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Cores that other processes computed on, on average."""
    spent = after["at"] - before["at"]
    if None in {before["busy_seconds"], after["busy_seconds"]} or spent <= 0:
        return None
    busy, own = (after[name] - before[name] for name in ("busy_seconds", "own_seconds"))
    return max(0.0, float(busy - own) / spent)


@cache
def processor() -> str:
    """The CPU's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
