"""A pynvml without a driver: what a test says of the devices."""

import os
from types import ModuleType, SimpleNamespace


class Nvml(ModuleType):
    """The module, with one device: an H100 at 1200 of 1980 MHz, held back by its power cap."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, *, pid=None, reasons=0x4, broken=(), old=False):
        super().__init__("pynvml")
        self.pid, self.reasons, self.broken, self.old = pid or os.getpid(), reasons, broken, old
        self.used, self.open = 5_000_000_000, 0

    def __getattr__(self, name):
        question = name.removeprefix("nvml")
        if not name.startswith("nvml") or (self.old and "ClocksEventReasons" in name):
            raise AttributeError(name)
        return lambda *args: self._answer(question, *args)

    def _answer(self, question, *args):
        if question in self.broken:
            raise self.NVMLError(f"{question}: Not Supported")
        answers = {
            "Init": lambda: setattr(self, "open", self.open + 1),
            "Shutdown": lambda: setattr(self, "open", self.open - 1),
            "SystemGetDriverVersion": lambda: b"570.86",
            "DeviceGetCount": lambda: 1,
            "DeviceGetHandleByIndex": lambda _: "device",
            "DeviceGetHandleByUUID": self._by_uuid,
            "DeviceGetName": lambda _: "NVIDIA H100",
            "DeviceGetMemoryInfo": lambda _: SimpleNamespace(used=self.used, total=80 * 10**9),
            "DeviceGetClockInfo": lambda *_: 1200,
            "DeviceGetMaxClockInfo": lambda *_: 1980,
            "DeviceGetTemperature": lambda *_: 61,
            "DeviceGetPowerUsage": lambda _: 350_500,
            "DeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "DeviceGetCurrentClocksEventReasons": lambda _: self.reasons,
            "DeviceGetCurrentClocksThrottleReasons": lambda _: self.reasons,
            "DeviceGetComputeRunningProcesses": lambda _: self._processes(),
        }
        return answers[question](*args)

    def _by_uuid(self, uuid):
        if uuid != "GPU-1234":
            raise self.NVMLError("Not Found")
        return "device"

    def _processes(self):
        return [
            SimpleNamespace(pid=self.pid, usedGpuMemory=3_000_000_000),
            SimpleNamespace(pid=77, usedGpuMemory=None if self.old else 1_000_000_000),
        ]
