"""Intervals and comparisons against scipy, closed forms, and their coverage in simulation."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from bench import stats

SMALL = settings(max_examples=50, deadline=None)
NUMBER = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
SAMPLE = st.lists(NUMBER, min_size=3, max_size=12).filter(lambda x: np.ptp(x) > 0.01)
PAIRED = st.lists(st.tuples(NUMBER, NUMBER), min_size=3, max_size=12).map(np.array)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def rng():
    return np.random.default_rng(0)


def coverage(intervals, truth):
    """The share of intervals that hold the truth."""
    ends = np.array([(interval.lo, interval.hi) for interval in intervals])
    return np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))


def assert_nan_ends(interval):
    assert np.isnan([interval.lo, interval.hi]).all()


# mean_interval


@SMALL
@given(SAMPLE, st.floats(0.5, 0.99))
def test_t_interval_is_scipys(x, confidence):
    lo, hi = reference.ttest_1samp(x, 0).confidence_interval(confidence)
    expected = (np.mean(x), lo, hi, len(x))
    assert stats.mean_interval(x, confidence) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_t_interval_covers():
    data = rng().normal(3.0, 2.0, (4000, 4))
    # The standard error of a coverage of 0.95 over 4000 data sets is 0.0034.
    assert coverage(map(stats.mean_interval, data), 3.0) == pytest.approx(0.95, abs=0.011)


def test_bca_interval_covers_the_mean_of_skewed_data():
    data = rng().exponential(size=(300, 60))
    covered = coverage([stats.mean_interval(x) for x in data], 1.0)
    assert covered == pytest.approx(0.94, abs=0.04)  # standard error 0.014


def test_bca_interval_is_bca_and_not_percentile():
    x = rng().lognormal(0, 1.5, size=60)
    ends = {
        method: reference.bootstrap(
            (x,), np.mean, method=method, n_resamples=20_000, rng=np.random.default_rng(1)
        ).confidence_interval
        for method in ("BCa", "percentile")
    }
    got = stats.mean_interval(x)
    noise = 0.04 * (got.hi - got.lo)  # two bootstraps differ by their resamples
    assert (got.lo, got.hi) == pytest.approx(tuple(ends["BCa"]), abs=noise)
    assert got.hi > ends["percentile"].high + 2 * noise


@pytest.mark.parametrize(("n", "method"), [(49, "t"), (50, "bca")])
def test_method_follows_the_number_of_clusters(n, method):
    x = rng().exponential(size=n)
    other = {"t": "bca", "bca": "t"}[method]
    assert stats.mean_interval(x) == stats.mean_interval(x, method=method)
    assert stats.mean_interval(x) != stats.mean_interval(x, method=other)


def test_bca_interval_is_reproducible_and_leaves_the_global_generator_alone():
    x = rng().exponential(size=60)
    before = np.random.get_state()[1].copy()
    assert stats.mean_interval(x) == stats.mean_interval(x)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("method", ["t", "bca"])
@pytest.mark.parametrize("x", [[0.1] * 60, [0.0] * 60, [0.1 + 0.2, 0.3] * 30, [1e300] * 60])
def test_constant_data_have_no_width(x, method):
    mean, lo, hi, n = stats.mean_interval(x, method=method)
    assert mean == lo == hi == pytest.approx(x[0], rel=1e-12)
    assert n == 60


def test_missing_numbers_are_dropped_and_counted():
    x = [1.0, None, 2.0, np.nan, 4.0]
    assert stats.mean_interval(x) == stats.mean_interval([1.0, 2.0, 4.0])
    assert stats.mean_interval(x).n == 3


@pytest.mark.parametrize("method", ["t", "bca"])
def test_one_number_has_no_interval_and_none_has_no_mean(method):
    one = stats.mean_interval([2.5, None], method=method)
    assert (one.mean, one.n) == (2.5, 1)
    assert_nan_ends(one)
    nothing = stats.mean_interval([None], method=method)
    assert np.isnan(nothing.mean)
    assert nothing.n == 0
    assert_nan_ends(nothing)


@pytest.mark.parametrize(("x", "mean"), [([1, np.inf], np.inf), ([np.inf, -np.inf], np.nan)])
@pytest.mark.parametrize("method", ["t", "bca"])
def test_infinite_number_stays_visible(x, mean, method):
    interval = stats.mean_interval(x, method=method)
    assert interval.mean == pytest.approx(mean, nan_ok=True)
    assert interval.n == 2
    assert_nan_ends(interval)


def test_mean_interval_rejects():
    with pytest.raises(ValueError, match=r"expected confidence in \(0, 1\), got 95"):
        stats.mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(
        ValueError, match=r"expected method one of \['bca', 't'\] or None, got 'z'"
    ):
        stats.mean_interval([1.0, 2.0], method="z")
    with pytest.raises(ValueError, match=r"expected x of shape \(n,\), got \(2, 1\)"):
        stats.mean_interval([[1.0], [2.0]])


# cluster_means


@pytest.mark.parametrize("right", [0, 3, 20])
def test_share_interval_is_scipys_wilson(right):
    x = [1] * right + [0] * (20 - right)
    found = reference.binomtest(right, 20).proportion_ci(0.9, method="wilson")
    expected = (right / 20, found.low, found.high, 20)
    assert stats.share_interval(x, 0.9) == pytest.approx(expected, abs=1e-12)


def test_share_interval_covers():
    data = rng().random((4000, 60)) < 0.9
    assert coverage(map(stats.share_interval, data), 0.9) == pytest.approx(0.95, abs=0.015)


def test_share_edges():
    assert stats.share_interval([1, None, 0.5, 0]).n == 3
    assert np.isnan(stats.share_interval([]).mean)
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\], got 0.0 to 2.0"):
        stats.share_interval([0, 2])


def test_cluster_means_follow_first_appearance():
    x = [1.0, 10.0, 3.0, None, 20.0, None]
    clusters = ["cat", "ant", "cat", "cat", "ant", "bee"]
    np.testing.assert_array_equal(stats.cluster_means(x, clusters), [2.0, 15.0, np.nan])


def test_cluster_means_take_any_labels():
    clusters = [("a", 1), 7, ("a", 1)]
    assert stats.cluster_means([1, 2, 3], clusters).tolist() == [2, 2]
    assert stats.cluster_means([1, 2, 3], np.array([5, 4, 5])).tolist() == [2, 2]
    assert stats.cluster_means([], []).tolist() == []


def test_clusters_keep_the_coverage_that_single_samples_lose():
    random = rng()
    prompts = np.repeat(np.arange(10), 8)
    data = random.normal(size=(1000, 10))[:, prompts] + random.normal(size=(1000, 80))
    means = [stats.cluster_means(x, prompts) for x in data]
    assert coverage(map(stats.mean_interval, means), 0.0) == pytest.approx(0.95, abs=0.022)
    assert coverage([stats.mean_interval(x, method="t") for x in data], 0.0) < 0.75


def test_cluster_means_rejects():
    with pytest.raises(ValueError, match="expected 3 cluster labels, got 2"):
        stats.cluster_means([1, 2, 3], ["a", "b"])


# paired


@SMALL
@given(PAIRED)
def test_paired_is_scipys_paired_t_test(pairs):
    a, b = pairs.T
    got = stats.paired(a, b)
    if np.ptp(a - b) < 1e-9:  # all differences equal: see the next test
        assert got.difference.lo == got.difference.hi
        return
    expected = reference.ttest_rel(a, b)
    lo, hi = expected.confidence_interval(0.95)
    assert got.p == pytest.approx(expected.pvalue, rel=1e-8, abs=1e-14)
    assert got.difference == pytest.approx((np.mean(a - b), lo, hi, len(a)), abs=1e-9)


@pytest.mark.parametrize("n", [2, 10, 60])
def test_equal_differences(n):
    x = rng().normal(size=n)
    same = stats.paired(x + 0.1 + 0.2, x + 0.3)  # equal but for rounding
    assert same == (stats.Interval(0, 0, 0, n), 1.0, 0.0)
    shifted = stats.paired(x + 0.3, x)  # differences are 0.3 but for rounding
    assert shifted.p == 0.0
    assert shifted.detectable == 0.0
    assert shifted.difference == pytest.approx((0.3, 0.3, 0.3, n))
    assert shifted.difference.lo == shifted.difference.hi


def test_paired_drops_incomplete_pairs():
    a, b = [1.0, None, 3.0, 9.0, 4.0], [0.5, 2.0, None, 9.5, 2.0]
    assert stats.paired(a, b) == stats.paired([1.0, 9.0, 4.0], [0.5, 9.5, 2.0])
    assert stats.paired(a, b).difference.n == 3


def test_paired_uses_the_bootstrap_for_many_clusters():
    a, b = rng().exponential(size=(2, 60))
    assert stats.paired(a, b).difference == stats.mean_interval(a - b, method="bca")


def test_paired_p_is_uniform_under_no_difference():
    a, b = rng().normal(size=(2, 2000, 6))
    p = [stats.paired(*pair).p for pair in zip(a, b, strict=True)]
    assert reference.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [2.0]), ([None], [2.0])])
def test_paired_of_too_few(a, b):
    got = stats.paired(a, b)
    assert got.difference.n == np.count_nonzero(np.array(a, dtype=float) == 1)
    assert np.isnan([got.p, got.detectable]).all()
    assert_nan_ends(got.difference)


def test_paired_does_not_hide_infinite_numbers():
    got = stats.paired([np.inf, 1.0, 2.0], [np.inf, 0.0, 0.0])
    assert got.difference.n == 3
    assert np.isnan([got.difference.mean, got.p, got.detectable]).all()


def test_paired_rejects():
    with pytest.raises(
        ValueError, match=r"expected two arrays of one shape, got \(2,\) and \(3,\)"
    ):
        stats.paired([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"expected the second of shape \(n,\), got \(2, 1\)"):
        stats.paired([1, 2], [[1], [2]])
    with pytest.raises(ValueError, match=r"expected confidence in \(0, 1\), got 0"):
        stats.paired([1, 2], [1, 3], confidence=0)


# holm


def holm_by_closed_testing(p):
    """The largest Bonferroni p of all the intersection hypotheses that a hypothesis belongs to."""
    subsets = [[k for k in range(len(p)) if mask >> k & 1] for mask in range(1, 2 ** len(p))]
    bonferroni = [min(1.0, len(subset) * min(p[k] for k in subset)) for subset in subsets]
    return [
        max(value for value, subset in zip(bonferroni, subsets, strict=True) if k in subset)
        for k in range(len(p))
    ]


@SMALL
@given(PROBABILITIES)
def test_holm_is_the_closed_bonferroni_test(p):
    np.testing.assert_allclose(stats.holm(p), holm_by_closed_testing(p), rtol=1e-12)


def test_holm_by_hand():
    # 4 x 0.01; 3 x 0.02; 2 x 0.03 = 0.06; 0.05 is raised to the 0.06 before it.
    np.testing.assert_allclose(stats.holm([0.05, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])


def test_holm_does_not_count_missing_tests():
    np.testing.assert_allclose(stats.holm([0.02, np.nan, 0.04]), [0.04, np.nan, 0.04])
    np.testing.assert_array_equal(stats.holm([None]), [np.nan])


def test_holm_rejects():
    with pytest.raises(ValueError, match=r"expected p-values in \[0, 1\], got \[0.5, 1.5\]"):
        stats.holm([0.5, 1.5])


# minimum_detectable_difference


@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.9])
def test_detectable_difference_is_detected_that_often(n, power):
    known = rng().normal(size=n)
    known = (known - known.mean()) / known.std(ddof=1)  # a sample deviation of exactly 1
    shift = stats.minimum_detectable_difference(known, power)
    noise = rng().normal(size=(3000, n))
    found = reference.ttest_1samp(noise, -shift, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(power, abs=0.03)  # standard error below 0.0092


@pytest.mark.parametrize("n", [2, 5, 50, 1000])
@pytest.mark.parametrize(("power", "alpha"), [(0.8, 0.05), (0.5, 0.05), (0.9, 0.01)])
def test_detectable_difference_has_its_power_under_the_noncentral_t(n, power, alpha):
    x = np.linspace(-1, 1, n)
    delta = stats.minimum_detectable_difference(x, power, alpha) / reference.sem(x)
    critical = reference.t.ppf(1 - alpha / 2, n - 1)
    assert reference.nct.sf(critical, n - 1, delta) == pytest.approx(power, abs=1e-4)


def test_detectable_difference_for_many_clusters_is_the_normal_one():
    x = rng().normal(size=100_000)
    delta = reference.norm.ppf(0.975) + reference.norm.ppf(0.8)  # 2.80
    expected = delta * reference.sem(x)
    assert stats.minimum_detectable_difference(x) == pytest.approx(expected, rel=1e-4)


def test_detectable_difference_edges():
    assert stats.minimum_detectable_difference([0.3, 0.3]) == 0
    assert np.isnan(stats.minimum_detectable_difference([0.3, None]))
    assert np.isnan(stats.minimum_detectable_difference([]))
    with pytest.raises(ValueError, match=r"expected power in \(0.05, 1\), got 80"):
        stats.minimum_detectable_difference([1, 2], power=80)
    with pytest.raises(ValueError, match=r"expected alpha in \(0, 1\), got 5"):
        stats.minimum_detectable_difference([1, 2], alpha=5)


# ratio_interval


def test_ratio_interval_covers():
    random = rng()
    b = random.gamma(4.0, 1.0, (2000, 40))  # mean 4
    a = 0.25 * b + random.gamma(2.0, 0.5, (2000, 40))  # mean 2
    intervals = [stats.ratio_interval(*pair) for pair in zip(a, b, strict=True)]
    assert coverage(intervals, 0.5) == pytest.approx(0.945, abs=0.015)  # standard error 0.005


def test_ratio_interval_by_hand():
    # Ratio 6 / 6; residuals -1, -1, 2 over 2, so se = sqrt(3) / 2 / sqrt(3) = 0.5.
    got = stats.ratio_interval([1, 1, 4], [2, 2, 2])
    half = reference.t.ppf(0.975, 2) * 0.5
    assert got == pytest.approx((1, 1 - half, 1 + half, 3))


@SMALL
@given(SAMPLE, st.floats(0.1, 10))
def test_ratio_to_a_constant_is_the_mean_over_it(x, constant):
    expected = stats.mean_interval(np.array(x) / constant)
    got = stats.ratio_interval(x, [constant] * len(x))
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_ratio_edges():
    proportional = stats.ratio_interval([1, 2, 3], [2, 4, 6])
    assert proportional == pytest.approx((0.5, 0.5, 0.5, 3))
    one = stats.ratio_interval([1, None], [2, 3])
    assert (one.mean, one.n) == (0.5, 1)
    assert_nan_ends(one)
    for undefined in (stats.ratio_interval([1, 2], [0, 0]), stats.ratio_interval([], [])):
        assert np.isnan(undefined.mean)
        assert_nan_ends(undefined)
    infinite = stats.ratio_interval([np.inf, 1], [1, 1])
    assert infinite.mean == np.inf
    assert_nan_ends(infinite)


# log_ratio_interval


def test_log_ratio_covers_a_speedup_that_shared_noise_hides():
    random = rng()
    load = random.normal(0, 1, (2000, 5))  # slows both of a pair
    a = 3.0 * np.exp(load + random.normal(0, 0.1, load.shape))
    b = np.exp(load + random.normal(0, 0.1, load.shape))
    intervals = [stats.log_ratio_interval(*pair) for pair in zip(a, b, strict=True)]
    assert coverage(intervals, 3.0) == pytest.approx(0.95, abs=0.015)  # standard error 0.005
    assert np.median([interval.hi / interval.lo for interval in intervals]) < 1.5


@SMALL
@given(SAMPLE, SAMPLE)
def test_log_ratio_inverts_when_the_arms_swap(a, b):
    n = min(len(a), len(b))
    a, b = np.exp(a[:n]), np.exp(b[:n])
    mean, lo, hi, _ = stats.log_ratio_interval(b, a)
    assert stats.log_ratio_interval(a, b) == pytest.approx((1 / mean, 1 / hi, 1 / lo, n), rel=1e-9)
    assert 1 / mean == pytest.approx(reference.gmean(a / b), rel=1e-9)


def test_log_ratio_edges():
    assert stats.log_ratio_interval([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 2, 2, 3))
    assert_nan_ends(stats.log_ratio_interval([2.0], [1.0]))
    assert stats.log_ratio_interval([], []).n == 0
    with pytest.raises(ValueError, match="expected positive numbers, got 0"):
        stats.log_ratio_interval([1, 2], [1, 0])
    with pytest.raises(ValueError, match="expected positive numbers, got -2"):
        stats.log_ratio_interval([1, -2], [1, 1])


# median_interval


@pytest.mark.parametrize("n", [6, 15, 40])
def test_median_interval_covers_as_the_binomial_says(n):
    data = rng().exponential(size=(3000, n))
    intervals = [stats.median_interval(x) for x in data]
    k = np.searchsorted(np.sort(data[0]), intervals[0].lo) + 1
    exact = 1 - 2 * reference.binom.cdf(k - 1, n, 0.5)
    assert exact >= 0.95
    assert 1 - 2 * reference.binom.cdf(k, n, 0.5) < 0.95  # one rank further in is too short
    assert coverage(intervals, np.log(2)) == pytest.approx(exact, abs=0.014)


@SMALL
@given(SAMPLE, st.sampled_from([0.5, 0.9, 0.95]))
def test_median_interval_is_symmetric_in_rank(x, confidence):
    mean, lo, hi, n = stats.median_interval(x, confidence)
    assert (mean, n) == (np.median(x), len(x))
    assert lo <= mean <= hi
    mirrored = stats.median_interval([-number for number in x], confidence)
    assert mirrored == (-mean, -hi, -lo, n)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_median_of_few_lies_between_the_extremes(n):
    x = rng().normal(size=n)
    assert stats.median_interval(x) == (np.median(x), x.min(), x.max(), n)


def test_median_edges():
    one = stats.median_interval([3.0, None])
    assert (one.mean, one.n) == (3.0, 1)
    assert_nan_ends(one)
    assert np.isnan(stats.median_interval([]).mean)
    assert stats.median_interval([1.0, 2.0, np.inf]) == (2.0, 1.0, np.inf, 3)


# slope_interval


@SMALL
@given(PAIRED.filter(lambda pairs: np.ptp(pairs[:, 0]) > 0.1))
def test_slope_is_numpys(pairs):
    x, y = pairs.T
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    half = reference.t.ppf(0.975, len(x) - 2) * np.sqrt(covariance[0, 0])
    expected = (slope, slope - half, slope + half, len(x))
    assert stats.slope_interval(x, y) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_slope_of_log_rmse_covers():
    n = np.log([1, 2, 4, 8, 16])
    log_rmse = 0.3 - 0.5 * n + rng().normal(0, 0.1, (3000, 5))
    intervals = [stats.slope_interval(n, y) for y in log_rmse]
    assert coverage(intervals, -0.5) == pytest.approx(0.95, abs=0.012)  # standard error 0.004


def test_slope_edges():
    line = stats.slope_interval([1, 2, 3, None], [2, 4, 6, 100])
    assert line == pytest.approx((2, 2, 2, 3))
    two = stats.slope_interval([1, 2], [5, 8])
    assert two.mean == pytest.approx(3)
    assert_nan_ends(two)
    for undefined in (
        stats.slope_interval([1, 1, 1], [1, 2, 3]),
        stats.slope_interval([], []),
        stats.slope_interval([1, 2, 3], [1, 2, -np.inf]),
    ):
        assert np.isnan(undefined.mean)
        assert_nan_ends(undefined)


# import


def test_import_does_not_load_scipy_stats():
    check = "import sys, bench.metrics, bench.stats; sys.exit('scipy.stats' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
