"""What NVIDIA's driver says of its devices (NVML): memory, clocks, throttling, who computes.

Soft throughout: without the library, a driver or a right to ask, what is missing is None or an
`Absent` that says why; nothing here raises anything else.  Clocks are in MHz, memory in bytes,
power in watts, temperatures in degrees Celsius.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# nvmlClocksEventReasons, NVML API reference; True where the device is held below its clock.
REASONS: dict[int, tuple[str, bool]] = {
    0x001: ("idle", False),
    0x002: ("application clocks", False),
    0x004: ("software power cap", True),
    0x008: ("hardware slowdown", True),
    0x010: ("sync boost", False),
    0x020: ("software thermal slowdown", True),
    0x040: ("hardware thermal slowdown", True),
    0x080: ("power brake", True),
    0x100: ("display clocks", False),
}
SLOWED = frozenset(name for name, slows in REASONS.values() if slows)


class Absent(Exception):
    """NVML cannot be asked; the message says why."""


class Driver:
    """NVML, opened.

    Args:
        binding: The module `pynvml`.
    """

    def __init__(self, binding: Any) -> None:
        self.binding = binding

    def ask(self, question: str, *args: Any) -> Any:
        """The answer to `nvml<question>`; None where the device or the binding has none."""
        try:
            return getattr(self.binding, f"nvml{question}")(*args)
        except (AttributeError, self.binding.NVMLError):
            return None

    @property
    def version(self) -> str | None:
        """Of the driver."""
        return _text(self.ask("SystemGetDriverVersion"))

    def handles(self) -> list[Any]:
        """All devices, in the driver's order."""
        count = self.ask("DeviceGetCount") or 0
        found = [self.ask("DeviceGetHandleByIndex", k) for k in range(count)]
        return [handle for handle in found if handle is not None]

    def of_uuid(self, uuid: str) -> Any | None:
        """The device or MIG slice with a UUID, with or without its prefix; None if unknown."""
        known = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        found = (self.ask("DeviceGetHandleByUUID", name) for name in known)
        return next((handle for handle in found if handle is not None), None)

    def state(self, handle: Any, reserved: int = 0) -> dict[str, Any]:
        """A device as it is now.

        Args:
            handle: The device.
            reserved: Bytes of it that this process has reserved.
        """
        memory = self.ask("DeviceGetMemoryInfo", handle)
        sm = getattr(self.binding, "NVML_CLOCK_SM", 1)
        power = self.ask("DeviceGetPowerUsage", handle)
        limit = self.ask("DeviceGetEnforcedPowerLimit", handle)
        return {
            "name": _text(self.ask("DeviceGetName", handle)),
            "driver": self.version,
            "sm_clock_mhz": self.ask("DeviceGetClockInfo", handle, sm),
            "sm_clock_most_mhz": self.ask("DeviceGetMaxClockInfo", handle, sm),
            "throttle": self.throttle(handle),
            "temperature_c": self.ask("DeviceGetTemperature", handle, 0),
            "power_w": None if power is None else power / 1000,
            "power_limit_w": None if limit is None else limit / 1000,
            "memory_used_bytes": None if memory is None else int(memory.used),
            "memory_bytes": None if memory is None else int(memory.total),
            "others": self.others(handle, reserved),
        }

    def throttle(self, handle: Any) -> list[str] | None:
        """Why the clock is what it is, in words."""
        bits = self.ask("DeviceGetCurrentClocksEventReasons", handle)
        if bits is None:  # its name in drivers before 535
            bits = self.ask("DeviceGetCurrentClocksThrottleReasons", handle)
        return None if bits is None else [name for bit, (name, _) in REASONS.items() if bits & bit]

    def processes(self, handle: Any) -> dict[int, int | None] | None:
        """Bytes of the device that each process holds; None where the driver does not say."""
        found = self.ask("DeviceGetComputeRunningProcesses", handle)
        if found is None:
            return None
        sizes = {int(p.pid): p.usedGpuMemory for p in found}
        return {pid: None if size is None else int(size) for pid, size in sizes.items()}

    def own(self, handle: Any, reserved: int) -> int | None:
        """The number under which the driver knows this process; None where nobody can tell.

        In a container, which numbers processes for itself, it is the only one that holds as much
        of the device as this process has reserved.
        """
        found = self.processes(handle) or {}
        if os.getpid() in found:
            return os.getpid()
        fits = [pid for pid, size in found.items() if size is None or size >= reserved]
        return fits[0] if reserved and len(fits) == 1 else None

    def others(self, handle: Any, reserved: int) -> list[dict[str, Any]] | None:
        """Processes on the device but this one; None where the driver does not say."""
        found, own = self.processes(handle), self.own(handle, reserved)
        if found is None:
            return None
        return [{"pid": pid, "bytes": size} for pid, size in found.items() if pid != own]


@contextmanager
def opened() -> Iterator[Driver]:
    """NVML for a while.

    Raises:
        Absent: if it cannot be opened.
    """
    try:
        library = importlib.import_module("pynvml")
    except Exception as error:
        raise Absent(f"the package nvidia-ml-py cannot be imported ({error})") from None
    try:
        library.nvmlInit()
    except Exception as error:
        raise Absent(f"no NVIDIA driver answers ({error})") from None
    try:
        yield Driver(library)
    finally:
        Driver(library).ask("Shutdown")


def identity(device: "torch.device") -> tuple[str, int]:
    """The UUID of torch's device, whatever CUDA_VISIBLE_DEVICES says, and bytes we reserved."""
    import torch  # noqa: PLC0415 - slow, and not needed to ask for all devices

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid, torch.cuda.memory_reserved(device)


def states() -> list[dict[str, Any]]:
    """Every device as it is now.

    Raises:
        Absent: if NVML cannot be asked.
    """
    with opened() as driver:
        return [driver.state(handle) for handle in driver.handles()]


def state(uuid: str, reserved: int) -> dict[str, Any] | None:
    """The device with a UUID as it is now; None where nobody can tell."""
    try:
        with opened() as driver:
            handle = driver.of_uuid(uuid)
            return None if handle is None else driver.state(handle, reserved)
    except Absent:
        return None


def held(uuid: str, reserved: int) -> tuple[int | None, int | None]:
    """Bytes of a device that this process holds, and that all hold together."""
    try:
        with opened() as driver:
            handle = driver.of_uuid(uuid)
            if handle is None:
                return None, None
            memory, own = driver.ask("DeviceGetMemoryInfo", handle), driver.own(handle, reserved)
            mine = None if own is None else (driver.processes(handle) or {}).get(own)
            return mine, None if memory is None else int(memory.used)
    except Absent:
        return None, None


def _text(answer: Any) -> str | None:
    """Older bindings answer in bytes."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer
