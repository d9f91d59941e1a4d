"""One cell and how a store stands, of records made by hand."""

import json
import os
import sys
import time
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner
from records import failed, put, record

from bench import status
from bench.cli import cli
from bench.owner import OWNER, me
from bench.planned import PLAN, keep
from bench.store import Store
from bench.stores import cell_of

GONE = 2**22 + 1  # no process has such a number


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def begun(store, cell, **changes):
    """An attempt without a record, that this process owns but for the changes."""
    folder = store / "cells" / cell / "0009"
    folder.mkdir(parents=True)
    (folder / OWNER).write_text(json.dumps(me()._asdict() | changes))
    return folder


# show


@pytest.fixture
def store(tmp_path):
    """A cell that failed, then went well, then was killed; and another that failed."""
    bad = failed(
        "oom_host", "killed", log=["one", "two"], exit={"code": None, "signal": "SIGKILL"}
    )
    folder = put(tmp_path / "store", bad, record(), failed(estimator="truth", command="do it"))
    cell = folder / "cells" / record()["id"]
    (cell / "0002" / "log.txt").write_text("".join(f"line {k}\n" for k in range(40)))
    (cell / "0003").mkdir()
    (cell / "0003" / "cell.json").write_text("{}")
    return folder


def test_a_cell_by_the_beginning_of_its_id(store):
    cell = record()["id"]
    about = json.loads(call("show", cell[:6], store, "--json"))
    assert about["cell"] == cell
    assert about["state"] == "ok"
    assert about["attempt"] == "0002"
    assert [a["status"] for a in about["attempts"]] == [
        "oom_host", "ok", "no record: at work, or killed"
    ]  # fmt: skip
    assert about["attempts"][0]["exit"] == {"code": None, "signal": "SIGKILL"}
    assert about["log"] == [f"line {k}" for k in range(10, 40)]
    assert about["command"] == (
        f"stitchbench run made --store {store} --only id={cell} --rerun all"
    )
    rmse = next(row for row in about["rows"] if row["figure"] == "rmse")
    assert rmse["place"] == "sigma 0.25"
    assert rmse["mean"] == pytest.approx((0.14 / 3) ** 0.5)
    assert str(store / "cells" / cell / "0003" / "cell.json") in about["attempts"][2]["files"]


def test_a_cell_for_a_reader(store):
    out = call("show", record()["id"], store)
    for line in (
        "estimator=tweedie  world=gaussian  reward=linear",
        "suite made, task value",
        "protocol.replicates",
        "versions.torch                   2.13.0",
        "0001  oom_host  2026-01-01 10:00:00  2.0 s  signal SIGKILL  killed",
        "sigma 0.25               seconds                  215 [200, 240] ms  (n = 4)",
        "build                    1.0 s",
        "line 39",
        "to repeat it",
    ):
        assert line in out, (line, out)


def test_a_failed_cell_says_why_and_how_to_repeat_it(store):
    about = json.loads(call("show", failed(estimator="truth")["id"], store, "--json"))
    assert (about["state"], about["reason"], about["command"]) == (
        "error",
        "ValueError: no",
        "do it",
    )
    assert about["rows"] == []


def test_a_cell_at_work(store):
    cell = record()["id"]
    begun(store, cell)
    assert f"at work: process {os.getpid()} on " in call("show", cell, store)
    assert json.loads(call("show", cell, store, "--json"))["state"] == "running"


def test_a_torn_record_is_named(store):
    cell = failed(estimator="truth")["id"]
    (store / "cells" / cell / "0001" / "result.json").write_text("{")
    about = json.loads(call("show", cell, store, "--json"))
    assert about["state"] == "without a record"
    assert about["attempts"][0]["status"] == "record not readable"
    assert "not readable as JSON" in about["problems"][0]
    assert "record not readable" in call("show", cell, store)


def test_cells_nobody_knows_and_beginnings_of_several(store, tmp_path, monkeypatch):
    cell = record()["id"]
    typo = cell[:-1] + ("0" if cell[-1] != "0" else "1")
    said = " ".join(call("show", typo, store, code=2).split())
    assert f"got '{typo}', none of 2; near ones: {cell}" in said
    said = " ".join(call("show", "", store, code=2).split())
    assert "expected one cell, got '', which begins 2" in said
    monkeypatch.setattr("bench.stores.RUNS", tmp_path)
    found, whole = cell_of(cell[:8], None)
    assert (found.path, whole) == (store, cell)


# status


def test_a_store_that_is_done_and_one_that_is_not(store):
    found = status.standing(Store(store))
    assert (found["ok"], found["ended"]) == (1, {"error": 1})
    assert found["planned"] is found["missing"] is found["seconds_left"] is None
    put(store, failed("interrupted", estimator="constant"), failed("skipped", estimator="none"))
    others = [failed(estimator=name)["id"] for name in ("truth", "constant", "none")]
    keep(store, [record()["id"], *others, "f" * 16, "e" * 16])
    found = status.standing(Store(store))
    assert (found["planned"], found["missing"]) == (6, 3)  # the interrupted one among them
    assert found["ended"] == {"error": 1, "interrupted": 1, "skipped": 1}
    assert [failure["reason"] for failure in found["last_failures"]] == ["ValueError: no"]
    assert found["abandoned"] == []  # of what is done, killed attempts do not matter


def test_who_is_at_work_and_how_long_it_takes(store):
    now = datetime.now(UTC).isoformat()
    put(store, record(estimator="constant", started=now), record("cost", started=now))
    keep(store, [record()["id"], "f" * 16, "e" * 16, "d" * 16])
    began = time.time() - 240
    begun(store, "f" * 16, host="elsewhere", created=began)
    begun(store, "e" * 16, pid=GONE)
    found = status.standing(Store(store))
    assert list(found["running"]) == ["f" * 16]
    assert found["abandoned"] == ["e" * 16]
    assert found["missing"] == 2
    assert found["per_minute"] == pytest.approx(0.5, rel=0.02)  # two in four minutes
    assert found["seconds_left"] == pytest.approx(3 * 120, rel=0.02)  # the one at work as well
    out = call("status", store)
    assert "ok           3 (the last run planned 4)" in out
    assert f"{'f' * 16} by process {os.getpid()} on elsewhere" in out
    assert f"killed       1: {'e' * 16}" in out
    assert "0.5 cells a minute, 360 s left" in out


def test_a_cell_that_runs_again_is_at_work_although_it_has_a_record(store):
    begun(store, record()["id"])
    assert list(status.standing(Store(store))["running"]) == [record()["id"]]


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"cells": 3}', "3"])
def test_torn_plans_are_none(store, torn):
    (store / PLAN).write_text(torn)
    found = status.standing(Store(store))
    assert found["planned"] is found["missing"] is None


def test_a_plan_that_stays_the_same_is_not_written_again(tmp_path, monkeypatch):
    keep(tmp_path, ["a", "b"])
    monkeypatch.setattr("bench.planned.commit", lambda *_: pytest.fail("written"))
    keep(tmp_path, ["a", "b"])


def test_stale_cells_are_counted(tmp_path):
    code = {
        "roots": ["bench.hub"],
        "digest": "0" * 16,
        "python": "{}.{}".format(*sys.version_info),
    }
    store = put(tmp_path / "store", record(code=code), record("cost"))
    assert status.standing(Store(store))["stale"] == 1
    assert "stale        1 of them" in call("status", store)
    assert call("show", record()["id"], store).startswith(f"{record()['id']}  ok, stale")


def test_watching_ends_when_nothing_runs(store, monkeypatch):
    attempt, slept = begun(store, record()["id"]), []

    def sleep(seconds):
        slept.append(seconds)
        (attempt / OWNER).unlink(missing_ok=True)

    monkeypatch.setattr("time.sleep", sleep)
    out = call("status", store, "--watch", "--json")
    first, *rest = (json.loads(line)[0] for line in out.splitlines())
    assert list(first["running"]) == [record()["id"]]
    assert [found["running"] for found in rest] == [{}, {}]
    assert min(slept) >= 2


def test_without_a_store_all_are_shown(store, tmp_path, monkeypatch):
    put(tmp_path / "other", record("cost"))
    (tmp_path / "stitch").mkdir()  # no store
    monkeypatch.setattr("bench.inspect_commands.RUNS", tmp_path)
    monkeypatch.setattr("bench.stores.RUNS", tmp_path)
    assert len(json.loads(call("status", "--json"))) == 2
    monkeypatch.setattr("bench.inspect_commands.RUNS", tmp_path / "none")
    assert "no store yet" in call("status")
