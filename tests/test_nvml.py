"""NVML without a GPU: what a driver says is passed on, and whatever it lacks is missing softly."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from nvml_fake import Nvml

from bench import environment, nvml
from bench.interleaved import clock_of, stage_clock_of
from bench.meter import PEAKS, Calls, Queued, peak_bytes

GPU = torch.device("cuda")


@pytest.fixture
def driver(monkeypatch):
    """Puts a driver in place of the real one."""

    def put(**said):
        fake = Nvml(**said)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return put


def test_the_state_of_a_device(driver):
    fake = driver()
    [state] = nvml.states()
    assert state == {
        "name": "NVIDIA H100",
        "driver": "570.86",
        "sm_clock_mhz": 1200,
        "sm_clock_most_mhz": 1980,
        "throttle": ["software power cap"],
        "temperature_c": 61,
        "power_w": 350.5,
        "power_limit_w": 700.0,
        "memory_used_bytes": 5_000_000_000,
        "memory_bytes": 80_000_000_000,
        "others": [{"pid": 77, "bytes": 1_000_000_000}],
    }
    assert fake.open == 0  # closed again


def test_a_device_is_found_by_its_uuid_and_another_is_nobody(driver):
    driver()
    assert nvml.state("1234", 0)["name"] == "NVIDIA H100"
    assert nvml.state("GPU-1234", 0)["name"] == "NVIDIA H100"
    assert nvml.state("5678", 0) is None
    assert nvml.held("5678", 0) == (None, None)


def test_throttling_is_read_bit_by_bit_and_under_the_older_name(driver):
    driver(reasons=0x1 | 0x8 | 0x40, old=True)
    [state] = nvml.states()
    assert state["throttle"] == ["idle", "hardware slowdown", "hardware thermal slowdown"]
    assert set(state["throttle"]) & nvml.SLOWED == {
        "hardware slowdown",
        "hardware thermal slowdown",
    }


def test_our_process_is_known_by_its_number_and_in_a_container_by_what_it_holds(driver):
    driver()
    assert nvml.held("1234", 2_000_000_000) == (3_000_000_000, 5_000_000_000)
    driver(pid=4242)  # the host's number
    assert nvml.held("1234", 2_000_000_000) == (3_000_000_000, 5_000_000_000)
    assert nvml.state("1234", 2_000_000_000)["others"] == [{"pid": 77, "bytes": 1_000_000_000}]
    assert nvml.held("1234", 500_000_000) == (None, 5_000_000_000)  # it may be either
    assert len(nvml.state("1234", 0)["others"]) == 2


def test_questions_that_a_device_does_not_answer_are_missing_alone(driver):
    silent = ("DeviceGetClockInfo", "DeviceGetMemoryInfo", "DeviceGetComputeRunningProcesses")
    driver(broken=silent)
    [state] = nvml.states()
    missing = {name for name, value in state.items() if value is None}
    assert missing == {"sm_clock_mhz", "memory_used_bytes", "memory_bytes", "others"}
    driver(broken=("DeviceGetCount",))
    assert nvml.states() == []


def test_without_library_or_driver_it_says_why(driver, monkeypatch):
    driver(broken=("Init",))
    with pytest.raises(nvml.Absent, match="no NVIDIA driver answers"):
        nvml.states()
    assert nvml.state("1234", 0) is None
    assert nvml.held("1234", 0) == (None, None)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what is imported as None is not there
    with pytest.raises(nvml.Absent, match="nvidia-ml-py cannot be imported"):
        nvml.states()


# torch's GPU, as far as it is asked


class Event:
    """An event of a queue whose every entry takes 1 ms; nothing may wait while a call runs."""

    now, waits = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "stream"
        Event.now += 1
        self.at = Event.now

    def synchronize(self):
        Event.waits += 1

    def elapsed_time(self, later):
        return float(later.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    """A torch that has one, with 2 GB reserved of it."""
    said = {
        "is_available": lambda: True,
        "Event": Event,
        "current_stream": lambda _: "stream",
        "get_device_properties": lambda _: SimpleNamespace(uuid="1234", total_memory=80 * 10**9),
        "get_device_name": lambda _: "NVIDIA H100",
        "memory_reserved": lambda _: 2_000_000_000,
        "memory_allocated": lambda _: 1_000_000_000,
        "max_memory_allocated": lambda _: 1_750_000_000,
        "max_memory_reserved": lambda _: 2_000_000_000,
        "empty_cache": lambda: None,
        "synchronize": lambda _: None,
        "reset_peak_memory_stats": lambda _: None,
    }
    for name, function in said.items():
        monkeypatch.setattr(torch.cuda, name, function)
    Event.now = Event.waits = 0


def test_stages_of_a_gpu_are_told_apart_without_waiting_in_between(gpu):
    from bench.worlds.gaussian import GaussianWorld  # noqa: PLC0415

    world, calls = GaussianWorld(latent=(2, 1, 1), components=3, rank=2, prompts=4), Calls()
    calls.watch(world.backbone)
    z, t = torch.zeros(2, 2, 1, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    waited = []

    def call():
        x = world.backbone.decode(world.backbone.velocity(z, t, ["scene 0"] * 2))
        waited.append(Event.waits)
        return x

    spent = calls.stages(call, stage_clock_of(GPU))
    assert waited == [0]
    assert Event.waits > 0
    # six events, 1 ms apart: start, two a stage, stop
    assert spent == pytest.approx(
        {"blocks": 1e-3, "decode": 1e-3, "reward": 0, "tail": 0, "backward": 0, "rest": 3e-3}
    )


def test_stages_of_a_cpu_are_told_by_its_own_clock():
    cpu = torch.device("cpu")
    assert stage_clock_of(cpu) is clock_of(cpu)
    assert stage_clock_of(GPU).func is Queued


def test_peak_memory_of_a_gpu_by_every_meaning(gpu, driver):
    fake = driver()

    def call():
        fake.used += 750_000_000

    peak = peak_bytes(call, GPU, iter(()))
    assert tuple(peak) == PEAKS
    assert peak | {"process": None} == {
        "live": 750_000_000,
        "process": None,
        "allocated": 1_750_000_000,
        "reserved": 2_000_000_000,
        "driver": 3_000_000_000,
        "device": 750_000_000,
    }
    driver(broken=("Init",))
    without = peak_bytes(lambda: None, GPU, iter(()))
    assert without["driver"] is without["device"] is None
    assert without["allocated"] == 1_750_000_000


def test_peak_memory_of_a_cpu_has_the_same_names():
    peak = peak_bytes(lambda: torch.zeros(1000), torch.device("cpu"), iter(()))
    assert tuple(peak) == PEAKS
    assert peak["live"] == 4000
    assert {peak[name] for name in ("allocated", "reserved", "driver", "device")} == {None}


def test_conditions_of_a_gpu_are_its_state_and_what_disturbs_is_named(gpu, driver):
    driver()
    before = environment.conditions("cuda")
    assert before["gpu"]["sm_clock_mhz"] == 1200
    quiet = before | {"gpu": before["gpu"] | {"others": [], "throttle": ["idle"]}}
    assert environment.disturbances(quiet, quiet) == []
    found = environment.disturbances(quiet, before)
    assert found == [
        "1 other processes on the GPU after",
        "GPU slowed after: software power cap",
    ]
    driver(broken=("Init",))
    assert environment.conditions("cuda")["gpu"] is None


def test_the_environment_of_a_gpu(gpu, driver, monkeypatch):
    driver()
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    found = environment.environment("cuda")
    assert found["device_name"] == "NVIDIA H100"
    assert found["cuda"]["allocator"] == "expandable_segments:True"
    assert found["cuda"]["memory_bytes"] == 80 * 10**9
    assert os.cpu_count() >= len(found["affinity"] or [0])
