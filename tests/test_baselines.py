"""Baselines against the closed forms of the Gaussian world, and the contract that all keep."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines import ESTIMATORS
from baselines.monte_carlo import aggregate, without_prompt
from baselines.monte_carlo import build as monte_carlo
from baselines.terminal import Terminal
from bench.contract import check as checked
from bench.contract import estimator as contract
from bench.images import WorldImages
from bench.stats import mean_interval
from bench.stitching import Job, Workshop
from bench.worlds.gaussian import GaussianWorld
from bench.worlds.gaussian.truth import embedding_map
from stitchvm.backbone import NULL
from stitchvm.path import noise
from stitchvm.sample import NU
from stitchvm.streams import Streams
from stitchvm.value import Target, value_and_gradient

REWARDS = GaussianWorld.rewards
POSTERIORS = ("data", "prompt")
SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the paper's section 5
TINY = {"latent": (2, 2, 1), "components": 3, "rank": 2, "prompts": 4}
EVERY = settings(max_examples=50, deadline=None)


@cache
def small():
    return GaussianWorld(**TINY)


@cache
def default():
    return GaussianWorld()


def time(t):
    return torch.tensor(t, dtype=torch.float64)


def noisy(world, t, rows):
    """Forward-noised latents of the world's own prompts: z_t, t and c."""
    c = [world.prompts[row % len(world.prompts)] for row in range(rows)]
    rng = Streams.of(0, "noisy", rows=rows)
    z_0 = world.draw(c, rng.child("z_0"))
    return noise(z_0, time(t), rng.child("eps").normal(z_0)), time(t), c


class OneStream(Streams):
    """All rows from one generator: where speed counts and rows need not be reproducible."""

    def __init__(self, rows, seed=0):
        super().__init__(range(rows))
        self.generator = torch.Generator().manual_seed(seed)

    def split(self, indices):
        parts = OneStream(len(self) * len(list(indices)))
        parts.generator = self.generator
        return parts

    def normal(self, like):
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)

    def uniform(self, dtype=torch.float64):
        return torch.rand(len(self), dtype=dtype, generator=self.generator)


# Tweedie


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_tweedie_is_exact_for_a_linear_reward(sigma, posterior):
    reward, (z_t, t, c) = default().reward("linear"), noisy(default(), sigma, rows=64)
    tweedie = ESTIMATORS["tweedie"](default(), reward, posterior=posterior)(z_t, t, c)
    truth = ESTIMATORS["truth"](default(), reward, posterior=posterior)(z_t, t, c)
    assert float((tweedie - truth).abs().max() / truth.abs().max()) < 1e-10


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_tweedie_misses_the_trace_of_a_quadratic_reward(sigma, posterior):
    """Tweedie - truth = -tr(A Cov(z_0 | z_t)), A in latent coordinates, row by row to 1e-8."""
    world, (z_t, t, c) = default(), noisy(default(), sigma, rows=16)
    reward = world.reward("quadratic")
    settings = {"posterior": posterior}
    tweedie, exact = (ESTIMATORS[n](world, reward, **settings) for n in ("tweedie", "truth"))
    e = embedding_map(world.backbone, reward)
    a = torch.einsum("qd,bq,qf->bdf", e, reward.a[reward.book.index(c)], e)
    trace = torch.einsum("bde,bed->b", a, exact.posterior(z_t, t, c).covariance())
    gap = tweedie(z_t, t, c) - exact(z_t, t, c)
    torch.testing.assert_close(gap, -trace, rtol=1e-8, atol=0)


def test_tweedie_shows_the_prompt_only_for_the_prompt_posterior():
    world, reward = small(), small().reward("sigmoid")
    z_t, t, c = noisy(world, 0.6, rows=4)
    u = {
        p: world.backbone.velocity(z_t, t, c if p == "prompt" else [NULL] * 4) for p in POSTERIORS
    }
    for posterior in POSTERIORS:
        tweedie = ESTIMATORS["tweedie"](world, reward, posterior=posterior)
        expected = reward(world.backbone.decode(z_t - t * u[posterior]), c)
        torch.testing.assert_close(tweedie(z_t, t, c), expected)
        assert tweedie.target == Target("mean", posterior)


# Monte Carlo: statistics


@cache
def exact_rewards(name, count=32, rows=400, sigma=0.5):
    """Rewards (count, rows) of exact posterior draws in the default world, and their truth."""
    reward, (z_t, t, c) = default().reward(name), noisy(default(), sigma, rows)
    exact = monte_carlo(default(), reward, kernel="exact", particles=count, chunk=2000)
    truth = default().truth(reward, Target("mean", "prompt"))(z_t, t, c)
    return exact.rewards(z_t, t, c, OneStream(rows)), truth


@pytest.mark.parametrize("name", REWARDS)
def test_exact_draws_cover_the_truth_as_often_as_they_say(name):
    rewards, truth = exact_rewards(name)
    covered = []
    for one, value in zip(rewards.T.numpy(), truth.tolist(), strict=True):
        _, lo, hi, _ = mean_interval(one, method="t")
        covered.append(lo <= value <= hi)
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("name", REWARDS)
def test_error_of_exact_draws_falls_with_the_root_of_their_number(name):
    rewards, truth = exact_rewards(name)
    counts = 2 ** np.arange(6)
    errors = [float((rewards[:n].mean(0) - truth).square().mean().sqrt()) for n in counts]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.05


@cache
def squared_bias(kernel, steps, rows=256, sigma=0.6):
    """Mean over latents of (E[rollout reward | z_t] - truth)^2, freed of its sampling noise."""
    reward, (z_t, t, c) = small().reward("linear"), noisy(small(), sigma, rows)
    particles = {"ode": 1, "reversal": 128}.get(kernel, 32)  # most where the bias is least
    rollouts = monte_carlo(
        small(), reward, kernel=kernel, steps=steps, particles=particles, chunk=2**14
    )
    truth = small().truth(reward, Target("mean", "prompt"))(z_t, t, c)
    rewards = rollouts.rewards(z_t, t, c, OneStream(rows))
    squared = (rewards.mean(0) - truth).square()
    if particles > 1:
        squared = squared - rewards.var(0) / particles
    return float(squared.mean())


def test_reversal_converges_to_the_truth_as_steps_grow():
    """The bias of Euler-Maruyama is O(1 / k): its square falls by four when k doubles."""
    four, eight, sixteen, more = (squared_bias("reversal", k) for k in (4, 8, 16, 32))
    assert four > 2.5 * eight > 2.5**2 * sixteen
    assert abs(more) < four / 20


@pytest.mark.parametrize("kernel", ["ode", "flow_grpo", "sigma", "square"])
def test_other_kernels_converge_to_a_value_of_their_own(kernel):
    coarse, fine = squared_bias(kernel, 16), squared_bias(kernel, 32)
    assert fine > 0.9 * coarse
    assert fine > 20 * squared_bias("reversal", 32)


def test_every_kernel_but_reversal_declares_a_model_value():
    for kernel in ("ode", *NU):
        target = monte_carlo(small(), small().reward("linear"), kernel=kernel, particles=1).target
        assert (target.posterior == "model") == (kernel != "reversal")
        assert target.kernel == (None if kernel == "reversal" else f"{kernel}, 32 steps")


@cache
def many_exact_rewards(name, count=2**14, rows=16):
    """Rewards (count, rows) of exact posterior draws in the small world, with z_t, t, c."""
    reward, inputs = small().reward(name), noisy(small(), 0.6, rows)
    exact = monte_carlo(small(), reward, kernel="exact", particles=count, chunk=2**15)
    return exact.rewards(*inputs, OneStream(rows)), inputs


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("particles", [2, 8])
def test_soft_value_of_few_draws_is_biased_low_as_predicted(name, particles):
    """By lam Var[r | z_t] / (2 N) where lam times the spread is small, here 0.005.

    Its excess over the mean of the same draws has the same bias and hardly any noise.
    """
    rewards, inputs = many_exact_rewards(name)
    lam = 0.005 / float(rewards.std(0).mean())
    soft, mean = (
        small().truth(small().reward(name), target)(*inputs)
        for target in (Target("soft", "prompt", lam), Target("mean", "prompt"))
    )
    groups = rewards.unflatten(0, (-1, particles)).transpose(0, 1)
    excess = aggregate(groups, lam) - groups.mean(0)
    bias = excess.mean(0) - (soft - mean)
    error = float((excess.var(0) / len(excess)).sum().sqrt()) / len(bias)
    predicted = float((-lam * rewards.var(0) / (2 * particles)).mean())
    assert abs(predicted) > 10 * error
    remainder = 0.03 * abs(predicted)  # of the next order in lam
    assert float(bias.mean()) == pytest.approx(predicted, abs=4 * error + remainder)


@pytest.mark.parametrize("name", REWARDS)
def test_reversal_gradient_converges_to_that_of_the_truth(name):
    world, reward, rows = small(), small().reward(name), 16
    z_t, t, c = noisy(world, 0.4, rows)
    rollouts = monte_carlo(world, reward, steps=16, particles=256, chunk=2**12)
    ours = value_and_gradient(rollouts, z_t, t, c, OneStream(rows)).gradient
    exact = value_and_gradient(world.truth(reward, Target("mean", "prompt")), z_t, t, c).gradient
    assert float((ours - exact).norm() / exact.norm()) < 0.15


# Monte Carlo: randomness, chunks and numbers

KERNELS = ("exact", "reversal", "flow_grpo", "sigma", "square")


@pytest.mark.parametrize("kernel", KERNELS)
def test_few_rollouts_are_a_prefix_of_many(kernel):
    world, reward, (z_t, t, c) = small(), small().reward("sigmoid"), noisy(small(), 0.7, rows=3)
    few, many = (
        monte_carlo(world, reward, kernel=kernel, steps=3, particles=n).rewards(
            z_t, t, c, Streams.of(0, rows=3)
        )
        for n in (4, 64)
    )
    assert many.shape == (64, 3)
    torch.testing.assert_close(few, many[:4], rtol=1e-12, atol=1e-12)
    assert float(many.std(0).min()) > 0.01  # and rollouts differ


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("chunk", [1, 4, 7, 10_000])
def test_chunks_and_batches_change_nothing(kernel, chunk):
    world, reward, (z_t, t, c) = small(), small().reward("linear"), noisy(small(), 0.7, rows=3)
    settings, rng = {"kernel": kernel, "steps": 3, "particles": 5}, Streams.of(0, rows=3)
    expected = monte_carlo(world, reward, **settings).rewards(z_t, t, c, rng)
    chunked = monte_carlo(world, reward, **settings, chunk=chunk)
    torch.testing.assert_close(chunked.rewards(z_t, t, c, rng), expected, rtol=1e-12, atol=1e-12)
    alone = chunked.rewards(z_t[1:2], t, c[1:2], rng[1:2])
    torch.testing.assert_close(alone, expected[:, 1:2], rtol=1e-12, atol=1e-12)


def rollouts_by_hand(reward, inputs, kernel, steps, particles):
    """Euler-Maruyama of Eq. 11 on an even grid, rollout after rollout, rewards (N, B)."""
    rewards, backbone, (z_t, t, c) = [], small().backbone, inputs
    for n in range(particles):
        rng = Streams.of(0, rows=len(z_t)).split([n])
        z = z_t
        for k in range(steps):
            now, step = t * (1 - k / steps), t / steps
            u = backbone.velocity(z, now, c)
            nu = NU[kernel](now)
            score = -((1 - now) * u + z) / now
            z = z - step * (u - nu**2 / 2 * score) + nu * step.sqrt() * rng.normal(z)
        rewards.append(reward(backbone.decode(z), c))
    return torch.stack(rewards)


@pytest.mark.parametrize("lam", [None, 0.7])
@pytest.mark.parametrize("chunk", [2, 10_000])
@pytest.mark.parametrize("kernel", NU)
def test_value_and_gradient_equal_rollouts_by_hand(kernel, chunk, lam):
    """Recomputing chunks in the backward pass changes neither."""
    world, reward, (z_t, t, c) = small(), small().reward("sigmoid"), noisy(small(), 0.7, rows=3)
    value = "mean" if lam is None else "soft"
    settings = {"kernel": kernel, "steps": 4, "particles": 5, "value": value, "lam": lam}
    ours = monte_carlo(world, reward, **settings, chunk=chunk)
    found = value_and_gradient(ours, z_t, t, c, Streams.of(0, rows=3))
    z_t = z_t.requires_grad_()
    r = rollouts_by_hand(reward, (z_t, t, c), kernel, steps=4, particles=5)
    expected = r.mean(0) if lam is None else (lam * r).exp().mean(0).log() / lam
    (gradient,) = torch.autograd.grad(expected.sum(), z_t)
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_kernel_is_an_euler_loop(posterior, shift):
    world, reward, steps = small(), small().reward("quadratic"), 6
    z_t, t, c = noisy(world, 0.8, rows=3)
    start = 0.8 / (shift - (shift - 1) * 0.8)  # shift maps it to 0.8
    even = [start * (1 - k / steps) for k in range(steps + 1)]
    times = [shift * s / (1 + (shift - 1) * s) for s in even]
    z = z_t
    for now, then in zip(times, times[1:], strict=False):
        z = z - (now - then) * world.backbone.velocity(
            z, time(now), c if posterior == "prompt" else [NULL] * 3
        )
    expected = reward(world.backbone.decode(z), c)
    ours = monte_carlo(
        world, reward, kernel="ode", steps=steps, shift=shift, particles=1, posterior=posterior
    )
    grid = "" if shift == 1 else f", shift {shift:g}"
    null = ", null prompt" if posterior == "data" else ""
    assert ours.target.kernel == f"ode, 6 steps{grid}{null}"
    found = ours(z_t, t, c, Streams.of(0, rows=3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_prompt_shows_the_null_prompt():
    (z_t, t, c), u = noisy(small(), 0.7, rows=3), small().backbone.velocity
    torch.testing.assert_close(without_prompt(u)(z_t, t, c), u(z_t, t, [NULL] * 3))


def test_soft_value_is_stable_where_exponentials_overflow():
    for r in (1000.0, -1000.0):
        rewards = torch.tensor([[r], [r + 1]], dtype=torch.float64)
        assert float(aggregate(rewards, 1.0)) == pytest.approx(
            r + math.log((1 + math.e) / 2), abs=1e-10
        )
    rewards = torch.tensor([[0.5], [1.0]], dtype=torch.float64)  # one of two draws is all
    assert float(aggregate(rewards, 1e3)) == pytest.approx(1 - math.log(2) / 1e3, abs=1e-12)


@EVERY
@given(
    arrays(np.float64, (6, 2), elements=st.floats(-3, 3)).map(torch.from_numpy),
    st.floats(1e-2, 1e3),
    st.floats(-100, 100),
)
def test_soft_value_lies_between_mean_and_largest_and_shifts_along(rewards, lam, shift):
    soft = aggregate(rewards, lam)
    assert (soft >= aggregate(rewards) - 1e-9).all()
    assert (soft <= rewards.max(0).values + 1e-9).all()
    torch.testing.assert_close(aggregate(rewards + shift, lam), soft + shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(aggregate(rewards[:1], lam), rewards[0], rtol=0, atol=1e-9)


class Blind(GaussianWorld):
    """A world that knows neither its posterior nor its truth."""

    name = "blind"

    def posterior(self, posterior):
        return None

    def truth(self, reward, target):
        return None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "expected particles >= 1, got 0"),
        ({"chunk": 0}, "expected chunk >= 1, got 0"),
        (
            {"kernel": "ode", "particles": 4},
            "expected particles = 1 with a deterministic kernel .*, got 4",
        ),
        (
            {"kernel": "heun"},
            r"expected a kernel in \['exact', 'ode', 'reversal', .*\], got 'heun'",
        ),
        ({"value": "soft"}, "expected lambda > 0 for the soft value, got None"),
        ({"value": "soft", "lam": -1.0}, "expected lambda > 0 for the soft value, got -1"),
        ({"value": "mean", "lam": 1.0}, "expected no lambda for the mean value, got 1"),
        ({"posterior": "model"}, "expected the data or prompt posterior, got 'model'"),
        (
            {"kernel": "exact", "posterior": "model"},
            "expected the data or prompt posterior, got 'model'",
        ),
    ],
)
def test_monte_carlo_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo(small(), small().reward("linear"), **settings)


def test_monte_carlo_refuses_no_steps():
    inputs = *noisy(small(), 0.5, rows=2), Streams.of(0, rows=2)
    with pytest.raises(ValueError, match="expected steps >= 1, got 0"):
        monte_carlo(small(), small().reward("linear"), steps=0)(*inputs)


def test_only_the_deterministic_kernel_runs_without_streams():
    inputs, reward = noisy(small(), 0.5, rows=2), small().reward("linear")
    with pytest.raises(ValueError, match="expected rng, one stream per latent: MonteCarlo is"):
        monte_carlo(small(), reward)(*inputs)
    ode = monte_carlo(small(), reward, kernel="ode", particles=1)
    torch.testing.assert_close(ode(*inputs), ode(*inputs, Streams.of(0, rows=2)))


@pytest.mark.parametrize("kernel", ["ode", *NU])
def test_rollouts_reach_from_clean_latents_to_pure_noise(kernel):
    """At t = 0 there is nothing to finish: the clean reward and its gradient."""
    world, reward = small(), small().reward("sigmoid")
    z_t, _, c = noisy(world, 0.5, rows=3)
    ours = monte_carlo(world, reward, kernel=kernel, steps=3, particles=1)
    found = value_and_gradient(ours, z_t, time([0.0, 0.5, 1.0]), c, Streams.of(0, rows=3))
    terminal = ESTIMATORS["terminal"](world, reward)
    clean = value_and_gradient(terminal, z_t[:1], time(0.0), c[:1])
    torch.testing.assert_close(found.value[:1], clean.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gradient[:1], clean.gradient, rtol=1e-12, atol=1e-12)
    assert found.value.isfinite().all()
    assert found.gradient.isfinite().all()


def test_exact_draws_and_truth_need_a_world_that_has_them():
    world, reward = Blind(**TINY), small().reward("linear")
    with pytest.raises(
        ValueError, match="expected a world with exact posterior draws, got 'blind'"
    ):
        monte_carlo(world, reward, kernel="exact")
    with pytest.raises(ValueError, match="expected a world whose truth is known, got 'blind'"):
        ESTIMATORS["truth"](world, reward)


# Reference points


@pytest.mark.parametrize("name", REWARDS)
def test_terminal_is_the_reward_of_the_latent_and_exact_on_clean_ones(name):
    world, reward = default(), default().reward(name)
    z_t, t, c = noisy(world, 0.6, rows=4)
    terminal = ESTIMATORS["terminal"](world, reward)
    expected = reward(world.backbone.decode(z_t), c)
    torch.testing.assert_close(terminal(z_t, t, c), expected, rtol=1e-12, atol=1e-12)
    truth = ESTIMATORS["truth"](world, reward)
    torch.testing.assert_close(
        terminal(z_t, time(0.0), c), truth(z_t, time(0.0), c), rtol=1e-10, atol=1e-10
    )
    assert float((terminal(z_t, t, c) - truth(z_t, t, c)).abs().max()) > 0.01


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("lam", [None, 0.7])
def test_constant_is_the_truth_at_pure_noise(name, posterior, lam):
    """Within four standard errors of its draws."""
    world, reward, draws, c = default(), default().reward(name), 1024, ["scene 0", "scene 5"]
    settings = {"value": "mean" if lam is None else "soft", "lam": lam, "posterior": posterior}
    z = torch.zeros(2, *world.backbone.latent, dtype=torch.float64)
    constant = ESTIMATORS["constant"](world, reward, **settings, draws=draws)
    assert constant.target == Target(**settings)
    found = constant(z, time(0.5), c)
    expected = world.truth(reward, Target(**settings))(z, time(1.0), c)
    for row, asked in enumerate(c):
        seen = asked if posterior == "prompt" else NULL
        z_0 = world.draw([seen] * 512, Streams.of(1, rows=512))
        r = reward(world.backbone.decode(z_0), [asked] * 512)
        sd = r.std() if lam is None else ((lam * (r - expected[row])).exp() / lam).std()
        assert abs(float(found[row] - expected[row])) < 4 * float(sd) / draws**0.5


def test_constant_depends_on_nothing_but_the_prompt():
    world, reward = small(), small().reward("sigmoid")
    constant = ESTIMATORS["constant"](world, reward, draws=64)
    inputs = [noisy(world, sigma, rows=8) for sigma in (0.1, 0.9)]
    values = [constant(*one, Streams.of(seed, rows=8)) for seed, one in enumerate(inputs)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(values[0][:4], values[0][4:], rtol=0, atol=0)  # four prompts, twice
    assert len(set(values[0].tolist())) == 4
    z_t, _, c = inputs[0]
    for row in range(4):  # nor on which prompts came before
        alone = ESTIMATORS["constant"](world, reward, draws=64)
        value = alone(z_t[row : row + 1], time(0.5), c[row : row + 1])
        torch.testing.assert_close(value, values[0][row : row + 1], rtol=0, atol=0)


def test_constant_has_no_gradient_and_says_so():
    constant = ESTIMATORS["constant"](small(), small().reward("linear"), draws=4)
    with pytest.raises(ValueError, match="expected a differentiable estimator, got Constant"):
        value_and_gradient(constant, *noisy(small(), 0.5, rows=2))
    with pytest.raises(ValueError, match="expected draws >= 1, got 0"):
        ESTIMATORS["constant"](small(), small().reward("linear"), draws=0)


@pytest.mark.parametrize("i", [1, 3, 4])
def test_linear_stitch_runs_i_blocks_of_the_null_prompt_and_never_decodes(i, monkeypatch):
    world = GaussianWorld(**TINY)
    stitched = ESTIMATORS["linear_stitch"](world, world.reward("sigmoid"), i=i)
    assert stitched.target == Target("mean", "data")
    inputs, trunk, calls = noisy(world, 0.5, rows=3), world.backbone.trunk, []

    def refuse(*_):
        raise AssertionError("a whole velocity or a decode")

    def watched(z_t, t, i, c=None):
        calls.append((i, c))
        return trunk(z_t, t, i, c)

    for name in ("velocity", "resume", "decode", "encode"):
        monkeypatch.setattr(world.backbone, name, refuse)
    monkeypatch.setattr(world.backbone, "trunk", watched)
    assert stitched(*inputs).isfinite().all()
    assert calls == [(i, None)]


@pytest.mark.parametrize("name", REWARDS)
def test_linear_stitch_after_the_posterior_mean_tends_to_tweedie(name):
    """Block 3 gives E[z_0 | z_t] and the first reward block is linear: the best map is exact.

    What is left falls with the root of the number of probes.
    """
    world, reward = default(), default().reward(name)
    inputs = noisy(world, 0.5, rows=128)
    tweedie = ESTIMATORS["tweedie"](world, reward, posterior="data")(*inputs)
    few, many, early = (
        float((stitched(*inputs) - tweedie).square().mean().sqrt() / tweedie.std())
        for stitched in (
            ESTIMATORS["linear_stitch"](world, reward, **settings)
            for settings in ({"probes": 100}, {"probes": 1600}, {"i": 1})
        )
    )
    assert many < 0.03
    assert 2 < few / many < 8  # the root of 16 is 4
    assert early > 10 * many  # block 1 knows no posterior mean


@pytest.mark.parametrize("settings", [{"i": 0}, {"i": 5}, {"j": 3}])
def test_linear_stitch_refuses_blocks_that_are_not_there(settings):
    ((letter, number),) = settings.items()
    with pytest.raises(ValueError, match=rf"expected {letter} in 1\.\..*, got {number}"):
        ESTIMATORS["linear_stitch"](small(), small().reward("linear"), **settings)


def test_linear_stitch_warns_of_features_that_depend_on_each_other():
    """Responsibilities, after block 2, sum to 1."""
    with pytest.warns(RuntimeWarning, match="features have rank"):
        ESTIMATORS["linear_stitch"](small(), small().reward("linear"), i=2)


# Gradients


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("linear_stitch", {}),
        ("linear_stitch", {"i": 1, "j": 2}),
        ("monte_carlo", {"steps": 4, "particles": 3}),
        ("monte_carlo", {"steps": 4, "particles": 3, "value": "soft", "lam": 0.7}),
        ("monte_carlo", {"kernel": "ode", "steps": 4, "particles": 1}),
        ("terminal", {}),
        ("truth", {}),
        ("truth", {"value": "soft", "lam": 0.7}),
        ("truth", {"posterior": "data"}),
        ("tweedie", {}),
        ("tweedie", {"posterior": "data"}),
    ],
)
def test_gradient_equals_central_differences(name, estimator, settings):
    """In the default world, along three directions, at three times in one batch."""
    world, h, rows = default(), 1e-5, 3
    ours = ESTIMATORS[estimator](world, world.reward(name), **settings)
    z_t, _, c = noisy(world, 0.5, rows)
    t, rng = time([0.2, 0.5, 0.9]), Streams.of(0, rows=rows)
    gradient = value_and_gradient(ours, z_t, t, c, rng).gradient
    for direction in range(3):
        d = Streams.of(direction, "direction", rows=rows).normal(z_t)
        with torch.no_grad():
            up, down = (ours(z_t + sign * h * d, t, c, rng) for sign in (1, -1))
        scale = (gradient.flatten(1).norm(dim=1) * d.flatten(1).norm(dim=1)).max()
        gap = (gradient * d).flatten(1).sum(1) - (up - down) / (2 * h)
        assert float(gap.abs().max() / scale) < 1e-6


# The contract


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Trained estimators before their training, by reward and name, as folders."""
    root, folders = tmp_path_factory.mktemp("untrained"), {}
    shop = Workshop(small(), root, WorldImages(small()))
    for reward in REWARDS:
        with pytest.warns(RuntimeWarning, match="features of block 2 have rank"):
            shop.search(reward)  # responsibilities sum to 1
        for arm in ("stitched", "vae_stitch", "noisy_student", "feature_head"):
            folders[reward, arm] = root / reward / arm
            shop.begin(Job(reward, arm)).save_pretrained(folders[reward, arm])
    return folders


@pytest.fixture
def shipped(untrained, monkeypatch):
    """The same, as if they came with the world."""

    def trained(_world, reward):
        return {arm: folder for (of, arm), folder in untrained.items() if of == reward}

    monkeypatch.setattr(GaussianWorld, "trained", trained)
    monkeypatch.setattr(GaussianWorld, "reward", cache(GaussianWorld.reward))  # it knows its own


SETTINGS = {
    "calibrated": [{"images": 40}, {"of": "tweedie", "posterior": "prompt", "images": 40}],
    "constant": [{"draws": 32}, {"draws": 32, "value": "soft", "lam": 0.7, "posterior": "data"}],
    "feature_head": [{}],
    "linear_stitch": [{}, {"i": 1, "j": 2}, {"i": 4}],
    "monte_carlo": [
        *({"kernel": kernel, "steps": 3, "particles": 3} for kernel in KERNELS),
        {"kernel": "ode", "steps": 3, "particles": 1},
        {"steps": 3, "particles": 5, "value": "soft", "lam": 0.7, "chunk": 7},
        {"steps": 3, "shift": 3.0, "posterior": "data", "chunk": 1},
    ],
    "noisy_student": [{}],
    "stitched": [{}],
    "terminal": [{}],
    "truth": [{}, {"posterior": "data"}, {"value": "soft", "lam": 0.7}],
    "tweedie": [{}, {"posterior": "data"}],
    "untrained": [{"i": 2}, {"i": 3, "j": 2, "condition": "prompt"}],
    "vae_stitch": [{}],
}


def broken_promises(build, reward="sigmoid", **settings):
    """What the contract finds wrong, by the name of the check."""
    case = contract.case(build, small(), small().reward(reward), **settings)
    names = [check.__name__ for check in contract.CHECKS]
    found = zip(names, checked(case, contract.CHECKS), strict=True)
    return {name: why for name, (_, why) in found if why is not None}


def test_every_estimator_has_settings_to_test():
    assert SETTINGS.keys() == ESTIMATORS.keys()


@pytest.mark.parametrize("reward", ["quadratic", "sigmoid"])
@pytest.mark.parametrize(
    ("name", "settings"), [(name, one) for name, every in SETTINGS.items() for one in every]
)
@pytest.mark.usefixtures("shipped")
def test_estimator_keeps_the_contract(name, settings, reward):
    assert broken_promises(ESTIMATORS[name], reward, **settings) == {}


class Broken(Terminal):
    """A Terminal with something wrong in it."""

    def __init__(self, world, reward):
        super().__init__(world.backbone, reward)


class Column(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c)[:, None]


class Infinite(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c) / (t < 0.8)


class Centred(Broken):
    def forward(self, z_t, t, c, rng=None):
        value = super().forward(z_t, t, c)
        return value - value.mean()


class OneStreamForAll(Broken):
    def forward(self, z_t, t, c, rng=None):
        generator = torch.Generator().manual_seed(rng.seeds[0])
        return super().forward(z_t, t, c) + torch.randn(len(z_t), generator=generator)


class Unseeded(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c) + torch.rand(len(z_t))


class InPlace(Broken):
    def forward(self, z_t, t, c, rng=None):
        with torch.no_grad():
            z_t.mul_(0.9)
        return super().forward(z_t, t, c)


class ScalarTime(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c) * (1 if t.ndim else 2)


class HalfDetached(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c) + super().forward(z_t.detach(), t, c)


class Detached(Broken):
    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t.detach(), t, c)


class ElsewhereDifferentiated(Broken):
    """Another value with a graph than without."""

    def forward(self, z_t, t, c, rng=None):
        return super().forward(z_t, t, c) + float(torch.is_grad_enabled())


class Unchecked(Broken):
    def __init__(self, world, reward):
        torch.nn.Module.__init__(self)
        self.backbone, self.reward, self.latent = world.backbone, reward, world.backbone.latent
        self.target = Target()


class Undeclared(Broken):
    def __init__(self, world, reward):
        super().__init__(world, reward)
        self.target = "mean"


class OtherLatent(Broken):
    def __init__(self, world, reward):
        super().__init__(world, reward)
        self.latent = (4, 8, 8)


BROKEN = [
    (Column, "shape", r"expected values of shape \(5,\), got \(5, 1\)"),
    (Infinite, "shape", r"expected finite values, got \[.*inf"),
    (Centred, "batch_of_one", "expected equal values to 1e-10, got a gap of"),
    (OneStreamForAll, "batch_of_one", "expected equal values to 1e-10, got a gap of"),
    (Unseeded, "repeatable", "expected equal values to 1e-10, got a gap of"),
    (InPlace, "leaves_inputs", "expected equal values to 1e-10, got a gap of"),
    (ScalarTime, "scalar_time", "expected equal values to 1e-10, got a gap of"),
    (HalfDetached, "gradient", "expected the gradient of central differences to 1e-06, got"),
    (Detached, "gradient", "Detached's, which is detached from it .*`differentiable = False`"),
    (ElsewhereDifferentiated, "gradient", "expected equal values to 1e-10, got a gap of 1"),
    (Unchecked, "refuses", r"expected a ValueError for z_t .*was super\(\).__init__\(\) called"),
    (Undeclared, "declares", "expected `target`, a stitchvm.value.Target"),
    (OtherLatent, "declares", r"expected `latent` \(2, 2, 1\), got \(4, 8, 8\)"),
]


@pytest.mark.parametrize(("build", "check", "message"), BROKEN)
def test_contract_catches_a_broken_estimator(build, check, message):
    assert broken_promises(Broken) == {}
    assert re.search(message, broken_promises(build)[check])


def test_contract_wants_a_value_estimator():
    why = broken_promises(lambda *_: torch.nn.Identity())["declares"]
    assert why == "AssertionError: expected a ValueEstimator, got Identity"


def test_broken_estimators_cover_every_check():
    assert {check for _, check, _ in BROKEN} == {check.__name__ for check in contract.CHECKS}
