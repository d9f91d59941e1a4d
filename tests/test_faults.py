"""Cells that fail, runs that are killed, disks that fill: every cell once, each failure named."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import DEFAULTS, attempts, planned, sweep, table_of

from bench import stale as staleness
from bench.attempt import code_of
from bench.cli import main
from bench.how import INLINE, How
from bench.limits import Limits, memory, seconds
from bench.owner import OWNER, Owner, me
from bench.progress import narrator
from bench.run import Progress, run
from bench.statuses import STATUSES
from bench.store import RECORD, Store
from stitchvm.streams import derive

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")

WAYS = """
import ctypes, os, signal, sys, time
import torch
from baselines.constant import build as constant
from stitchvm.value import NotApplicable

class Bad(torch.nn.Module):
    pass

def build(world, reward, *, way: str = "raise"):
    value = constant(world, reward)
    if way == "raise":
        raise RuntimeError("what went wrong")
    if way == "exit":
        sys.exit(0)
    if way == "segfault":
        print("about to", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    if way == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    if way == "memory":
        held = [torch.ones(2**27) for _ in range(64)]
    if way == "list":
        held = [bytearray(2**29) for _ in range(64)]
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "decline":
        raise NotApplicable("it knows no such reward")
    if way == "nan":
        value.forward = lambda z_t, t, c, rng=None: torch.full((len(c),), float("nan"))
    return value
"""


def _line(text):
    return next(k for k, line in enumerate(WAYS.splitlines(), 1) if text in line)


@pytest.fixture
def fakes(tmp_path):
    file = tmp_path / "fakes.py"
    file.write_text(WAYS)

    def made(*ways):
        fake = {"build": f"{file}:build"}
        return planned(estimator=["constant", *(fake | {"name": w, "way": w} for w in ways)])

    return made


def ended(store):
    return {r["coordinates"]["estimator"]: r for r in store.latest().values()}


@LINUX
def test_each_way_to_fail_has_its_name_and_the_others_are_unharmed(fakes, tmp_path):
    ways = ("raise", "exit", "segfault", "memory", "list", "killed", "decline", "nan")
    cells, store = fakes(*ways), Store(tmp_path / "store")
    counts = run(cells, store, How(jobs=4, limits=Limits(memory=3 * 2**30)))
    found = ended(store)
    assert {way: record["status"] for way, record in found.items()} == {
        "constant": "ok", "raise": "error", "exit": "error", "segfault": "error",
        "memory": "oom_host", "list": "oom_host", "killed": "error", "decline": "skipped",
        "nan": "diverged",
    }  # fmt: skip
    assert counts == {"ok": 1, "error": 7, "before": 0, "skipped": 1}
    assert (
        found["raise"]["reason"]
        == f"RuntimeError: what went wrong (fakes.py:{_line('raise Run')})"
    )
    assert any("Traceback" in line for line in found["raise"]["log"])
    assert found["exit"]["reason"] == f"it called sys.exit(0) (fakes.py:{_line('sys.exit')})"
    assert found["segfault"]["exit"] == {"code": None, "signal": "SIGSEGV"}
    assert found["segfault"]["reason"] == "its process ended with SIGSEGV: about to"
    assert found["killed"]["exit"]["signal"] == "SIGKILL"
    assert found["decline"]["reason"] == "it knows no such reward"
    assert found["nan"]["reason"].endswith("all 6 values at sigma 0.25 are not finite")
    codes = {cell.coordinates["estimator"]: code_of(cell.spec) for cell in cells}
    assert {way: record["code"] for way, record in found.items()} == codes
    assert None not in codes.values()
    assert not _at_work_in(tmp_path)


@LINUX
def test_a_cell_that_hangs_and_will_not_hear_is_killed(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.child.GRACE", 0.5)
    [_, cell], store = fakes("hang"), Store(tmp_path / "store")
    assert run([cell], store, How(limits=Limits(seconds=12)))["error"] == 1
    [record] = store.latest().values()
    assert (record["status"], record["reason"]) == ("timeout", "it took longer than 12 s")
    assert record["exit"] == {"code": None, "signal": "SIGKILL"}
    assert 12 < record["wall_seconds"] < 20
    assert not _at_work_in(tmp_path)


@LINUX
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGKILL])
def test_cells_end_with_their_runner(fakes, tmp_path, asked):
    """Told to end, it records what it ended; killed, its cells die with it all the same."""
    [_, cell], store = fakes("hang"), Store(tmp_path / "store")
    process = _forked(store.path, [cell], How())
    attempt = store.path / "cells" / cell.id / "0001"
    while not (attempt / "job.json").is_file():
        time.sleep(0.05)
    assert store.at_work(attempt).pid == process.pid
    os.kill(process.pid, asked)
    process.join(30)
    for _ in range(100):
        if not _at_work_in(tmp_path):
            break
        time.sleep(0.1)
    assert not _at_work_in(tmp_path)
    told = asked == signal.SIGTERM
    assert [r["status"] for r in store.latest().values()] == (["interrupted"] if told else [])
    assert store.at_work(attempt) is None
    assert How(rerun=("none",)).wants(store.latest().get(cell.id))


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_is_done(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a disk that is full needs the right to mount one")
    try:
        cells, store = sweep(12), Store(disk / "store")
        with pytest.raises(ValueError, match="No space left on device; finished cells are kept"):
            run(cells, store, INLINE)
        done = store.done()
        assert 0 < len(done) < 12
        assert store.problems == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert run(cells, store, INLINE) == {"ok": 12 - len(done), "error": 0, "before": len(done)}
        assert attempts(store, cells) == [1] * 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _at_work_in(folder):
    """Processes that still run for cells in a folder."""
    said = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said.append(file.read_bytes().decode())
        except OSError:
            continue
    return [line for line in said if str(folder) in line and "bench.attempt" in line]


def test_a_cell_that_fails_here_is_named_as_well(fakes, tmp_path):
    store = Store(tmp_path / "store")
    run(fakes("raise", "exit", "decline", "nan"), store, INLINE)
    assert {way: record["status"] for way, record in ended(store).items()} == {
        "constant": "ok", "raise": "error", "exit": "error", "decline": "skipped",
        "nan": "diverged",
    }  # fmt: skip


def test_which_ended_cells_run_again(fakes, tmp_path, monkeypatch):
    cells, store = fakes("raise", "nan"), Store(tmp_path / "store")
    run(cells, store, INLINE)

    def again(*names):
        how = How("inline", rerun=names)
        return {c.coordinates["estimator"] for c in cells if how.wants(store.latest().get(c.id))}

    assert again("none") == set()
    assert again("failed") == {"raise", "nan"}
    assert again("oom") == again("stale") == set()
    assert again("all") == {"constant", "raise", "nan"}
    monkeypatch.setattr(staleness, "_digest", lambda _: "other code")
    assert again("stale") == {"constant", "raise", "nan"}
    assert again("none") == set()
    assert run(cells, store, How("inline", rerun=("none",)))["before"] == 3


def test_cells_that_are_measured_several_times_take_turns(fakes, tmp_path):
    cells, store, told = fakes("raise", "decline"), Store(tmp_path / "store"), []
    how = How("inline", processes=2)
    counts = run(cells, store, how, tell=told.append)
    assert counts == {"ok": 1, "error": 1, "before": 0, "skipped": 1}
    order = [p.cell.coordinates["estimator"] for p in told if p.status is not None]
    assert order == ["constant", "raise", "decline", "constant"]
    good = [r for r in store.records() if r["status"] == "ok"]
    assert len(good) == 2
    assert len({json.dumps(r["rows"][0]["metrics"]) for r in good}) == 1
    assert {r["isolation"] for r in good} == {"process"}
    assert run(cells[:1], store, how) == {"ok": 0, "error": 0, "before": 1}
    assert list(How(processes=4).times(good)) == [3, 4]


def test_no_cell_starts_after_too_many_failures(fakes, tmp_path):
    cells, store = fakes("raise", "nan", "exit"), Store(tmp_path / "store")
    counts = run(cells, store, How("inline", max_failures=2))
    assert counts == {"ok": 1, "error": 2, "before": 0, "left": 1}
    assert len(store.latest()) == 3


def test_a_cell_that_is_measured_less_often_than_asked_is_left(fakes, tmp_path):
    cells, store = fakes("raise"), Store(tmp_path / "store")
    counts = run(cells, store, How("inline", processes=2, max_failures=1))
    assert counts == {"ok": 0, "error": 1, "before": 0, "left": 1}
    assert attempts(store, cells) == [1, 0]


@pytest.mark.parametrize(
    ("text", "code"),
    [(["constant"], 0), (["constant", "raise"], 1), (["raise"], 3), (["constant", "decline"], 0)],
)
def test_exit_codes(fakes, tmp_path, text, code, capsys):
    fakes()
    entries = ", ".join(
        name if name == "constant" else f"{{build: '{tmp_path}/fakes.py', way: {name}}}"
        for name in text
    )
    suite = {"name": "tiny", "about": "-", "minutes": 0.1, "isolation": "inline"}
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(suite | {"defaults": DEFAULTS, "axes": {"estimator": []}}))
    store = str(tmp_path / "store")
    arguments = ["run", str(file), "--set", f"estimator={entries}", "--store", store]
    assert _code(arguments) == code
    measured, failed, skipped = map(text.count, ("constant", "raise", "decline"))
    said = f"{measured} cells measured, 0 were there, {failed} failed"
    said += f", {skipped} skipped" if skipped else ""
    assert f"{said}; records in {store}\n" in capsys.readouterr().out
    assert _code([*arguments, "--rerun", "none"]) == code  # what failed before counts


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cell_that_declines_is_skipped_and_has_not_failed(fakes, monkeypatch, capsys, terminal):
    declines, raises = fakes("decline", "raise")[1:]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with narrator(SimpleNamespace(name="tiny")) as tell:
        tell(Progress(declines, 0, 2, "skipped", "it knows no such reward", 0.1))
        tell(Progress(raises, 1, 2, "error", "RuntimeError: what went wrong", 0.1))
    said = " ".join(capsys.readouterr().err.split())
    for how, cell, why in (
        ("skipped", declines, "it knows no such reward"),
        ("failed", raises, "RuntimeError: what went wrong"),
    ):
        name = f"{cell.label} · quadratic · {cell.spec.protocol.place}"
        assert (f"{how}: {name}: {why}" if terminal else f"{name}: {how}: {why}, 0.1 s") in said


def test_tables_call_a_cell_that_declined_skipped(fakes, tmp_path, capsys):
    store = Store(tmp_path / "store")
    run(fakes("decline", "raise")[1:], store, INLINE)
    _code(["table", str(store.path)])
    said = capsys.readouterr().out
    assert "skipped: decline (quadratic): it knows no such reward" in said
    assert "failed: raise (quadratic): RuntimeError: what went wrong" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--timeout", "soon"], "expected a time such as 90s, 15min or 2h, got 'soon'"),
        (["--mem-limit", "lots"], "expected a size such as 24GiB or 500MB, got 'lots'"),
        (["--mem-limit", "24"], "expected a size such as 24GiB or 500MB, got '24'"),
        (["--rerun", "broken"], "expected --rerun of none, failed, oom, stale, all, got 'broken'"),
        (["--device", "cuda:7"], "expected a device of this machine, cpu"),
    ],
)
def test_options_that_say_nothing_are_refused(option, said, capsys, tmp_path):
    assert _code(["run", "quickstart", "--store", str(tmp_path), *option]) == 2
    assert said in capsys.readouterr().err


def _code(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code


def test_times_and_sizes_are_read():
    assert (seconds("90"), seconds("1.5h"), seconds("15 min")) == (90, 5400, 900)
    assert (memory("24GiB"), memory("500MB"), memory("7B")) == (24 * 2**30, 500_000_000, 7)


def test_a_living_owner_keeps_others_out_and_a_dead_one_does_not(tmp_path):
    [cell, _], store = planned(), Store(tmp_path)
    attempt = store.begin(cell.id)
    assert store.begin(cell.id) == me()
    assert run([cell], store, INLINE) == {"ok": 0, "error": 0, "before": 0, "elsewhere": 1}
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = me()._replace(pid=process.pid)
    (attempt / OWNER).write_text(json.dumps(dead._asdict()))
    assert run([cell], store, INLINE)["ok"] == 1
    assert [p.name for p in sorted(attempt.parent.iterdir())] == ["0001", "0002"]


def test_an_owner_on_another_machine_is_taken_over_only_when_told_to(tmp_path):
    [cell, _], store = planned(), Store(tmp_path)
    attempt = store.begin(cell.id)
    (attempt / OWNER).write_text(json.dumps(Owner("elsewhere.example", 1, 0.0)._asdict()))
    assert run([cell], store, INLINE)["elsewhere"] == 1
    assert run([cell], store, How("inline", unlock=True))["ok"] == 1


@pytest.mark.parametrize(("host", "advised"), [(me().host, False), ("elsewhere.example", True)])
def test_cells_at_work_elsewhere_are_left_and_none_is_said_to_fail(
    host, advised, tmp_path, capsys
):
    file, store = tmp_path / "mine.yaml", Store(tmp_path / "store")
    axes, about = {"estimator": ["constant", "tweedie"]}, {"about": "-", "minutes": 0.1}
    made = {"name": "mine", "isolation": "inline", "defaults": DEFAULTS, "axes": axes, **about}
    file.write_text(json.dumps(made))
    attempt = store.begin(planned()[0].id)
    (attempt / OWNER).write_text(json.dumps(me()._replace(host=host)._asdict()))
    assert _code(["run", str(file), "--store", str(store.path)]) == 5
    out = capsys.readouterr().out
    assert "1 cells measured, 0 were there, 0 failed, 1 at work in another runner;" in out
    assert ("on elsewhere.example has ended" in out) == advised == ("--unlock" in out)


def test_a_process_of_the_same_id_that_began_later_is_another_one():
    assert me().alive
    assert not me()._replace(created=me().created - 60).alive


def test_a_record_whose_samples_were_cut_is_run_again(tmp_path):
    cells, store = planned(), Store(tmp_path)
    run(cells, store, INLINE)
    file = store.path / "cells" / cells[0].id / "0001" / "samples.npz"
    file.write_bytes(file.read_bytes()[:-100])
    assert set(store.latest()) == {cells[1].id}
    assert "its samples: expected" in store.problems[0]
    assert run(cells, store, INLINE) == {"ok": 1, "error": 0, "before": 1}


def test_a_record_says_what_repeats_it(tmp_path, capsys):
    store = str(tmp_path / "store")
    line = ["run", "quickstart", "--quick", "--set", "sigmas=0.3", "--store", store]
    assert _code([*line, "--only", "estimator=truth & reward=sigmoid"]) == 0
    [record] = Store(store).latest().values()
    assert record["command"].startswith("stitchbench run quickstart --quick --set sigmas=0.3")
    words = record["command"].split()
    assert _code(words[1:]) == 0
    assert (Path(store) / "cells" / record["id"] / "0002" / RECORD).is_file()
    capsys.readouterr()


def test_code_of_a_cell_is_what_its_modules_say(monkeypatch, tmp_path):
    before = staleness.code(["bench.tasks.value", "baselines.tweedie"])
    assert not staleness.stale({"code": before})
    assert not staleness.stale({})  # an older record
    package = tmp_path / "baselines"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = "from baselines import other\ndef build():\n    '''Words.'''\n    return 1\n"
    (package / "one.py").write_text(source)
    (package / "other.py").write_text("x = 1\n")
    files = {"baselines.one": package / "one.py", "baselines.other": package / "other.py"}
    monkeypatch.setattr(staleness, "_file", files.get)

    def digest():
        for cached in (staleness._digest, staleness._tree, staleness._imports, staleness._said):
            cached.cache_clear()
        return staleness.code(["baselines.one"])["digest"]

    first = digest()
    (package / "one.py").write_text(source.replace("Words", "Others") + "# and more\n")
    assert digest() == first
    (package / "other.py").write_text("x = 2\n")
    assert digest() != first
    for cached in (staleness._digest, staleness._tree, staleness._imports, staleness._said):
        cached.cache_clear()


def test_a_record_of_other_code_is_shown_as_stale_and_kept(tmp_path, monkeypatch, capsys):
    store, options = str(tmp_path / "store"), ["--quick", "--set", "sigmas=0.3"]
    line = ["run", "quickstart", *options, "--store", store]
    only = ["--only", "estimator=truth & reward=sigmoid"]
    assert _code([*line, *only]) == 0
    monkeypatch.setattr(staleness, "_digest", lambda _: "other code")
    capsys.readouterr()
    assert _code([*line, *only]) == 0
    assert "1 of these cells are stale" in capsys.readouterr().err
    assert _code(["plan", "quickstart", *options, "--store", store, *only]) == 0
    assert "  stale  " in capsys.readouterr().out
    assert _code([*line, *only, "--rerun", "stale"]) == 0
    assert "1 cells measured" in capsys.readouterr().out


def _run_in_a_fork(store, cells, how):
    """Run, as a process that can be killed."""
    os.setsid()
    run(cells, Store(store), how)


def _forked(store, cells, how):
    process = multiprocessing.get_context("fork").Process(
        target=_run_in_a_fork, args=(store, cells, how)
    )
    process.start()
    return process


@pytest.mark.parametrize("runners", [2, 4])
def test_runners_that_share_a_store_run_every_cell_once(tmp_path, runners):
    cells, store = sweep(12), Store(tmp_path)
    running = [_forked(store.path, cells, INLINE) for _ in range(runners)]
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0] * runners
    assert attempts(store, cells) == [1] * 12
    assert all(len(store.attempts(cell.id)) == 1 for cell in cells)


@pytest.mark.parametrize(
    ("kills", "count"), [(8, 6), pytest.param(200, 40, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_it_goes_on_from_there(tmp_path, kills, count):
    """Kill -9 at random, and files torn meanwhile: every cell once, and the same table."""
    cells, store = sweep(count), Store(tmp_path / "store")
    chance = random.Random(derive(0, "kills"))
    undisturbed = Store(tmp_path / "undisturbed")
    run(cells[:1], undisturbed, INLINE)  # imports once what forks share
    start = time.perf_counter()
    run(cells, undisturbed, INLINE)
    each = (time.perf_counter() - start) / count
    died, torn = 0, set()
    for kill in range(kills):
        process = _forked(store.path, cells, INLINE)
        time.sleep(chance.uniform(0, 2 * each))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            died += 1
        process.join()
        if kill % 10 == 7:
            torn.add(_tear(store, chance))
    assert died > kills / 2
    run(cells, store, INLINE)
    run(cells, store, INLINE)
    tried = sum(len(store.attempts(cell.id)) for cell in cells)
    sys.stdout.write(f"{died} kills, {len(torn)} attempts torn, {tried} made of {count} cells\n")
    assert attempts(store, cells) == [1] * count
    assert table_of(store).equals(table_of(undisturbed))
    assert len(store.problems) == len(torn - {None})


def _tear(store, chance):
    """Cut the record or the samples of a measured attempt short, and return its folder."""
    done = store.latest()
    if not done:
        return None
    cell = chance.choice(sorted(done))
    file = store.path / "cells" / cell / done[cell]["attempt"] / RECORD
    if chance.random() < 0.5:
        file = file.with_name("samples.npz")
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])
    return file.parent


def test_statuses_are_those_that_are_documented():
    assert STATUSES == (
        "ok", "oom_gpu", "oom_host", "timeout", "diverged", "error", "invalid", "skipped",
        "interrupted",
    )  # fmt: skip
