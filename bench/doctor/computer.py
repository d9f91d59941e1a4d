"""Whether the computer is fit to measure on: cores, others that compute, memory."""

import os
from collections.abc import Iterator

from bench import machine
from bench.doctor.finding import GB, Finding, enough

LITTLE, NONE = 4 * GB, 1 * GB  # of memory
WATCH = 0.5  # seconds that other processes are watched for
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def processor() -> Iterator[Finding]:
    """Model, cores, and the threads that cells would use."""
    from bench.environment import processor as model  # noqa: PLC0415

    cores, mine, granted = os.cpu_count() or 1, machine.affinity(), machine.quota()
    allowed = cores if mine is None else len(mine)
    pinned = "" if allowed == cores else f", {allowed} of them for this process"
    yield Finding("ok", "processor", f"{model() or 'unknown model'}, {cores} cores{pinned}")
    if granted is not None and granted < allowed:
        yield Finding(
            "warning",
            "quota",
            f"a container grants {granted:g} of {allowed} cores",
            "cells are paused when they use more: keep --threads below it",
        )
    given = ", ".join(f"{name}={os.environ[name]}" for name in THREADS if name in os.environ)
    yield Finding("ok", "threads", f"{given or 'not set'}; `run --threads` decides, else 1")


def load() -> Iterator[Finding]:
    """Whether others compute."""
    averages, cores = machine.load(), os.cpu_count() or 1
    if averages is not None:
        shown = f"{averages[0]:g} over the last minute on {cores} cores"
        many = averages[0] > cores / 2
        yield Finding(
            "warning" if many else "ok",
            "load",
            shown,
            "seconds are doubtful while others compute; wait" if many else "",
        )
    busy = machine.busiest(WATCH)
    if not busy:
        yield Finding("ok", "other processes", "none computes")
    for process, share in busy[:5]:
        yield Finding(
            "warning",
            "other processes",
            f"{process.name} (pid {process.pid}) uses {share:.0%} of a core",
            "wait for it, or stop it",
        )


def memory() -> Iterator[Finding]:
    """What is left of it."""
    free, whole = machine.memory()
    if free is None or whole is None:
        yield Finding("warning", "memory", "not known: the system has no /proc/meminfo")
        return
    yield Finding(
        enough(free, LITTLE, NONE),
        "memory",
        f"{free / GB:.1f} of {whole / GB:.1f} GB available",
        "end what holds it, or cells end as OOM (host)" if free < LITTLE else "",
    )


def peak_memory() -> Iterator[Finding]:
    """Whether the peak of one call can be told from that of the process."""
    from bench.meter import high_water_mark, reset_high_water_mark  # noqa: PLC0415 - imports torch

    if reset_high_water_mark() and high_water_mark() is not None:
        yield Finding("ok", "peak memory", "VmHWM can be reset: peaks are those of one call")
    else:
        yield Finding(
            "warning",
            "peak memory",
            "VmHWM cannot be reset",
            "`process` peaks stay empty; `live` peaks are measured all the same",
        )
