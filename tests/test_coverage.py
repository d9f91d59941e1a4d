"""Every interval at 95 % holds the truth in 93 to 97 % of 2,000 simulated data sets.

The standard error of a share of 0.95 over 2,000 is 0.005.
"""

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as reference

from bench import stats
from bench.stats import means

RUNS = 2000
SKEWED = {  # name to (draws of a shape, their mean)
    "normal": (lambda random, shape: random.normal(0, 1, shape), 0.0),
    "gamma": (lambda random, shape: random.gamma(2, 1, shape), 2.0),
    "exponential": (lambda random, shape: random.exponential(1, shape), 1.0),
}
FROZEN = {
    "normal": reference.norm(),
    "gamma": reference.gamma(2),
    "exponential": reference.expon(),
}


def rng():
    return np.random.default_rng(1)


def coverage(interval, data, truth):
    """The share of data sets whose interval holds the truth: of all, or each its own."""
    found = np.array([interval(*one)[1:3] for one in data])
    return np.mean((found[:, 0] <= truth) & (truth <= found[:, 1]))


def promised(share):
    return 0.93 <= share <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_interval_of_few_repeats(n):
    data = rng().normal(3.0, 2.0, (RUNS, 1, n))
    assert promised(coverage(stats.mean_interval, data, 3.0))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_paired_difference_of_few_repeats(n):
    random = rng()
    shared = random.normal(0, 10, (RUNS, n))
    a, b = 1.0 + shared + random.normal(size=(RUNS, n)), shared + random.normal(size=(RUNS, n))
    covered = coverage(lambda x, y: stats.paired(x, y).difference, zip(a, b, strict=True), 1.0)
    assert promised(covered)


def test_mean_over_clusters():
    random, prompts = rng(), np.repeat(np.arange(12), 4)
    data = random.normal(size=(RUNS, 12))[:, prompts] + random.normal(size=(RUNS, 48))
    by_prompt = ((stats.cluster_means(x, prompts),) for x in data)
    assert promised(coverage(stats.mean_interval, by_prompt, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100])
@pytest.mark.parametrize("name", SKEWED)
def test_bca_interval_of_many_prompts(name, n):
    draw, mean = SKEWED[name]
    data = draw(rng(), (RUNS, 1, n))
    assert promised(coverage(stats.mean_interval, data, mean))


def test_bca_interval_of_many_prompts_in_short(monkeypatch):
    monkeypatch.setattr(means, "RESAMPLES", 1999)
    data = rng().gamma(2, 1, (600, 1, 50))
    # The standard error is 0.009.  Not expanded, these data give 0.930; by percentiles, 0.927.
    assert 0.935 <= coverage(stats.mean_interval, data, 2.0) <= 0.975


@pytest.mark.parametrize("n", [30, 50, 200])
@pytest.mark.parametrize("name", FROZEN)
def test_interquartile_mean(name, n):
    data = SKEWED[name][0](rng(), (RUNS, 1, n))
    truth = FROZEN[name]
    ends = truth.ppf([0.25, 0.75])
    middle = 2 * integrate.quad(lambda x: x * truth.pdf(x), *ends)[0]
    assert promised(coverage(stats.iqm_interval, data, middle))


@pytest.mark.parametrize("n", [20, 50, 200])
def test_wilson_interval_of_a_share(n):
    random = rng()
    share = random.uniform(0.05, 0.95, RUNS)  # at one share alone it covers 93 to 98 %, by n
    data = (random.random((RUNS, n)) < share[:, None]).astype(float)
    assert promised(coverage(stats.share_interval, data[:, None], share))


@pytest.mark.parametrize("n", [20, 50, 200])
def test_probability_of_improvement_by_prompt(n):
    random = rng()
    p = random.uniform(0.05, 0.95, RUNS)
    b = random.normal(size=(RUNS, n))
    a = b + reference.norm.ppf(p)[:, None] + random.normal(size=(RUNS, n))
    assert promised(coverage(stats.improvement_interval, zip(a, b, strict=True), p))


@pytest.mark.parametrize(("n", "m"), [(20, 20), (30, 20), (50, 50)])
@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_probability_of_improvement_of_unpaired_runs(n, m, p):
    random = rng()
    a = reference.norm.ppf(p) * np.sqrt(5) + random.normal(0, 2, (RUNS, n))
    b = random.normal(0, 1, (RUNS, m))
    assert promised(coverage(stats.unpaired_improvement_interval, zip(a, b, strict=True), p))


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_probability_of_improvement_of_few_runs_is_covered_at_least(p):
    random = rng()
    a = reference.norm.ppf(p) * np.sqrt(2) + random.normal(size=(RUNS, 5))
    b = random.normal(size=(RUNS, 5))
    assert coverage(stats.unpaired_improvement_interval, zip(a, b, strict=True), p) > 0.94


@pytest.mark.parametrize("n", [10, 40])
def test_ratio_of_means(n):
    random = rng()
    b = random.gamma(8.0, 1.0, (RUNS, n))  # mean 8
    a = 0.25 * b + random.gamma(4.0, 0.5, (RUNS, n))  # mean 4
    assert promised(coverage(stats.ratio_interval, zip(a, b, strict=True), 0.5))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_ratio_of_times_of_few_calls(n):
    random = rng()
    load = random.normal(0, 1, (RUNS, n))  # slows both of a pair
    a = 3.0 * np.exp(load + random.normal(0, 0.1, load.shape))
    b = np.exp(load + random.normal(0, 0.1, load.shape))
    assert promised(coverage(stats.log_ratio_interval, zip(a, b, strict=True), 3.0))


@pytest.mark.parametrize(("processes", "calls"), [(3, 3), (5, 10), (10, 3)])
def test_ratio_of_times_over_few_processes(processes, calls):
    random, shape = rng(), (RUNS, processes, calls)
    own = random.normal(0, 0.05, (RUNS, processes, 1))  # of a process, for all of its calls
    a = 3.0 * np.exp(own + random.normal(0, 0.02, shape))
    b = np.exp(random.normal(0, 0.02, shape))
    assert promised(coverage(stats.process_ratio_interval, zip(a, b, strict=True), 3.0))
    flat = ((x.ravel(), y.ravel()) for x, y in zip(a, b, strict=True))
    assert coverage(stats.log_ratio_interval, flat, 3.0) < 0.9  # calls are not independent


@pytest.mark.parametrize("n", [3, 5, 10])
def test_spread_of_equal_methods(n):
    data = rng().normal(0, 0.02, (RUNS, 1, n))
    assert promised(coverage(stats.rms_interval, data, 0.02))


@pytest.mark.parametrize("n", [6, 10, 25, 60])
def test_median_is_covered_at_least(n):
    data = rng().exponential(size=(RUNS, 1, n))
    k = next(k for k in range(n, 0, -1) if 2 * reference.binom.cdf(k - 1, n, 0.5) <= 0.05)
    exact = 1 - 2 * reference.binom.cdf(k - 1, n, 0.5)  # at least 0.95, for any distribution
    covered = coverage(stats.median_interval, data, np.log(2))
    assert covered == pytest.approx(exact, abs=0.012)
    assert covered > 0.94


@pytest.mark.parametrize("n", [4, 8])
def test_slope(n):
    x = np.log(2.0 ** np.arange(n))
    y = 0.3 - 0.5 * x + rng().normal(0, 0.1, (RUNS, n))
    assert promised(coverage(lambda one: stats.slope_interval(x, one), y[:, None], -0.5))
