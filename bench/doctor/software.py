"""Whether the software is there: versions, our own code, and what PyTorch computes on."""

import platform
from collections.abc import Iterator
from typing import Any

from bench import nvml
from bench.doctor.finding import Finding

NEEDED = ("stitchvm-bench", "torch", "diffusers", "transformers")


def versions() -> Iterator[Finding]:
    """Of Python and of what we stand on."""
    from bench.environment import versions as installed  # noqa: PLC0415

    found = installed()
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in NEEDED:
        if found[package] is None:
            yield Finding("problem", package, "not installed", f"pip install {package}")
        else:
            yield Finding("ok", package, str(found[package]))


def checkout() -> Iterator[Finding]:
    """Which code would measure."""
    from bench.environment import commit  # noqa: PLC0415

    here = commit()
    if here["commit"] is None:
        yield Finding("ok", "code", "installed, no checkout")
    elif here["dirty"]:
        yield Finding(
            "warning",
            "code",
            f"{here['commit'][:8]}, changed since",
            "commit first: records name the commit that measured them",
        )
    else:
        yield Finding("ok", "code", str(here["commit"])[:8])


def torch_devices() -> Iterator[Finding]:
    """What PyTorch computes on."""
    try:
        import torch  # noqa: PLC0415 - slow
    except Exception as error:  # a broken build fails in many ways
        yield Finding("problem", "torch", f"cannot be imported: {error}", "install PyTorch again")
        return
    built, count = torch.version.cuda, torch.cuda.device_count()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(k) for k in range(count))
        yield Finding("ok", "CUDA", f"{built}: {names}")
    elif _devices():
        why = "its build is for CPUs" if built is None else f"CUDA {built} does not start"
        yield Finding(
            "warning",
            "CUDA",
            f"PyTorch sees no GPU though there is one: {why}",
            "install the build for CUDA, or set CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding("ok", "CUDA", "no GPU: everything runs on the CPU")


def _devices() -> list[dict[str, Any]]:
    try:
        return nvml.states()
    except nvml.Absent:
        return []
