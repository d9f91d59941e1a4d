"""Metrics of value estimators: identities, brute force, and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from bench.metrics import METRICS, Metric, value
from bench.metrics.value import Samples
from bench.stats import mean_interval

SMALL = settings(max_examples=60, deadline=None)
RANKINGS = ["spearman", "pairwise", "regret"]
REFERENCES = ["truth", "realised", "cosine", "error"]
PERFECT = {"spearman": 1, "pairwise": 1, "gradient_cosine": 1}  # every other metric: 0
NEEDS = {
    "variance": set(),
    "gradient_cosine": {"cosine"},
    "gradient_error": {"error"},
    "bias_realised": {"realised"},
    "mse_realised": {"realised"},
}  # every other metric: the truth


def normal_samples(shape=(3, 5, 2, 4), seed=0):
    random = np.random.default_rng(seed)
    draws = {name: random.normal(size=shape[1:]) for name in REFERENCES}
    return Samples(random.normal(size=shape), **draws)


@st.composite
def tied_samples(draw, smallest=1):
    """Values and truths on a few integers, so that ties and constant groups are common."""
    counts = st.integers(1, 3)
    shape = (draw(counts), draw(counts), draw(counts), draw(st.integers(smallest, 4)))
    steps = st.integers(-2, 2).map(float)
    return Samples(
        draw(arrays(np.float64, shape, elements=steps)),
        truth=draw(arrays(np.float64, shape[1:], elements=steps)),
    )


def by_group(samples, function):
    """Apply a function of two groups (M,) at every replicate, prompt and group, (R, P, G)."""
    replicates, prompts, groups, _ = samples.value.shape
    return np.array(
        [
            [
                [function(samples.value[r, p, g], samples.truth[p, g]) for g in range(groups)]
                for p in range(prompts)
            ]
            for r in range(replicates)
        ]
    )


# Samples


def test_samples_become_float64():
    samples = Samples([[[[1, 2]]]], truth=np.ones((1, 1, 2), dtype=np.float32))
    assert samples.value.dtype == samples.truth.dtype == np.float64
    assert samples.realised is None


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1, 1), (0, 3, 4, 1)])
def test_samples_reject_values(shape):
    with pytest.raises(
        ValueError, match=r"expected value of shape \(R, P, G, M\), got \("
    ) as error:
        Samples(np.zeros(shape))
    assert str(error.value).endswith(f"got {shape}")


@pytest.mark.parametrize("name", REFERENCES)
def test_samples_reject_references_that_would_broadcast(name):
    with pytest.raises(
        ValueError, match=rf"expected {name} of shape \(3, 4, 2\), got \(3, 4, 1\)"
    ):
        Samples(np.zeros((5, 3, 4, 2)), **{name: np.zeros((3, 4, 1))})


# Every metric


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_one_number_per_prompt_and_prompts_do_not_mix(name):
    samples = normal_samples()
    together = METRICS[name].function(samples)
    assert together.shape == (5,)
    alone = [
        METRICS[name].function(
            Samples(
                samples.value[:, [p]],
                **{reference: getattr(samples, reference)[[p]] for reference in REFERENCES},
            )
        )
        for p in range(5)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_missing_exactly_when_its_reference_is(name):
    samples = normal_samples()
    for reference in REFERENCES:
        without = METRICS[name].function(replace(samples, **{reference: None}))
        falls_back = name == "spearman"
        needed = reference in NEEDS.get(name, {"truth"}) and not falls_back
        assert (without is None) == needed
    assert value.spearman(Samples(samples.value)) is None


@pytest.mark.parametrize("name", METRICS)
def test_truth_itself_is_perfect(name):
    truth = np.random.default_rng(0).normal(size=(5, 2, 4))
    ones, zeros = np.ones_like(truth), np.zeros_like(truth)
    samples = Samples(truth[None], truth=truth, realised=truth, cosine=ones, error=zeros)
    np.testing.assert_allclose(METRICS[name].function(samples), PERFECT.get(name, 0), atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_worse_is_on_the_side_that_the_table_says(name):
    """Reversing and blowing up the error moves every metric away from its better end."""
    truth = np.random.default_rng(0).normal(size=(5, 2, 4))
    noise = np.array([-1, 1])[:, None, None, None]  # so that the variance is not 0
    cosine, error = np.ones_like(truth), np.zeros_like(truth)
    good = Samples(truth[None] + 0.01 * noise, truth, truth, cosine, error)
    bad = Samples(3 - truth[None] + noise, truth, truth, -cosine, error + 1)
    before, after = (METRICS[name].function(samples) for samples in (good, bad))
    match METRICS[name].better:
        case "high":
            assert (after < before).all()
        case "low":
            assert (after > before).all()
        case "zero":
            assert (abs(after) > abs(before)).all()


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].better != "high"])
def test_zero_rather_than_low_is_the_aim_of_what_can_be_negative(name):
    samples = normal_samples((3, 40, 2, 4))
    noise = samples.value / 10
    truth = samples.truth
    unbiased = replace(
        samples, value=truth + noise, realised=truth, cosine=abs(truth), error=abs(truth)
    )
    negative = METRICS[name].function(unbiased) < 0
    assert negative.any() == (METRICS[name].better == "zero")


SCALE = {"reward": 3.0, "reward^2": 9.0, "1": 1.0}


@pytest.mark.parametrize("name", METRICS)
def test_metric_scales_as_its_unit_says(name):
    samples = normal_samples()
    scaled = replace(
        samples,
        value=3 * samples.value,
        truth=3 * samples.truth,
        realised=3 * samples.realised,
    )
    function = METRICS[name].function
    factor = SCALE[METRICS[name].unit]
    np.testing.assert_allclose(function(scaled), factor * function(samples), rtol=1e-12)


OF_VALUE = [name for name in METRICS if not name.startswith("gradient")]


@pytest.mark.parametrize("name", OF_VALUE)
@pytest.mark.parametrize("replicates", [1, 3])
def test_missing_value_makes_its_prompt_missing_and_no_other(name, replicates):
    samples = normal_samples((replicates, 5, 2, 4))
    holed = samples.value.copy()
    holed[0, 2, 1, 3] = np.nan
    got = METRICS[name].function(replace(samples, value=holed))
    expected = METRICS[name].function(samples)
    expected[2] = np.nan
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["bias", "mse", "squared_bias", "centred_mse", *RANKINGS])
def test_missing_truth_makes_its_prompt_missing_and_no_other(name):
    samples = normal_samples()
    holed = samples.truth.copy()
    holed[2, 1, 3] = np.nan
    got = METRICS[name].function(replace(samples, truth=holed))
    assert np.isnan(got).tolist() == [False, False, True, False, False]


@SMALL
@given(tied_samples(smallest=2), st.integers(-8, 8))
def test_offset_moves_the_bias_and_changes_no_choice(samples, offset):
    moved = replace(samples, value=samples.value + offset)
    np.testing.assert_allclose(value.bias(moved), value.bias(samples) + offset, atol=1e-12)
    np.testing.assert_allclose(value.variance(moved), value.variance(samples), atol=1e-12)
    np.testing.assert_allclose(value.centred_mse(moved), value.centred_mse(samples), atol=1e-12)
    for name in RANKINGS:
        function = METRICS[name].function
        np.testing.assert_array_equal(function(moved), function(samples))


def test_registry_is_complete_and_readable():
    assert all(isinstance(metric, Metric) for metric in METRICS.values())
    assert [metric.function.__name__ for metric in METRICS.values()] == list(METRICS)
    assert all(0 < len(metric.about) < 60 for metric in METRICS.values())


# Bias, variance, MSE


def test_moments_by_hand():
    # One prompt, one group of two members, two replicates: errors (1, 3) and (-2, 0).
    samples = Samples([[[[11, 3]]], [[[13, 5]]]], truth=[[[10, 5]]])
    assert value.bias(samples) == pytest.approx([(2 - 1) / 2])
    assert value.mse(samples) == pytest.approx([(1 + 9 + 4 + 0) / 4])
    assert value.variance(samples) == pytest.approx([2])
    assert value.squared_bias(samples) == pytest.approx([((4 - 1) + (1 - 1)) / 2])
    # Within a replicate the errors are 1, -2 and 3, 0: both have variance 4.5.
    assert value.centred_mse(samples) == pytest.approx([4.5])


def test_realised_metrics_are_the_others_with_the_reward_for_the_truth():
    samples = normal_samples()
    swapped = replace(samples, truth=samples.realised)
    np.testing.assert_array_equal(value.bias_realised(samples), value.bias(swapped))
    np.testing.assert_array_equal(value.mse_realised(samples), value.mse(swapped))


def test_realised_reward_keeps_differences_of_mse_in_expectation():
    random = np.random.default_rng(0)
    truth = random.normal(size=(400, 5, 10))
    realised = truth + random.normal(size=truth.shape)
    near, far = (Samples(truth[None] + shift, truth, realised) for shift in (0.2, 0.5))
    difference = mean_interval(value.mse_realised(far) - value.mse_realised(near), 0.999)
    assert difference.lo < 0.5**2 - 0.2**2 < difference.hi
    assert difference.hi - difference.lo < 0.1
    larger = mean_interval(value.mse_realised(near) - value.mse(near), 0.999)
    assert larger.lo < 1 < larger.hi


@SMALL
@given(tied_samples())
def test_mse_is_squared_bias_plus_variance(samples):
    split = value.squared_bias(samples) + value.variance(samples)
    np.testing.assert_allclose(value.mse(samples), split, rtol=1e-12, atol=1e-12)


@SMALL
@given(tied_samples(smallest=2))
def test_mse_is_offset_plus_centred_mse(samples):
    """Per replicate, mean square = mean^2 + variance (GM - 1) / GM."""
    count = samples.truth[0].size
    offset = (samples.value - samples.truth).mean(axis=(2, 3))
    split = (offset**2).mean(axis=0) + value.centred_mse(samples) * (count - 1) / count
    np.testing.assert_allclose(value.mse(samples), split, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_squared_bias_is_unbiased(offset):
    random = np.random.default_rng(0)
    truth = random.normal(size=(4000, 2, 3))
    # Biases of opposite sign: they cancel in `bias`, not here.
    signs = np.array([1, -1])[:, None]
    samples = Samples(truth + offset * signs + random.normal(size=(3, *truth.shape)), truth)
    got = mean_interval(value.squared_bias(samples), 0.999, "t")
    assert got.lo < offset**2 < got.hi
    assert got.hi - got.lo < 0.05  # the naive (Vbar - V)^2 would be 1 / 3 too large
    assert (value.squared_bias(samples) < 0).any()
    around_zero = mean_interval(value.bias(samples), 0.999, "t")
    assert around_zero.lo < 0 < around_zero.hi


def test_variance_is_unbiased():
    noise = np.random.default_rng(0).normal(0, 2, (3, 4000, 2, 3))
    got = mean_interval(value.variance(Samples(noise)), 0.999, "t")
    assert got.lo < 4 < got.hi
    assert got.hi - got.lo < 0.4


def test_one_replicate_is_deterministic():
    samples = normal_samples((1, 5, 2, 4))
    assert value.variance(samples).tolist() == [0] * 5
    np.testing.assert_array_equal(value.squared_bias(samples), value.mse(samples))


def test_centred_mse_needs_two_latents():
    assert value.centred_mse(normal_samples((3, 5, 1, 1))) is None
    assert value.centred_mse(normal_samples((3, 5, 2, 1))).shape == (5,)


# Ranking


@SMALL
@given(tied_samples(smallest=2))
def test_spearman_is_scipys_where_it_is_defined(samples):
    def one(x, y):
        return np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else spearmanr(x, y).statistic

    expected = [
        np.mean(defined) if (defined := group[~np.isnan(group)]).size else np.nan
        for group in by_group(samples, one).swapaxes(0, 1)
    ]
    np.testing.assert_allclose(value.spearman(samples), expected, rtol=1e-9, atol=1e-12)


@SMALL
@given(tied_samples(smallest=2))
def test_spearman_falls_back_on_the_realised_reward(samples):
    realised = Samples(samples.value, realised=samples.truth)
    np.testing.assert_array_equal(value.spearman(realised), value.spearman(samples))
    both = replace(samples, realised=-samples.truth)
    np.testing.assert_array_equal(value.spearman(both), value.spearman(samples))


@SMALL
@given(tied_samples(smallest=2))
def test_pairwise_is_the_count_over_pairs(samples):
    def one(x, y):
        """The points scored and the pairs played."""
        members = range(len(x))
        pairs = [(i, j) for i in members for j in members if y[i] > y[j]]
        return sum(1.0 if x[i] > x[j] else 0.5 * (x[i] == x[j]) for i, j in pairs), len(pairs)

    scored, played = by_group(samples, one).sum(axis=(0, 2)).T
    expected = [s / n if n else np.nan for s, n in zip(scored, played, strict=True)]
    np.testing.assert_allclose(value.pairwise(samples), expected, rtol=1e-12)


@SMALL
@given(tied_samples(smallest=2))
def test_regret_is_the_loss_of_the_one_kept(samples):
    def one(x, y):
        return max(y) - np.mean([y[m] for m in range(len(x)) if x[m] == max(x)])

    expected = by_group(samples, one).mean(axis=(0, 2))
    np.testing.assert_allclose(value.regret(samples), expected, rtol=1e-12, atol=1e-12)


def test_ranking_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: rho = 1 - 6 x 4 / 60; two of six pairs are inverted.
    samples = Samples([[[[1, 2, 3, 4]]]], truth=[[[20, 10, 40, 30]]])
    assert value.spearman(samples) == pytest.approx([0.6])
    assert value.pairwise(samples) == pytest.approx([4 / 6])
    assert value.regret(samples) == pytest.approx([10])


def test_constant_estimator_ranks_nothing():
    """The stand-in `constant`: no correlation, a coin's pairs, the regret of a random pick."""
    truth = np.random.default_rng(0).normal(size=(5, 2, 4))
    samples = Samples(np.zeros((1, 5, 2, 4)), truth)
    assert np.isnan(value.spearman(samples)).all()
    np.testing.assert_allclose(value.pairwise(samples), 0.5)
    random_pick = (truth.max(axis=-1) - truth.mean(axis=-1)).mean(axis=-1)
    np.testing.assert_allclose(value.regret(samples), random_pick)


def test_groups_are_ranked_apart():
    """Offsets between groups reward no estimator that knows only which group it is in."""
    truth = np.random.default_rng(0).normal(size=(5, 3, 4))
    groups = np.arange(3.0)[:, None]
    apart = Samples(truth[None], truth + 100 * groups)
    for name in RANKINGS:
        expected = PERFECT.get(name, 0)
        np.testing.assert_allclose(METRICS[name].function(apart), expected, atol=1e-12)


@pytest.mark.parametrize("name", RANKINGS)
def test_groups_of_one_have_no_order(name):
    assert METRICS[name].function(normal_samples((3, 5, 2, 1))) is None


# Over prompts


def test_skill_of_the_stand_ins():
    random = np.random.default_rng(0)
    mse_constant = random.gamma(4, 1, 30)
    assert value.skill(np.zeros(30), mse_constant) == pytest.approx((1, 1, 1, 30))
    assert value.skill(mse_constant, mse_constant) == pytest.approx((0, 0, 0, 30), abs=1e-12)


def test_skill_is_one_minus_the_ratio_of_means():
    random = np.random.default_rng(0)
    mse, mse_constant = random.gamma(4, 0.25, 30), random.gamma(4, 1, 30)
    got = value.skill(mse, mse_constant)
    assert got.mean == pytest.approx(1 - mse.mean() / mse_constant.mean())
    assert got.lo < got.mean < got.hi
    assert value.skill(np.append(mse, np.nan), np.append(mse_constant, 1.0)) == got


def test_rmse_maps_the_interval_of_the_mean():
    mse = np.random.default_rng(0).gamma(4, 1, 30)
    expected = mean_interval(mse)
    assert value.rmse(mse) == pytest.approx((*np.sqrt(expected[:3]), 30))


def test_rmse_edges():
    wide = value.rmse(np.array([0.0, 0.0, 9.0]))
    assert wide.lo == 0
    assert wide.mean == pytest.approx(np.sqrt(3))
    assert np.isnan(value.rmse(np.array([4.0]))[1:3]).all()
    with pytest.raises(ValueError, match="expected mean squared errors of at least 0, got -1"):
        value.rmse(np.array([1.0, -1.0]))
