"""Findings: each machine's trouble is named with what to do, and nothing ends in a traceback."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from nvml_fake import Nvml

from bench import doctor, machine, nvml
from bench.cli import cli
from bench.doctor import computer, files, gpus, hub, software

GB = 10**9


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, ["doctor", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def calm(monkeypatch):
    """Nobody computes, nothing is full."""
    monkeypatch.setattr(machine, "busiest", lambda _: [])
    monkeypatch.setattr(machine, "load", lambda: [0.0, 0.0, 0.0])
    monkeypatch.setattr(machine, "memory", lambda: (8 * GB, 16 * GB))
    monkeypatch.setattr(machine, "free_disk", lambda _: 50 * GB)


def states(findings):
    return [finding.state for finding in findings]


def test_a_machine_in_order(calm, tmp_path):
    out = call("--offline", "--store", tmp_path / "runs")
    for name in ("python", "torch", "diffusers", "processor", "memory", "disk of store", "hub"):
        assert f"ok       {name} " in out
    assert not (tmp_path / "runs").exists()  # it leaves nothing behind
    assert list(tmp_path.iterdir()) == []


def test_as_json(calm, tmp_path):
    found = json.loads(call("--offline", "--json", "--store", tmp_path))
    assert {"state", "name", "figure", "advice"} == set(found[0])
    assert {f["state"] for f in found} <= {"ok", "warning", "problem"}


def test_a_problem_sets_the_exit_code(calm, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    out = call("--offline", "--store", file, code=1)
    assert f"problem  results                  {file} is a file" in out
    assert "name a folder with --store" in out


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    def full(**_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    [finding] = files.results(tmp_path / "runs")
    assert finding.state == "problem"
    assert "No space left on device" in finding.figure


@pytest.mark.parametrize(
    ("free", "state"), [(50 * GB, "ok"), (1.5 * GB, "warning"), (0.05 * GB, "problem")]
)
def test_a_disk_that_fills(monkeypatch, free, state):
    monkeypatch.setattr(machine, "free_disk", lambda _: free)
    [finding] = files.disk({"store": Path("here")})
    assert finding.state == state
    assert f"{free / GB:.1f} GB free in here" in finding.figure
    assert bool(finding.advice) == (state != "ok")


@pytest.mark.parametrize(
    ("free", "state"), [(8 * GB, "ok"), (2 * GB, "warning"), (0.5 * GB, "problem")]
)
def test_memory_that_runs_out(monkeypatch, free, state):
    monkeypatch.setattr(machine, "memory", lambda: (free, 16 * GB))
    assert states(computer.memory()) == [state]
    monkeypatch.setattr(machine, "memory", lambda: (None, None))
    assert states(computer.memory()) == ["warning"]


def test_others_that_compute(monkeypatch):
    trainer = machine.Process(7, "trainer", "R", 100.0)
    monkeypatch.setattr(machine, "load", lambda: [float(os.cpu_count()), 0.0, 0.0])
    monkeypatch.setattr(machine, "busiest", lambda _: [(trainer, 0.98)])
    load, others = computer.load()
    assert load.state == others.state == "warning"
    assert others.figure == "trainer (pid 7) uses 98% of a core"


def test_fewer_cores_granted_than_there_are(monkeypatch):
    monkeypatch.setattr(machine, "affinity", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, "quota", lambda: 1.5)
    found = {f.name: f for f in computer.processor()}
    assert found["quota"].state == "warning"
    assert found["quota"].figure == "a container grants 1.5 of 4 cores"


def test_a_package_that_is_missing(monkeypatch):
    have = dict.fromkeys(software.NEEDED, "1.0") | {"diffusers": None}
    monkeypatch.setattr("bench.environment.versions", lambda: have)
    found = {f.name: f for f in software.versions()}
    assert (found["diffusers"].state, found["torch"].state) == ("problem", "ok")
    assert found["diffusers"].advice == "pip install diffusers"


@pytest.mark.parametrize(
    ("commit", "dirty", "state"),
    [(None, None, "ok"), ("a" * 40, False, "ok"), ("a" * 40, True, "warning")],
)
def test_the_code_that_would_measure(monkeypatch, commit, dirty, state):
    here = {"commit": commit, "dirty": dirty}
    monkeypatch.setattr("bench.environment.commit", lambda: here)
    assert states(software.checkout()) == [state]


def test_peaks_that_cannot_be_reset(monkeypatch):
    monkeypatch.setattr("bench.meter.reset_high_water_mark", lambda: False)
    [finding] = computer.peak_memory()
    assert (finding.state, finding.figure) == ("warning", "VmHWM cannot be reset")


def test_a_check_that_fails_itself_is_a_finding_and_others_go_on(monkeypatch, calm, tmp_path):
    def broken():
        raise RuntimeError("no such sensor")

    monkeypatch.setattr(machine, "load", broken)
    found = list(doctor.examine(tmp_path, offline=True))
    [load] = [f for f in found if f.name == "load"]
    assert load.state == "warning"
    assert "RuntimeError: no such sensor" in load.figure
    assert found[-1].name == "hub"


# GPUs


def test_no_gpu_is_no_trouble(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(broken=("Init",)))
    [finding] = gpus.gpus()
    assert finding.state == "ok"
    assert "no NVIDIA driver answers" in finding.figure
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert states(software.torch_devices()) == ["ok"]


def test_a_gpu_that_is_slowed_and_shared(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    device, clock, slowed, others = gpus.gpus()
    assert device.figure == "NVIDIA H100, driver 570.86, 5.0 of 80.0 GB used"
    assert clock.figure == "1200 of 1980 MHz, 61 °C, 350 of 700 W"
    assert (slowed.state, slowed.figure) == ("warning", "slowed: software power cap")
    assert (others.state, others.figure) == ("warning", "pid 77, 1.0 GB")


def test_a_gpu_that_says_nothing_of_itself(monkeypatch):
    silent = Nvml(broken=("DeviceGetClockInfo", "DeviceGetPowerUsage", "DeviceGetMemoryInfo"))
    monkeypatch.setitem(sys.modules, "pynvml", silent)
    device, clock, *_ = gpus.gpus()
    assert device.figure == "NVIDIA H100, driver 570.86"
    assert clock.figure == "? of 1980 MHz, 61 °C, ? of 700 W"


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr(nvml, "states", lambda: [{"name": "NVIDIA H100"}])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    [finding] = software.torch_devices()
    assert finding.state == "warning"
    assert "its build is for CPUs" in finding.figure


# the hub


@pytest.fixture
def server():
    """A port of this machine, and what it answers with."""
    listener = socket.create_server(("127.0.0.1", 0))
    reply = []

    def serve():
        connection, _ = listener.accept()
        with connection:
            if reply:
                connection.recv(4096)
                connection.sendall(reply[0])
            else:
                done.wait(5)

    done, thread = threading.Event(), threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], reply
    done.set()
    thread.join()
    listener.close()


@pytest.fixture
def at(monkeypatch):
    """Names the hub's address."""
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    return lambda port: monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found"])
def test_a_hub_that_answers(server, at, status):
    port, reply = server
    reply.append(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    at(port)
    [finding] = hub.reach(offline=False)
    assert finding.state == "ok"
    assert f"http://127.0.0.1:{port} answers in" in finding.figure


def test_something_else_that_answers(server, at):
    port, reply = server
    reply.append(b"SSH-2.0\r\n")
    at(port)
    assert isinstance(hub.answer(), str)


def test_a_hub_that_never_answers_is_not_waited_for(server, at):
    at(server[0])
    start = time.monotonic()
    assert hub.answer(patience=0.2) in {"no answer within 0.2 s", "timed out"}
    assert time.monotonic() - start < 2


def test_a_hub_that_is_not_there(at, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    at(port)
    [finding] = hub.reach(offline=False)
    assert finding.state == "warning"
    assert "Connection refused" in finding.figure
    monkeypatch.setenv(hub.OFFLINE, "1")
    assert hub.answer() == "HF_HUB_OFFLINE is set"
    monkeypatch.delenv(hub.OFFLINE)
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert "unknown url type" in hub.answer()
