"""The machine as /proc tells it, on a /proc of the tests' own; conditions and what disturbs."""

import os

import pytest

from bench import environment, machine

STAT = "cpu  100 20 30 9000 500 5 6 7 0 0\ncpu0 1 1 1\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A /proc and a control group with nothing in them."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def process(system, pid, name, state, ticks):
    folder = system / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} ({name}) {state} " + "0 " * 10 + f"{ticks} 0 0 0")


def test_busy_seconds_leave_idle_and_waiting_out(system):
    assert machine.busy_seconds() is None
    (system / "stat").write_text(STAT)
    assert machine.busy_seconds() == pytest.approx(168 / machine.TICKS)
    (system / "stat").write_text("cpu\n")
    assert machine.busy_seconds() is None


def test_processes_whose_names_hold_brackets_and_spaces(system):
    process(system, 7, "a) R (b", "R", 250)
    process(system, 8, "sleeper", "S", 0)
    process(system, os.getpid(), "ours", "R", 0)
    (system / "9").mkdir()  # ended meanwhile
    found = {p.pid: p for p in machine.processes()}
    assert set(found) == {7, 8}
    assert found[7] == machine.Process(7, "a) R (b", "R", 250 / machine.TICKS)
    assert machine.running() == ["a) R (b"]


def test_the_busiest_come_first_and_the_idle_not_at_all(system, monkeypatch):
    for pid, name in ((7, "trainer"), (8, "idle"), (9, "editor")):
        process(system, pid, name, "S", 1000)

    def sleep(seconds):
        process(system, 7, "trainer", "R", 1000 + machine.TICKS)
        process(system, 9, "editor", "S", 1000 + machine.TICKS // 2)
        process(system, 10, "newcomer", "S", 5000)  # what it did before is not ours to count
        clock[0] += seconds

    clock = [0.0]
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    found = [(p.name, share) for p, share in machine.busiest(1.0)]
    assert found == [("trainer", 1.0), ("editor", 0.5)]


def test_memory_is_the_containers_where_it_has_less(system):
    assert machine.memory() == (None, None)
    (system / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 6000 kB\n")
    assert machine.memory() == (6000 * 1024, 8000 * 1024)
    (system / "cgroup" / "memory.max").write_text("max\n")
    (system / "cgroup" / "memory.current").write_text("1000\n")
    assert machine.memory() == (6000 * 1024, 8000 * 1024)
    (system / "cgroup" / "memory.max").write_text(f"{2000 * 1024}\n")
    (system / "cgroup" / "memory.current").write_text(f"{500 * 1024}\n")
    assert machine.memory() == (1500 * 1024, 2000 * 1024)


def test_a_containers_cores(system):
    assert machine.quota() is None
    (system / "cgroup" / "cpu.max").write_text("max 100000\n")
    assert machine.quota() is None
    (system / "cgroup" / "cpu.max").write_text("150000 100000\n")
    assert machine.quota() == 1.5


def test_the_disk_of_a_place_that_is_not_there_yet(tmp_path):
    assert machine.standing(tmp_path / "a" / "b") == tmp_path
    assert machine.free_disk(tmp_path / "a" / "b") > 0


def at(seconds, busy, own, gpu=None):
    return {"at": seconds, "busy_seconds": busy, "own_seconds": own, "gpu": gpu}


@pytest.mark.parametrize(
    ("cores", "threads", "busy", "found"),
    [
        (2, 1, 10.0, []),  # ours alone
        (2, 1, 14.9, []),
        (2, 1, 16.0, ["other processes took 0.6 of 2 cores"]),
        (64, 1, 300.0, []),
        (64, 1, 400.0, ["other processes took 39.0 of 64 cores"]),
        (2, 2, 10.5, []),
        (2, 2, 12.0, ["other processes took 0.2 of 2 cores"]),
        (1, 1, 9.0, []),  # clocks are read one after the other
    ],
)
def test_others_disturb_when_they_take_half_of_what_we_leave(
    monkeypatch, cores, threads, busy, found
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    before, after = at(100.0, 50.0, 3.0), at(110.0, 50.0 + busy, 13.0)
    assert environment.disturbances(before, after, threads) == found


def test_nobody_is_blamed_where_the_system_tells_nothing():
    assert environment.disturbances(at(0.0, None, 0.0), at(1.0, None, 1.0)) == []
    assert environment.disturbances(at(0.0, 1.0, 0.0), at(0.0, 9.0, 0.0)) == []


def test_conditions_of_this_machine():
    before = environment.conditions("cpu")
    sum(range(10**6))
    after = environment.conditions("cpu")
    assert after["own_seconds"] > before["own_seconds"]
    assert after["at"] > before["at"]
    assert before["gpu"] is None
    assert all(isinstance(name, str) for name in before["running"])


def test_the_environment_says_which_cores_may_be_used():
    found = environment.environment("cpu")
    assert found["cuda"] is None
    if found["affinity"] is not None:
        assert set(found["affinity"]) == os.sched_getaffinity(0)
