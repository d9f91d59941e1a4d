"""The A/A test: a method against itself wins as seldom as promised, and tables say the floor."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats as reference

from bench import calibration, noise_floor
from bench.cli import cli
from bench.frame import load
from bench.report import facets, floor, page, sheet, typeset
from bench.report.sheet import Sheet, Table
from bench.stats import log_ratio_interval, process_ratio_interval
from bench.store import Store

RUNS, MOST = 200, 17  # comparisons of a method with itself, and winners: 5 % of them is 10
WORLD = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
SUITE = {
    "name": "mine",
    "about": "a suite",
    "minutes": 0.1,
    "isolation": "inline",
    "defaults": {"world": WORLD, "reward": "quadratic", "prompts": 3, "calls": 1, "sigmas": [0.5]},
    "axes": {"estimator": ["truth", "constant", "tweedie"]},
}


def call(*arguments, code=0):
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


def equal_methods(runs, processes, calls):
    """Times of one method timed twice: load that both share, what processes have, what calls have.

    Returns:
        Both, (runs, processes, calls).
    """
    random, shape = np.random.default_rng(0), (runs, processes, calls)
    load = random.normal(0, 0.3, shape)
    own = random.normal(0, 0.02, (2, runs, processes, 1))
    calls = random.normal(0, 0.02, (2, *shape)) + random.exponential(0.01, (2, *shape))
    return 0.01 * np.exp(load + own + calls)


def measured(seconds, others, **environment):
    """What `calibrate` gives, of one workload."""
    place = {"device": "cpu", "device_name": "a CPU", "threads": 1} | environment
    return {
        "started": "2026-01-01T00:00:00+00:00",
        "environment": place,
        "seconds": {"value": {"first": seconds, "second": others}},
    }


def test_a_method_against_itself_wins_seldom():
    a, b = equal_methods(RUNS, 3, 3)
    won = [noise_floor.clear(process_ratio_interval(x, y)) for x, y in zip(a, b, strict=True)]
    assert sum(won) <= MOST
    pooled = [
        noise_floor.clear(log_ratio_interval(x.ravel(), y.ravel()))
        for x, y in zip(a, b, strict=True)
    ]
    assert sum(pooled) > MOST  # where calls are taken for independent


def test_a_faster_method_wins():
    a, b = equal_methods(RUNS, 5, 3)
    won = [
        noise_floor.clear(process_ratio_interval(0.8 * x, y)) for x, y in zip(a, b, strict=True)
    ]
    assert sum(won) > 0.9 * RUNS


def test_what_is_not_known_is_no_winner():
    assert not noise_floor.clear(process_ratio_interval([[2.0]], [[1.0]]))
    assert not noise_floor.clear(process_ratio_interval([], []))


def test_winners_are_those_of_the_comparison_in_tables():
    random = np.random.default_rng(0)
    a, b = np.exp(random.normal(0, 0.05, (2, RUNS, 10)))
    won = noise_floor.winners(a.tolist(), b.tolist())
    lower = [
        reference.ttest_rel(np.log(x), np.log(y)).pvalue < 0.05 for x, y in zip(a, b, strict=True)
    ]
    assert won == sum(lower)
    assert 0 < won <= MOST


def test_two_equal_methods_differ_by_no_more_than_the_floor():
    a, b = equal_methods(400, 1, 10)
    found = noise_floor.floor(a[:200, 0].tolist(), b[:200, 0].tolist())
    ratios = np.exp(np.log(a[200:, 0] / b[200:, 0]).mean(1))
    beyond = np.maximum(ratios, 1 / ratios) > 1 + found.mean
    assert 0.01 <= beyond.mean() <= 0.09  # 5 %, standard error 1.5 %


def test_floor_by_hand():
    # Log ratios 0.03 and -0.04: root mean square 0.0354.
    a, b = [[np.exp(0.03)], [np.exp(-0.04)] * 2], [[1.0], [1.0] * 2]
    spread = np.sqrt(0.0025 / np.array([2, *reference.chi2.ppf([0.975, 0.025], 2)]))
    expected = np.expm1(reference.norm.ppf(0.975) * spread)
    assert noise_floor.floor(a, b) == pytest.approx((*expected, 2), rel=1e-6)


def test_appraised_takes_the_noisiest_workload():
    calm, noisy = np.exp(np.random.default_rng(0).normal(0, [[[0.001]], [[0.1]]], (2, 4, 5)))
    ones = np.ones((4, 5)).tolist()
    found = measured(calm.tolist(), ones)
    found["seconds"]["gradient"] = {"first": noisy.tolist(), "second": ones}
    got = noise_floor.appraised(found)
    assert got["noise_floor"] == got["workloads"]["gradient"]["noise_floor"]
    assert got["noise_floor"] > 10 * got["workloads"]["value"]["noise_floor"]
    assert got["comparisons"] == 8
    ratio = [got["workloads"]["value"][f"ratio{end}"] for end in ("", "_lo", "_hi")]
    assert ratio == list(process_ratio_interval(calm.tolist(), ones)[:3])
    assert got["seconds"] == found["seconds"]  # what was measured is kept
    json.dumps(got, allow_nan=False)


def calibrated(spread, **environment):
    a = np.exp(np.random.default_rng(0).normal(0, spread, (5, 3))).tolist()
    return noise_floor.appraised(measured(a, np.ones((5, 3)).tolist(), **environment))


def test_a_store_keeps_one_calibration_a_place(tmp_path):
    for found in (calibrated(0.1), calibrated(0.2, threads=2), calibrated(0.01)):
        noise_floor.keep(tmp_path / "store", found)
    kept = noise_floor.read(tmp_path / "store")
    assert [c["environment"]["threads"] for c in kept] == [2, 1]
    assert kept[1] == calibrated(0.01)
    assert [p.name for p in (tmp_path / "store").iterdir()] == [noise_floor.FILE]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"calibrations": [{"started": 1}]}', "\x00\xff"])
def test_a_torn_file_is_reported_and_left_alone(tmp_path, text):
    path = tmp_path / noise_floor.FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"expected calibrations in {path}, got ")):
        noise_floor.keep(tmp_path, calibrated(0.1))
    assert path.read_text() == text
    store = Store(tmp_path)
    rows = pd.DataFrame([{"machine": "a CPU", "device": "cpu", "threads": 1}])
    for _ in range(2):
        found = noise_floor.with_floor(rows, store)
    assert floor.note(found) == floor.UNKNOWN
    assert len(store.problems) == 1


def test_a_floor_is_of_its_machine_device_and_threads(tmp_path):
    noise_floor.keep(tmp_path, calibrated(0.1))
    noise_floor.keep(tmp_path, calibrated(0.01, threads=2))
    places = [
        ("a CPU", "cpu", 1),
        ("a CPU", "cpu", 2),
        ("another", "cpu", 1),
        ("a CPU", "cuda", 1),
    ]
    rows = pd.DataFrame(places, columns=["machine", "device", "threads"])
    found = noise_floor.with_floor(rows, Store(tmp_path))
    expected = [calibrated(s)["noise_floor"] for s in (0.1, 0.01)]
    np.testing.assert_allclose(found["noise_floor"], [*expected, np.nan, np.nan])
    percent = f"{100 * expected[0]:.0f}"
    assert re.fullmatch(
        rf"Noise floor on these machines: two equal methods differ by up to {percent} "
        r"\[\d+, \d+\] %; of some rows it is not known\.",
        floor.note(found),
    )
    assert floor.note(found.iloc[:1]).startswith("Noise floor on this machine: two equal")
    assert floor.note(found.iloc[2:]) == floor.note(rows) == floor.UNKNOWN
    assert noise_floor.with_floor(pd.DataFrame(), Store(tmp_path)).empty


def test_latex_note_stands_below_and_is_escaped():
    made = typeset.latex(pd.DataFrame({"time": ["1 s"]}), "c", "up to 2 %")
    assert made.index(r"\end{tabular}") < made.index(r"up to 2 \%") < made.index(r"\end{table}")
    assert "footnotesize" not in typeset.latex(pd.DataFrame({"time": ["1 s"]}), "c")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """What fresh processes do, done in this one."""

    def spawned(world, device, threads, calls):
        out = tmp_path / "seconds.json"
        calibration._main([world, device, str(threads), str(calls), str(out)])
        return json.loads(out.read_text())

    monkeypatch.setattr(calibration, "_spawned", spawned)


@pytest.mark.usefixtures("here")
def test_every_form_of_a_timing_table_says_the_floor(tmp_path):
    suite, store, out = tmp_path / "mine.yaml", tmp_path / "store", tmp_path / "out"
    suite.write_text(yaml.safe_dump(SUITE))
    assert floor.UNKNOWN in call("run", suite, "--store", store)
    said = call("calibrate", store, "--world", "gaussian", "--processes", 3, "--calls", 3)
    assert re.search(r"a winner was declared in \d of 6 comparisons", said)
    known = (
        r"Noise floor on this machine: two equal methods differ by up to \S+ \[\S+, \S+\] \\?%\."
    )
    assert re.search(known, call("table", store, "--out", out))
    frame = noise_floor.with_floor(load(store), Store(store))
    drawn = {facet.slug: {} for facet in facets.split(frame)}
    page.write(frame, drawn, [], [], out / "index.html")
    for name in ("values.md", "trust.md", "values.tex", "trust.tex", "index.html"):
        text = (out / name).read_text()
        assert re.search(known, text), name
        assert floor.UNKNOWN not in text, name
    kept = pd.read_csv(out / "values.csv")["noise_floor"]
    assert (kept == noise_floor.read(store)[0]["noise_floor"]).all()


def test_every_form_of_a_sheets_timing_table_says_the_floor(tmp_path):
    rows = pd.DataFrame(
        {"cell": ["c"], "started": ["2026"], "world": ["w"], "noise_floor": [0.02]}
    )
    rows[["noise_floor_lo", "noise_floor_hi"]] = 0.01, 0.04
    tables = [
        Table(name, name.title(), "A note.", pd.DataFrame({"x": ["1"]}))
        for name in ("steps", "else")
    ]
    shown = Sheet(
        "T", "A.", ("world",), pd.DataFrame, lambda _: [], (),
        lambda facet: floor.under(tables, ("steps",), facet.frame), lambda _: [],
    )  # fmt: skip
    said = "Noise floor on this machine: two equal methods differ by up to 2.0 [1.0, 4.0] %."
    assert sheet.text(shown, rows, [], 100) == f"W world\n\nSteps\nx\n1\n{said}\n\nElse\nx\n1\n"
    sheet.write_tables(shown, rows, tmp_path)
    for suffix, text in {"md": said, "tex": said.replace("%", r"\%")}.items():
        assert text in (tmp_path / f"w-world-steps.{suffix}").read_text()
        assert "floor" not in (tmp_path / f"w-world-else.{suffix}").read_text()


def test_calibrate_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / noise_floor.FILE).write_text("{")
    assert "expected calibrations in" in call("calibrate", tmp_path, code=2)
    assert "2 is not in the range x>=3" in call("calibrate", tmp_path, "--processes", 2, code=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "false")
    (tmp_path / "plain").mkdir()
    for name in ("nowhere", "plain", "far/away"):
        said = " ".join(call("calibrate", name, code=2).split())
        assert f"or the name of a shipped suite, got {name!r}" in said  # nothing was timed
    assert not (tmp_path / "results").exists()
    assert "the timing process" in call("calibrate", "cost-dps", code=2)
    with pytest.raises(ValueError, match="the timing process to end well, got exit code 1"):
        calibration.calibrate("gaussian", processes=1)


@pytest.mark.slow
def test_a_method_really_timed_against_itself_wins_seldom():
    processes, calls = 30, 60
    found = calibration.calibrate("gaussian", processes=processes, calls=calls)["seconds"]["value"]
    # 10 groups of 3 processes, 20 blocks of 3 calls in each: 200 runs of 3 x 3.
    a, b = (
        np.reshape(found[arm], (10, 3, 20, 3)).swapaxes(1, 2).reshape(RUNS, 3, 3)
        for arm in ("first", "second")
    )
    won = [noise_floor.clear(process_ratio_interval(x, y)) for x, y in zip(a, b, strict=True)]
    assert sum(won) <= MOST
