"""How NVIDIA's devices stand: clocks, throttling, who else computes on them."""

from collections.abc import Iterator
from typing import Any

from bench import nvml
from bench.doctor.finding import GB, Finding


def gpus() -> Iterator[Finding]:
    """Driver, clocks, throttling and other processes of every GPU."""
    try:
        states = nvml.states()
    except nvml.Absent as absent:
        yield Finding("ok", "GPU", f"NVML is not there: {absent}")
        return
    if not states:
        yield Finding("ok", "GPU", "the driver names no device")
    for number, state in enumerate(states):
        yield from gpu(f"GPU {number}", state)


def gpu(name: str, state: dict[str, Any]) -> Iterator[Finding]:
    """One of them, from `nvml.Driver.state`."""
    used, whole = state["memory_used_bytes"], state["memory_bytes"]
    held = "" if None in {used, whole} else f", {used / GB:.1f} of {whole / GB:.1f} GB used"
    yield Finding("ok", name, f"{state['name']}, driver {state['driver']}{held}")
    keys = ("sm_clock_mhz", "sm_clock_most_mhz", "temperature_c", "power_w", "power_limit_w")
    figures = ("?" if state[key] is None else f"{state[key]:.0f}" for key in keys)
    yield Finding("ok", f"{name} clock", "{} of {} MHz, {} °C, {} of {} W".format(*figures))
    if slowed := [reason for reason in state["throttle"] or () if reason in nvml.SLOWED]:
        yield Finding(
            "warning",
            f"{name} clock",
            f"slowed: {', '.join(slowed)}",
            "seconds are not those of the device at its clock; cool it, or wait",
        )
    for other in state["others"] or ():
        size = "" if other["bytes"] is None else f", {other['bytes'] / GB:.1f} GB"
        yield Finding(
            "warning",
            f"{name} processes",
            f"pid {other['pid']}{size}",
            "share no device that you measure on",
        )
