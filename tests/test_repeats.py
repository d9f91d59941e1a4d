"""Cells that several processes measured: times over processes, quality as of one."""

import json

import numpy as np
import pytest
from tiny import planned

from bench import repeats
from bench.frame import tidy
from bench.how import INLINE
from bench.run import run
from bench.stats import log_ratio_interval, median_interval, process_seconds_interval
from bench.store import Store


def attempt(store, cell, number, factor, **changes):
    """Another attempt at a cell, whose calls took so many times as long."""
    record = next(store.records(cell.id))
    for name in ("attempt", "log"):
        del record[name]
    for row in record["rows"]:
        row["call_seconds"] = [factor * second for second in row["call_seconds"]]
    made = store.begin(cell.id)
    assert made.name == f"{number:04d}"
    store.write(made, record | changes, store.samples(cell.id, "0001"))


@pytest.fixture
def store(tmp_path):
    store, [cell, _] = Store(tmp_path), planned(calls=3)
    run([cell], store, INLINE)
    for number, factor in ((2, 2.0), (3, 4.0)):
        attempt(store, cell, number, factor)
    return store, cell


def test_times_are_a_t_interval_over_processes_and_quality_is_as_before(store):
    store, cell = store
    [latest] = store.latest().values()
    alone = next(store.records())
    row, first = tidy([latest]).iloc[0], tidy([alone]).iloc[0]
    assert (row["processes"], first["processes"]) == (3, 1)
    assert row["bias"] == first["bias"]
    raw = alone["rows"][0]
    each = np.array(raw["call_seconds"]) / raw["call_rows"]
    log = np.log(np.median(each)) + np.log([1, 2, 4])
    half = 4.302653 * log.std(ddof=1) / 3**0.5  # t at 2 degrees of freedom
    assert row["seconds"] == pytest.approx(np.exp(log.mean()), rel=1e-9)
    assert row["seconds_lo"] == pytest.approx(np.exp(log.mean() - half), rel=1e-6)
    assert row["seconds_hi"] == pytest.approx(np.exp(log.mean() + half), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"status": "error", "rows": []}, {"code": {"digest": "another", "roots": [], "python": ""}}],
)
def test_attempts_that_failed_or_ran_other_code_are_no_repeats(store, changes):
    store, cell = store
    attempt(store, cell, 4, 8.0, **changes)
    shown = store.latest()[cell.id]
    expected = 3 if "status" in changes else 1  # the last good one is shown, and those like it
    assert repeats.processes(shown) == expected


def test_another_machine_is_no_repeat(store):
    store, cell = store
    environment = next(store.records())["environment"] | {"device_name": "another"}
    attempt(store, cell, 4, 8.0, environment=environment)
    assert repeats.processes(store.latest()[cell.id]) == 1


def test_one_process_is_judged_by_its_calls():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 3.0, 5.0])
    assert repeats.seconds([x]) == median_interval(x)
    assert repeats.ratio([x], [y]) == log_ratio_interval(x, y)
    both = repeats.ratio([x, 3 * x], [y, 3 * y])
    assert both.mean == pytest.approx(np.exp(np.log(x / y).mean()))
    assert both.hi - both.lo < 1e-9  # processes that agree leave nothing to doubt


def test_intervals_over_three_processes_cover_as_promised():
    """2,000 cells whose processes differ by 10 % and whose calls by 3 %."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        process = rng.normal(0, 0.1, size=(3, 1))
        log = process + rng.normal(0, 0.03, size=(3, 5))
        lo, hi = process_seconds_interval(list(np.exp(log)))[1:3]
        covered += lo <= 1 <= hi
    assert 0.93 < covered / 2000 < 0.97


def test_a_record_says_what_went_on_beside_it(tmp_path):
    store, [cell, _] = Store(tmp_path), planned()
    run([cell], store, INLINE)
    file = tmp_path / "cells" / cell.id / "0001" / "result.json"
    found = json.loads(file.read_bytes())["environment"]
    assert found["after"]["at"] > found["before"]["at"]
    assert isinstance(found["disturbed"], list)
