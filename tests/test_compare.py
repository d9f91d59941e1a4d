"""Two stores of known numbers: ratios, differences, what is missing, and gates."""

import copy
import json

import numpy as np
import pytest
from click.testing import CliRunner
from records import ENVIRONMENT, ROWS, VALUE, failed, only_row, put, record

from bench.cli import cli
from bench.comparable import figures
from bench.compare import compare, environments
from bench.gate import judge, parse
from bench.stats import log_ratio_interval, mean_interval, paired
from bench.store import Store


def by_id(*records):
    return {one["id"]: one for one in records}


def changed(task="value", **row):
    """A record whose row has other numbers."""
    made = record(task)
    only_row(made).update(copy.deepcopy(row))
    return made


def comparison(first, second, figure):
    """The comparison of one figure of one cell."""
    stores = compare(by_id(first), by_id(second))
    [found] = [one for one in stores.comparisons if one.figure == figure]
    return found


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


# numbers


def test_a_store_equals_itself():
    stores = compare(by_id(record()), by_id(record()))
    assert {one.figure for one in stores.comparisons} == {
        "bias", "mse", "rmse", "seconds", "peak_live"
    }  # fmt: skip
    assert all(one.same and not one.clear for one in stores.comparisons)
    assert not any(stores[1:-1])
    alone, *inline = stores.notes
    assert alone.startswith("1 cells were measured in one process")
    assert inline == [
        f"1 cells of the {which} store shared a warm process: seconds are indicative"
        for which in ("first", "second")
    ]


def test_seconds_are_a_ratio_of_calls_in_their_order():
    twice = changed(call_seconds=[4.0, 4.5, 4.7, 4.3])
    found = comparison(record(), twice, "seconds")
    by_hand = log_ratio_interval([4.0, 4.5, 4.7, 4.3], [2.0, 2.2, 2.4, 2.1])
    np.testing.assert_allclose(found.ratio, by_hand)
    assert found.difference is None
    assert found.clear
    assert comparison(twice, record(), "seconds").ratio.mean == pytest.approx(1 / by_hand.mean)


def test_of_several_processes_the_process_is_the_unit(tmp_path):
    """Calls within a process agree far better than processes do."""
    spent = {"a": (1.0, 1.5, 1.2), "b": (1.3, 1.2, 1.5)}
    first, second = (
        Store(
            put(tmp_path / name, *(changed(call_seconds=[x, 1.01 * x] * 2) for x in of))
        ).latest()
        for name, of in spent.items()
    )
    stores = compare(first, second)
    [found] = [one for one in stores.comparisons if one.figure == "seconds"]
    logs = np.log([1.3 / 1.0, 1.2 / 1.5, 1.5 / 1.2])
    np.testing.assert_allclose(found.ratio[:3], np.exp(mean_interval(logs)[:3]))
    assert found.ratio.n == 3
    assert found.p == pytest.approx(paired(logs, np.zeros(3)).p)
    assert not found.clear
    assert not any("one process" in note for note in stores.notes)
    once = [changed(call_seconds=[x, 1.01 * x] * 2) for x in (1.2, 1.5)]
    assert comparison(*once, "seconds").clear  # of one each, nobody knows what another would say


def test_noise_is_no_difference():
    found = comparison(record(), changed(call_seconds=[2.1, 2.1, 2.5, 2.0]), "seconds")
    assert found.ratio.lo < 1 < found.ratio.hi
    assert not found.clear


def test_quality_is_paired_by_prompt():
    metrics = VALUE["metrics"] | {"bias": [0.2, 0.0, 0.31]}
    found = comparison(record(), changed(metrics=metrics), "bias")
    by_hand = paired([0.2, 0.0, 0.31], [0.1, -0.1, 0.2])
    np.testing.assert_allclose(found.difference, by_hand.difference)
    assert found.p == pytest.approx(by_hand.p)
    assert found.ratio is None
    assert found.first == mean_interval([0.1, -0.1, 0.2])


def test_an_rmse_is_a_ratio_and_a_difference_of_roots():
    metrics = VALUE["metrics"] | {"mse": [0.16, 0.05, 0.35]}
    found = comparison(record(), changed(metrics=metrics), "rmse")
    first, second = (np.sqrt(np.mean(x)) for x in ([0.04, 0.01, 0.09], [0.16, 0.05, 0.35]))
    assert found.ratio.mean == pytest.approx(second / first)
    assert found.difference.mean == pytest.approx(second - first)
    assert found.ratio.lo < found.ratio.mean < found.ratio.hi
    perfect = changed(metrics=VALUE["metrics"] | {"mse": [0.0, 0.0, 0.0]})
    assert comparison(perfect, perfect, "rmse").difference.mean == 0


def test_peaks_are_a_ratio_without_an_interval():
    found = comparison(record(), changed(peak={"live": 1500, "process": None}), "peak_live")
    assert found.ratio.mean == 1.5
    assert np.isnan(found.ratio.lo)
    assert not found.clear


def test_marks_are_read_as_their_figure_is():
    marks = {"preference": [1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0]}
    found = comparison(record("robustness"), changed("robustness", marks=marks), "preference")
    assert found.difference.mean == pytest.approx(2.5 / 8 - 5.5 / 8)
    assert found.ratio.mean == pytest.approx(2.5 / 5.5)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("value", {("sigma 0.25", "rmse"): np.sqrt(0.14 / 3), ("sigma 0.25", "seconds"): 0.215}),
        ("robustness", {("sigma 0.25", "preference"): 5.5 / 8, ("sigma 0.25", "seconds"): 0.2625}),
        ("interface", {("(2, 1)", "recall"): 2 / 3, ("(2, 1)", "seconds"): 3.0}),
        ("cost", {("value of 16, against Tweedie", "seconds"): 1.1}),
        ("align", {("eval", "target"): 2.0, ("step of 8", "seconds"): 1.1}),
        ("train", {("run 0, step 10", "target"): 7 / 3, ("step", "seconds"): 3.6}),
    ],
)
def test_each_task_has_figures(task, expected):
    found = {figure.key: figure.estimate().mean for figure in figures(record(task))}
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert not any("tune" in place for place, _ in found)
    assert set(ROWS) >= {task}


def test_rows_of_another_task_are_refused():
    with pytest.raises(ValueError, match="rows of the task 'value' in the record of .*'sigma'"):
        figures(record(rows=ROWS["train"]))


def test_other_latents_are_not_compared_in_quality():
    stores = compare(by_id(record()), by_id(changed(z_digest="z1")))
    assert {one.figure for one in stores.comparisons} == {"seconds", "peak_live"}
    assert stores.unpaired == [
        "tweedie · gaussian · linear · data · own · independent · plain · sigma 0.25"
    ]


def test_p_values_are_adjusted_over_the_task():
    metrics = VALUE["metrics"] | {"bias": [0.2, 0.0, 0.31]}
    slow = [4.0, 4.5, 4.7, 4.3]
    stores = compare(by_id(record()), by_id(changed(metrics=metrics, call_seconds=slow)))
    found = {one.figure: one for one in stores.comparisons}
    assert found["seconds"].p < found["bias"].p
    # two that differ; identical ones cannot be declared different by chance
    assert found["seconds"].adjusted == pytest.approx(2 * found["seconds"].p)
    assert found["bias"].adjusted == pytest.approx(found["bias"].p)
    assert found["mse"].adjusted == found["rmse"].adjusted == 1


# cells


def test_what_only_one_store_has_and_what_failed_is_named():
    names = ("one", "two", "three", "four", "five")
    one, two, three, four, five = (record(estimator=name) for name in names)
    broken_two, broken_three = failed(estimator="two"), failed("oom_host", estimator="three")
    stores = compare(by_id(one, two, broken_three, four), by_id(one, broken_two, three, five))
    assert stores.failed == [two["id"]]
    assert stores.mended == [three["id"]]
    assert stores.missing == [four["id"]]
    assert stores.added == [five["id"]]
    with pytest.raises(ValueError, match="expected cells that both stores have, got 1 in the "):
        compare(by_id(one), by_id(two))


def test_environments_that_differ():
    other = ENVIRONMENT | {"versions": {"python": "3.12.0", "torch": "2.14.0"}, "affinity": [0]}
    other |= {"before": {"load": [9.0]}}
    found = environments([record()], [record(environment=other, isolation="process")])
    assert found == {
        "versions.torch": (["2.13.0"], ["2.14.0"]),
        "affinity": ([], ["[0]"]),
        "isolation": (["inline"], ["process"]),
    }


def test_disturbed_measurements_are_said():
    noisy = ENVIRONMENT | {"disturbed": ["other processes took 1.9 of 2 cores"]}
    alone, noisy = (
        by_id(record(isolation="process", environment=e)) for e in (ENVIRONMENT, noisy)
    )
    assert len(compare(alone, alone).notes) == 1
    assert compare(alone, noisy).environments == {}
    assert compare(alone, noisy).notes[1:] == [
        "1 cells of the second store were disturbed, such as: other processes took 1.9 of 2 cores"
    ]


# gates


@pytest.fixture
def slower():
    """Stores whose second is about twice as slow."""
    return compare(by_id(record()), by_id(changed(call_seconds=[4.0, 4.5, 4.7, 4.3])))


@pytest.mark.parametrize(
    ("gate", "fails"),
    [
        ("seconds.ratio.lo>1.05", True),
        ("seconds.ratio.lo > 2.5", False),
        ("seconds.ratio>=1.9", True),
        ("seconds.ratio.hi<1", False),
        ("seconds.p<0.05", True),
        ("peak_live.ratio>1", False),
        ("mse.difference.lo>-1e-9", True),
        ("rmse.ratio!=1", False),
        ("failed>0", False),
        ("missing == 0", True),
    ],
)
def test_gates(slower, gate, fails):
    assert bool(judge(parse(gate), slower)) == fails


def test_where_a_gate_fails_is_said(slower):
    [(where, x)] = judge(parse("seconds.ratio>1"), slower)
    assert where.startswith(
        "tweedie · gaussian · linear · data · own · independent · plain · sigma 0.25 ("
    )
    assert 2 < x < 2.1


@pytest.mark.parametrize(
    "gate",
    [
        "", "seconds", "seconds>1", "seconds.ratio", "seconds.ratio.mid>1", "seconds.ratio.lo>x",
        "seconds.ratio.lo=1", "seconds.p.lo<1", "failed.ratio>1", "failed", "__import__('os')>1",
        "seconds.ratio.lo>1 or 1>0", "seconds.ratio.lo>nan", "seconds.ratio.lo>1\nfailed>0",
    ],
)  # fmt: skip
def test_what_is_no_gate(gate):
    with pytest.raises(ValueError, match="expected --fail-if FIGURE"):
        parse(gate)


def test_a_gate_that_cannot_fail_is_refused(slower):
    with pytest.raises(ValueError, match="unknown figure of a gate 'second'.*mean 'seconds'"):
        judge(parse("second.ratio>1"), slower)
    with pytest.raises(ValueError, match="expected numbers for the gate 'peak_live.ratio.lo>1'"):
        judge(parse("peak_live.ratio.lo>1"), slower)
    with pytest.raises(ValueError, match="expected numbers for the gate 'bias.ratio>1'"):
        judge(parse("bias.ratio>1"), slower)


# the command


@pytest.fixture
def stores(tmp_path):
    """Two folders: the second is slower, and one of its cells failed."""
    put(tmp_path / "a", record(), record(estimator="truth"), record("cost"))
    slow = changed(call_seconds=[4.0, 4.5, 4.7, 4.3])
    put(tmp_path / "b", slow, failed(estimator="truth"), record("cost"))
    return tmp_path / "a", tmp_path / "b"


def test_the_command_compares_and_guards(stores):
    out = call(*stores)
    assert "2 cells compared" in out
    assert f"failed in the second (1): {record(estimator='truth')['id']}" in out
    assert "1 clear differences of" in out
    assert "seconds                         1         0      0      1  2.01×" in out
    out = call(*stores, "--fail-if", "seconds.ratio.lo>1.05", "--fail-if", "missing>0", code=4)
    assert "gate seconds.ratio.lo>1.05: FAILED in 1 places" in out
    assert "gate missing>0: passed" in out
    call(*stores, "--fail-if", "failed>0", code=4)
    call(*stores, "--fail-if", "failed>1")
    call(stores[0], stores[0], "--fail-if", "seconds.ratio.hi>1.05", "--fail-if", "failed>0")


def test_the_command_selects_and_lists(stores):
    out = call(*stores, "--only", "estimator=tweedie", "--all")
    assert "failed in the second" not in out
    assert out.count("tweedie · gaussian · linear") == 7


def test_the_command_as_json(stores):
    found = json.loads(call(*stores, "--json", "--fail-if", "failed>0", code=4))
    one = next(c for c in found["comparisons"] if c["figure"] == "peak_live")
    assert one["ratio"] == {"mean": 1.0, "lo": None, "hi": None, "n": 1}
    assert found["gates"]["failed>0"] == [[found["failed"][0], 1]]


def test_the_command_refuses(stores, tmp_path):
    assert "expected a store with records at" in call(stores[0], tmp_path / "c", code=2)
    assert "expected --fail-if" in call(*stores, "--fail-if", "slow", code=2)
    other = put(tmp_path / "d", record(estimator="constant"))
    said = " ".join(call(stores[0], other, code=2).split())
    assert "expected cells that both stores have" in said
