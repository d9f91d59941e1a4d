"""Interquartile mean, probability of improvement and times over processes, against scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from bench import stats
from bench.frame import spread
from bench.metrics.value import middle_rmse
from bench.report import numbers
from bench.report.align.aggregates import aggregates

SMALL = settings(max_examples=50, deadline=None)
NUMBER = st.integers(-5, 5).map(float)  # few values: ties
NUMBERS = st.lists(NUMBER, min_size=1, max_size=12)


def rng():
    return np.random.default_rng(0)


# iqm_interval


@SMALL
@given(NUMBERS)
def test_iqm_is_scipys_trimmed_mean(x):
    assert stats.iqm_interval(x).mean == pytest.approx(reference.trim_mean(x, 0.25))


@pytest.mark.parametrize("n", [30, 33, 60])
def test_iqm_interval_is_yuens_for_one_sample(n):
    x = rng().exponential(size=n)
    # Yuen's two-sample test against a constant sample has that sample's variance 0.
    cut, left = n // 4, n - 2 * (n // 4)
    winsorized = reference.mstats.winsorize(x, (cut / n + 1e-9, cut / n + 1e-9)).data
    error = np.sqrt((n - 1) * winsorized.var(ddof=1) / (left * (left - 1)))
    half = reference.t.ppf(0.95, left - 1) * error
    mean = reference.trim_mean(x, 0.25)
    assert stats.iqm_interval(x, 0.9) == pytest.approx((mean, mean - half, mean + half, n))


def test_a_quarter_of_outliers_does_not_move_the_iqm():
    x = rng().normal(size=40)
    worse = np.sort(x)
    worse[-10:] = np.inf
    assert stats.iqm_interval(worse) == stats.iqm_interval(x)
    assert stats.mean_interval(worse).mean == np.inf


def test_iqm_edges():
    assert stats.iqm_interval([None, 2.0, np.nan])[::3] == (2.0, 1)
    same = stats.iqm_interval([0.3] * 40)
    assert same.lo == same.mean == same.hi == pytest.approx(0.3)
    few, none, infinite = (stats.iqm_interval(x) for x in ([1.0] * 29, [], [np.inf] * 40))
    assert (few.mean, none.n, infinite.mean) == (1.0, 0, np.inf)
    assert np.isnan([*few[1:3], *none[:3], *infinite[1:3]]).all()
    with pytest.raises(ValueError, match=r"expected x of shape \(n,\), got \(1, 2\)"):
        stats.iqm_interval([[1, 2]])


# improvement_interval, unpaired_improvement_interval


def strictly(a, b):
    """Agarwal et al.'s S."""
    return 1.0 if a > b else 0.5 if a == b else 0.0


@SMALL
@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=12))
def test_improvement_is_the_mean_over_tasks_of_one_run_each(pairs):
    a, b = zip(*pairs, strict=True)
    by_task = [reference.mannwhitneyu([x], [y]).statistic for x, y in pairs]
    assert stats.improvement_interval(a, b).mean == pytest.approx(np.mean(by_task))
    assert stats.improvement_interval(a, b) == stats.share_interval(
        [strictly(x, y) for x, y in pairs]
    )


@SMALL
@given(NUMBERS, NUMBERS)
def test_unpaired_improvement_is_the_mann_whitney_share(a, b):
    expected = reference.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    got = stats.unpaired_improvement_interval(a, b)
    assert got.mean == pytest.approx(expected)
    mirrored = stats.unpaired_improvement_interval(b, a)
    np.testing.assert_allclose(mirrored[:3], [1 - got[k] for k in (0, 2, 1)], atol=1e-12)


def test_unpaired_improvement_has_delongs_variance():
    random = rng()
    a, b = random.normal(1.0, 2.0, 12), random.normal(0.0, 1.0, 9)
    p, lo, hi, n = stats.unpaired_improvement_interval(a, b)
    ranks = reference.rankdata([*a, *b])
    # Placements by ranks: the rank in all minus that in its own group.
    of_a = (ranks[:12] - reference.rankdata(a)) / 9
    of_b = 1 - (ranks[12:] - reference.rankdata(b)) / 12
    error = np.sqrt(of_a.var(ddof=1) / 12 + of_b.var(ddof=1) / 9)
    half = reference.norm.ppf(0.975) * error / (p * (1 - p))
    assert n == 9
    assert np.log(lo / (1 - lo)) == pytest.approx(np.log(p / (1 - p)) - half)
    assert np.log(hi / (1 - hi)) == pytest.approx(np.log(p / (1 - p)) + half)


def test_improvement_edges():
    assert stats.improvement_interval([1, None, 3], [0, 5, 3])[::3] == (0.75, 2)
    always = stats.unpaired_improvement_interval([2, 3, 4, None], [0, 1, 1])
    assert always == stats.share_interval([1, 1, 1])
    assert always.lo < 0.5  # three of each may come apart by chance: 1 in 10
    tied = stats.unpaired_improvement_interval([1, 1, 1], [1, 1, 1])
    assert tied == stats.share_interval([0.5] * 3)
    one = stats.unpaired_improvement_interval([2], [0, 1])
    assert one[::3] == (1.0, 1)
    assert np.isnan(one[1:3]).all()
    assert stats.unpaired_improvement_interval([], [1]).n == 0
    assert stats.unpaired_improvement_interval([np.inf, 1, 2], [np.inf, 0, 1]).mean == 6 / 9
    with pytest.raises(ValueError, match=r"expected two arrays of one shape"):
        stats.improvement_interval([1], [1, 2])


# process_ratio_interval, rms_interval


def test_the_unit_of_times_is_the_process():
    random = rng()
    a, b = np.exp(random.normal(size=(2, 4, 5)))
    means = np.exp(np.log(a).mean(1)), np.exp(np.log(b).mean(1))
    assert stats.process_ratio_interval(a, b) == pytest.approx(stats.log_ratio_interval(*means))


def test_processes_may_have_made_different_numbers_of_calls():
    a, b = [[2.0, 8.0, None], [3.0], [None]], [[1.0, 1.0, 1.0], [1.0], [1.0]]
    got = stats.process_ratio_interval(a, b)
    assert got == pytest.approx(stats.log_ratio_interval([4.0, 3.0], [1.0, 1.0]))
    assert got.n == 2


def test_process_edges():
    one = stats.process_ratio_interval([[2.0, 2.0]], [[1.0, 1.0]])
    assert (one.mean, one.n) == (pytest.approx(2.0), 1)
    assert np.isnan(one[1:3]).all()
    with pytest.raises(ValueError, match="expected as many processes of both, got 1 and 2"):
        stats.process_ratio_interval([[1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="expected positive numbers, got 0"):
        stats.process_ratio_interval([[0.0]], [[1.0]])
    with pytest.raises(ValueError, match="expected two arrays of one shape"):
        stats.process_ratio_interval([[1.0]], [[1.0, 2.0]])


def test_spread_about_zero():
    got = stats.rms_interval([0.3, -0.4, None, 0.0, 0.0], 0.9)
    lo, hi = np.sqrt(0.25 / reference.chi2.ppf([0.95, 0.05], 4))
    assert got == pytest.approx((0.25, lo, hi, 4))
    assert stats.rms_interval([0.0, 0.0])[:3] == (0, 0, 0)
    assert np.isnan(stats.rms_interval([]).mean)


# in tables


def steered(name, phase, target, **others):
    """A row of the align task's frame."""
    return {
        "cell": others.pop("cell", name),
        "method": name,
        "phase": phase,
        "algorithm_build": "guide",
        "estimator_build": name,
        "target_by_prompt": np.array(target),
        **spread("target", stats.mean_interval(target)),
        **spread("target_iqm", stats.iqm_interval(target)),
    } | others


def test_steered_methods_by_aggregates():
    plain = np.linspace(0, 1, 40)
    stitched = plain + np.where(np.arange(40) < 30, 0.1, -0.1)
    tweedie = stitched + np.where(np.arange(40) < 4, 9.0, -0.01)
    rows = pd.DataFrame([
        steered("none", "unsteered", plain, algorithm_build="sample"),
        *(steered(name, phase, x) for name, y in (("stitched", stitched), ("tweedie", tweedie))
          for phase, x in (("unsteered", plain), ("eval", y))),
    ])  # fmt: skip
    shown = aggregates(rows, "stitched").set_index("method")
    assert list(shown.index) == ["none", "stitched", "tweedie"]
    assert shown.loc["stitched", "beats unsteered"].startswith("75 [")  # 30 of 40
    assert shown.loc["tweedie", "beats stitched"].startswith("10 [")  # 4 of 40, by far
    assert {*shown.loc["none", ["beats unsteered"]], shown.loc["stitched", "beats stitched"]} == {
        numbers.MISSING
    }
    mean, middle = (
        float(shown.loc["tweedie", c].split()[0]) for c in ("mean", "interquartile mean")
    )
    assert mean == pytest.approx(tweedie.mean(), abs=0.1)
    assert middle == pytest.approx(reference.trim_mean(tweedie, 0.25), abs=0.1)
    assert mean > middle + 0.5
    assert list(aggregates(rows, None).columns) == [
        "method", "mean", "interquartile mean", "beats unsteered"
    ]  # fmt: skip


def test_middle_rmse_is_not_moved_by_a_few_prompts():
    mse = rng().exponential(size=40)
    worse = mse.copy()
    worse[np.argsort(mse)[-3:]] = 1e6
    assert middle_rmse(worse) == middle_rmse(mse)
    assert middle_rmse(mse).mean ** 2 == pytest.approx(stats.iqm_interval(mse).mean)
    with pytest.raises(ValueError, match="expected mean squared errors of at least 0, got -1"):
        middle_rmse(np.array([1.0, -1.0]))
