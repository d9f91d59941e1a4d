"""Guidance: with the exact value it samples p*, it moves the drift by Eq. 39, it refuses the rest.

On one Gaussian every guided step is linear, so moments propagate in closed form and the order is
seen without noise; on a mixture, far apart so that prompts and tilting matter, it is statistics.
"""

import math
from functools import partial

import pytest
import torch

from baselines import ESTIMATORS
from bench.meter import peak_bytes
from bench.worlds import WORLDS
from stitchvm.align.guide import (
    CFG,
    NORMALISE,
    PROFILES,
    Guided,
    clipped,
    constant,
    every,
    exact,
    within,
)
from stitchvm.backbone import NULL
from stitchvm.path import expand_time, noise, time_grid
from stitchvm.sample import NU, Diverged, Ode, Sde, sample
from stitchvm.streams import Streams
from stitchvm.value import Target, Valued, ValueEstimator, value_and_gradient

SDES = {name: partial(Sde, nu=nu) for name, nu in NU.items()}
SAMPLERS = {"ode": Ode, **SDES}
FORWARD = ("ode", "reversal", "sigma")  # a kernel of each kind
APART = 15.0  # times the means' own scale: components about two standard deviations apart

every_sampler = pytest.mark.parametrize("build", SAMPLERS.values(), ids=SAMPLERS)


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


def gaussian(latent, components):
    world = WORLDS["gaussian"](latent=latent, components=components, rank=3, prompts=4)
    world.backbone.means.mul_(APART)
    return world


@pytest.fixture(scope="module")
def mixture():
    return gaussian((2, 2, 2), components=3)


@pytest.fixture(scope="module")
def one():
    return gaussian((2, 1, 1), components=1)


@pytest.fixture(scope="module")
def shapes():
    return WORLDS["shapes"]()


def soft(world, reward, lam):
    return world.truth(reward, Target("soft", "prompt", lam))


def noisy(world, rows, times=(0.2, 0.5, 0.9)):
    """Forward-noised latents of prompts in turn, each at a time of its own."""
    c = [world.prompts[row % len(world.prompts)] for row in range(rows)]
    rng, t = Streams.of(0, "noisy", rows=rows), scalar((times * rows)[:rows])
    z_0 = world.draw(c, rng.child("z_0"))
    return noise(z_0, t, rng.child("eps").normal(z_0)), t, c


class OneStream(Streams):
    """All rows from one generator: where speed counts and rows need not be reproducible."""

    def __init__(self, rows, seed):
        super().__init__(range(rows))
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, like):
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)

    def uniform(self, dtype=torch.float64):
        return torch.rand(len(self), dtype=dtype, generator=self.generator)


class Watched:
    """A velocity that writes down its times, and the number of rows, as it is called."""

    def __init__(self, velocity, log=None):
        self.velocity, self.log = velocity, [] if log is None else log

    def __call__(self, z_t, t, c):
        self.log.append(("velocity", len(z_t), t))
        return self.velocity(z_t, t, c)


class Linear(ValueEstimator):
    """V = w . z_t + b with a w and b of every row, and a log of its calls."""

    def __init__(self, w, b=0.0, log=None):
        super().__init__()
        self.w, self.b, self.latent, self.target = w, b, tuple(w.shape[1:]), Target()
        self.log = [] if log is None else log

    def forward(self, z_t, t, c, rng=None):
        self.log.append(("value", len(z_t), t))
        return (self.w[: len(z_t)] * z_t).flatten(1).sum(1) + self.b


# With the exact soft value it samples p*: one Gaussian, in closed form


def affine(sampler, t, s, c):
    """F, f and q of the transition N(F z + f, q^2 I) on a two-dimensional latent."""
    z = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double().reshape(3, 2, 1, 1)
    mean, std = sampler.transition(z, t, s, [c] * 3)
    f = mean[0].flatten()
    return (mean[1:].flatten(1) - f).T, f, std.flatten()


def propagated(sampler, target, steps, c, start=0.9):
    """Mean and covariance at t = 0 from the exact tilted ones at the start."""
    a, eye = 1 - start, torch.eye(2, dtype=torch.float64)
    mean, covariance = a * target.mean(), a**2 * target.covariance() + start**2 * eye
    times = time_grid(steps, scalar(start))
    for t, s in zip(times[:-1], times[1:], strict=True):
        along, shift, q = affine(sampler, t, s, c)
        mean = along @ mean + shift
        covariance = along @ covariance @ along.T + q**2 * eye
    return mean, covariance


@pytest.mark.parametrize(("name", "lam"), [("linear", 1.0), ("linear", 0.4), ("quadratic", 1.0)])
@every_sampler
def test_on_one_gaussian_it_ends_in_the_tilted_one_to_first_order(build, name, lam, one):
    """The mean exactly, whatever the steps; the covariance with an error of order 1 / steps."""
    reward, c = one.reward(name), one.prompts[0]
    target, all_steps, errors = one.tilted(reward, c, lam), (96, 192), []
    sampler = build(Guided(one.backbone.velocity, soft(one, reward, lam), lam))
    for steps in all_steps:
        mean, covariance = propagated(sampler, target, steps, c)
        torch.testing.assert_close(mean, target.mean(), rtol=0, atol=1e-12)
        errors.append(float((covariance - target.covariance()).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.12)
    assert errors[1] < 0.06
    prior = one.backbone.mixture.means[0]
    assert float((target.mean() - prior).norm()) > 0.03  # and the tilted one is another


@every_sampler
@pytest.mark.parametrize(("name", "gap"), [("linear", None), ("quadratic", 0.01)])
def test_on_one_gaussian_tweedie_has_the_gradient_of_a_linear_reward_alone(build, name, gap, one):
    """Of a quadratic one it knows the mean value, not the soft one: mean and covariance are off,
    and more steps do not help."""
    reward, c, lam = one.reward(name), one.prompts[0], 1.0
    target, tweedie = one.tilted(reward, c, lam), ESTIMATORS["tweedie"](one, reward)
    sampler = build(Guided(one.backbone.velocity, tweedie, lam))
    mean, covariance = propagated(sampler, target, 192, c)
    off = float((covariance - target.covariance()).norm())
    if gap is None:
        torch.testing.assert_close(mean, target.mean(), rtol=0, atol=1e-12)
        assert off < 0.06
    else:
        assert float((mean - target.mean()).norm()) > gap
        assert off > 0.09


# With the exact soft value it samples p*: a mixture, by statistics

PARTICLES = 4000
TILTS = {"linear": (1.0, "scene 1"), "quadratic": (1.5, "scene 2")}  # of strong effect
WINDOW = within(exact, 0.98, 0.0)

every_tilt = pytest.mark.parametrize("name", TILTS)


def guided(world, name, value, kernel, steps):
    """Guided samples from pure noise, and their target."""
    lam, c = TILTS[name]
    rng = OneStream(PARTICLES, seed=1)
    z = rng.normal(torch.empty(PARTICLES, *world.backbone.latent).double())
    velocity = Guided(world.backbone.velocity, value, lam, profile=WINDOW)
    z_0 = sample(SAMPLERS[kernel](velocity), z, time_grid(steps), [c] * PARTICLES, rng)
    return z_0, world.tilted(world.reward(name), c, lam)


def miss(z_0, target):
    """Largest gap of a mean in standard deviations, and of the covariance, relative."""
    z_0, covariance = z_0.flatten(1), target.covariance()
    mean = (z_0.mean(0) - target.mean()).abs() / covariance.diagonal().sqrt()
    return float(mean.max()), float((z_0.T.cov() - covariance).norm() / covariance.norm())


def allowed(target, steps):
    """Of the mean: four standard errors, 3 / steps, and what is lost above t = 0.98.

    Of the covariance: twice the distance of as many exact draws, and 3 / steps.
    """
    drawn = [miss(target.sample(OneStream(PARTICLES, seed)), target)[1] for seed in range(2, 6)]
    return 4 / PARTICLES**0.5 + 3 / steps + 0.03, 2 * sum(drawn) / 4 + 3 / steps


@every_tilt
@pytest.mark.parametrize("kernel", FORWARD)
def test_on_a_mixture_it_ends_in_the_tilted_one(kernel, name, mixture):
    """Errors fall by half and more where steps are quadrupled, and stay below what is allowed."""
    lam, c = TILTS[name]
    value, errors = soft(mixture, mixture.reward(name), lam), {}
    for steps in (6, 24, 96):
        z_0, target = guided(mixture, name, value, kernel, steps)
        errors[steps] = miss(z_0, target)
    for few, many in zip(errors[6], errors[24], strict=True):
        assert many < few / 2  # 1 / 4 but for the noise
    for steps in (24, 96):
        for gap, bound in zip(errors[steps], allowed(target, steps), strict=True):
            assert gap < bound
    prior = miss(mixture.draw([c] * PARTICLES, OneStream(PARTICLES, seed=6)), target)
    assert all(gap > 2.5 * bound for gap, bound in zip(prior, allowed(target, 96), strict=True))


@pytest.mark.parametrize(("name", "estimator"), [("linear", "truth"), ("quadratic", "tweedie")])
@pytest.mark.parametrize("kernel", ["ode", "reversal"])
def test_on_a_mixture_the_mean_value_misses_the_tilted_one(kernel, name, estimator, mixture):
    """By twelve standard errors of the mean: more than the soft value is allowed anywhere."""
    value = ESTIMATORS[estimator](mixture, mixture.reward(name))
    assert value.target == Target("mean", "prompt")
    z_0, target = guided(mixture, name, value, kernel, 48)
    found, bounds = miss(z_0, target), allowed(target, 48)
    assert found[0] > 12 / PARTICLES**0.5 > bounds[0]
    assert found[1] > bounds[1]


# Eq. 39


def drift(sampler, z_t, t, s, c):
    mean, _ = sampler.transition(z_t, t, s, c)
    return (z_t - mean) / expand_time(t - s, z_t)


@every_sampler
@pytest.mark.parametrize("at", [None, 0.6])
def test_the_drift_moves_as_equation_39_says(build, at, mixture):
    """(c_t - nu_t^2 / 2) lambda grad V with c_t = -t / (1 - t), nu = 0 for the ODE."""
    reward, lam = mixture.reward("quadratic"), 0.7
    z_t, t, c = noisy(mixture, 3)
    t = t if at is None else scalar(at)
    value, u = soft(mixture, reward, lam), mixture.backbone.velocity
    sampler = build(Guided(u, value, lam))
    moved = drift(sampler, z_t, t, 0.8 * t, c) - drift(build(u), z_t, t, 0.8 * t, c)
    nu = torch.zeros_like(t) if build is Ode else sampler.nu(t)
    share = expand_time(-t / (1 - t) - nu**2 / 2, z_t)
    gradient = value_and_gradient(value, z_t, t, c).gradient
    torch.testing.assert_close(moved, share * lam * gradient, rtol=1e-10, atol=1e-10)
    assert float(moved.abs().amax((1, 2, 3)).min()) > 1e-3


def test_it_subtracts_strength_times_profile_times_gradient(mixture):
    z_t, t, c = noisy(mixture, 3)
    value, u = mixture.truth(mixture.reward("linear"), Target()), mixture.backbone.velocity
    found = Guided(u, value, 0.3, profile=clipped)(z_t, t, c)
    ascent = value_and_gradient(value, z_t, t, c).gradient
    share = scalar([0.2 / 0.8, 1.0, 4.0])[:, None, None, None]
    torch.testing.assert_close(found, u(z_t, t, c) - 0.3 * share * ascent, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    assert not z_t.requires_grad


def test_the_estimator_is_asked_before_the_velocity(mixture):
    """So that what both hold can go on from the estimator's blocks."""
    log, (z_t, t, c) = [], noisy(mixture, 2)
    Guided(Watched(mixture.backbone.velocity, log), Linear(torch.ones_like(z_t), log=log), 1.0)(
        z_t, t, c
    )
    assert [(who, rows) for who, rows, _ in log] == [("value", 2), ("velocity", 2)]


# Normalisations


def applied(mixture, value, normalise, z_t, t, c):
    """What is added to the velocity, per unit of strength and profile."""
    u = mixture.backbone.velocity
    found = Guided(u, value, 2.0, profile=constant, normalise=NORMALISE[normalise])(z_t, t, c)
    return (u(z_t, t, c) - found) / 2.0


def test_rms_makes_every_samples_gradient_one_large(mixture):
    value, inputs = mixture.truth(mixture.reward("sigmoid"), Target()), noisy(mixture, 3)
    gradient = value_and_gradient(value, *inputs).gradient
    ascent = applied(mixture, value, "rms", *inputs)
    rms = ascent.flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones(3).double(), rtol=1e-10, atol=0)
    cosine = torch.nn.functional.cosine_similarity(ascent.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3).double(), rtol=1e-10, atol=0)
    assert len({round(float(g.norm()), 3) for g in gradient}) == 3


def test_per_value_divides_by_the_size_of_the_value(mixture):
    value, inputs = mixture.truth(mixture.reward("linear"), Target()), noisy(mixture, 4)
    valued = value_and_gradient(value, *inputs)
    assert float(valued.value.min()) < 0 < float(valued.value.max())
    expected = valued.gradient / valued.value.abs()[:, None, None, None]
    found = applied(mixture, value, "value", *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_zero_gradient_stays_zero(normalise, mixture):
    """Beside a sample that has one, and with a value of 0 as well."""
    z_t, t, c = noisy(mixture, 3)
    w = torch.ones_like(z_t)
    w[0] = 0
    b = scalar([0.0, 0.0, -float(z_t[2].sum())])  # row 2: a gradient, but a value of 0
    found = applied(mixture, Linear(w, b), normalise, z_t, t, c)
    assert bool(found.isfinite().all())
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    assert float(found[1].abs().min()) > 0.1
    assert bool(found[2].any()) == (normalise != "value")
    flat = Linear(torch.zeros_like(z_t), b=1.0)
    assert not bool(applied(mixture, flat, normalise, z_t, t, c).any())


@pytest.mark.parametrize("normalise", ["rms", "value"])
def test_a_gradient_that_is_not_finite_is_not_hidden(normalise):
    gradient = torch.full((2, 3, 1, 1), torch.nan)
    gradient[1] = 1.0
    found = NORMALISE[normalise](Valued(torch.tensor([torch.nan, 1.0]), gradient))
    assert bool(found[1].isfinite().all())
    assert bool(found[0].isnan().all())


def test_a_gradient_that_is_not_finite_ends_the_walk(mixture):
    (z_t, _, c), b = noisy(mixture, 2), mixture.backbone
    broken = Guided(b.velocity, Linear(torch.full_like(z_t, torch.nan)), 1.0)
    with pytest.raises(Diverged, match=r"after step 1 of 4 \(t = 0\.675\)"):
        sample(Ode(broken), z_t, time_grid(4, 0.9), c)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_batch_equals_one_by_one(profile, normalise, mixture):
    value, (z_t, t, c) = soft(mixture, mixture.reward("linear"), 0.8), noisy(mixture, 3)
    u = CFG(mixture.backbone.velocity, 2.0)
    settings = {"profile": PROFILES[profile], "normalise": NORMALISE[normalise]}
    velocity = Guided(u, value, 0.5, **settings)
    together = velocity(z_t, t, c)
    for row in range(3):
        at = slice(row, row + 1)
        for time in (t[at], t[row]):
            alone = velocity(z_t[at], time, c[at])
            torch.testing.assert_close(together[at], alone, rtol=1e-12, atol=1e-12)


# Profiles


def test_profiles_are_what_they_say():
    t = scalar([0.0, 0.2, 0.5, 0.8, 0.9, 1.0])
    found = {name: profile(t).tolist() for name, profile in PROFILES.items()}
    assert found == {
        "exact": pytest.approx([0, 0.25, 1, 4, 9, math.inf], rel=1e-12),
        "constant": [1] * 6,
        "clipped": pytest.approx([0, 0.25, 1, 4, 4, 4], rel=1e-12),
    }
    assert clipped(scalar(0.9), most=2.0) == 2.0


def test_a_window_holds_both_its_ends_and_nothing_infinite():
    found = within(exact, 0.8, 0.2)(scalar([1.0, 0.81, 0.8, 0.5, 0.2, 0.19, 0.0]))
    assert found.tolist() == pytest.approx([0, 0, 4, 1, 0.25, 0, 0], rel=1e-12)
    assert float(within(constant, 0.5, 0.5)(scalar(0.5))) == 1


@pytest.mark.parametrize("window", [(0.2, 0.5), (1.1, 0.5), (0.5, -0.1), (math.nan, 0.0)])
def test_a_window_outside_of_time_is_refused(window):
    first, last = (f"{end:g}" for end in window)
    with pytest.raises(ValueError, match=f"1 >= first >= last >= 0, got {first} to {last}"):
        within(exact, *window)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_nth_step_is_guided_n_times_as_much(n):
    times = time_grid(7, scalar(0.9), shift=3.0)
    found = every(clipped, times, n)(times[:-1])
    chosen = [k for k in range(1, 8) if k % n == 0]
    expected = [n * float(clipped(t)) if k in chosen else 0.0 for k, t in enumerate(times[:-1], 1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    single = torch.stack([every(clipped, times, n)(t) for t in times[:-1]])
    assert torch.equal(single, found)
    low = every(clipped, times, n)(times[:-1].float())  # a time as the sampler rounds it
    assert [x > 0 for x in low.tolist()] == [x > 0 for x in expected]


def test_every_step_is_the_profile_itself():
    """At times off the grid, too."""
    t = scalar([0.123, 0.5, 0.77])
    torch.testing.assert_close(every(clipped, time_grid(25), 1)(t), clipped(t))


@pytest.mark.parametrize("n", [0, -1, 5])
def test_every_refuses_steps_that_are_not_there(n):
    with pytest.raises(ValueError, match=rf"expected n in 1\.\.4, the steps, got {n}$"):
        every(exact, time_grid(4), n)


@pytest.mark.parametrize(
    ("thin", "asked"),
    [
        (lambda _: within(exact, 0.75, 0.35), [0.7, 0.6, 0.5, 0.4]),
        (lambda times: every(constant, times, 3), [0.8, 0.5, 0.2]),
        (lambda times: every(within(exact, 0.75, 0.0), times, 5), [0.6, 0.1]),
        (lambda _: lambda t: 0 * t, []),
    ],
)
def test_the_estimator_is_asked_where_the_profile_is_not_zero(thin, asked, mixture):
    log, times = [], time_grid(10)
    z = Streams.of(0, rows=2).normal(torch.empty(2, *mixture.backbone.latent).double())
    velocity = Guided(
        Watched(mixture.backbone.velocity, log),
        Linear(torch.ones_like(z), log=log),
        0.1,
        profile=thin(times),
    )
    sample(Ode(velocity), z, times, [mixture.prompts[0]] * 2)
    found = [float(t) for who, _, t in log if who == "value"]
    assert found == pytest.approx(asked, abs=1e-12)
    assert sum(who == "velocity" for who, *_ in log) == 10


def test_rows_outside_the_window_are_left_alone(mixture):
    z_t, t, c = noisy(mixture, 3)
    u = mixture.backbone.velocity
    velocity = Guided(u, Linear(torch.ones_like(z_t)), 1.0, profile=within(exact, 0.6, 0.3))
    moved = (velocity(z_t, t, c) - u(z_t, t, c)).flatten(1).abs().sum(1)
    assert [x > 0 for x in moved.tolist()] == [False, True, False]


# Refusals


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, -math.inf])
def test_a_strength_that_is_none_is_refused(strength, mixture):
    value = mixture.truth(mixture.reward("linear"), Target())
    with pytest.raises(ValueError, match=f"finite strength >= 0, got {strength:g}$"):
        Guided(mixture.backbone.velocity, value, strength)


def test_an_estimator_without_a_gradient_is_refused(mixture):
    value = ESTIMATORS["constant"](mixture, mixture.reward("linear"), draws=4)
    with pytest.raises(ValueError, match="expected a differentiable estimator, got Constant$"):
        Guided(mixture.backbone.velocity, value, 1.0)


@pytest.mark.parametrize("t", [1.0, [0.5, 1.0]])
def test_the_exact_profile_is_refused_at_pure_noise(t, mixture):
    log, (z_t, _, c) = [], noisy(mixture, 2)
    value = Linear(torch.ones_like(z_t), log=log)
    velocity = Guided(Watched(mixture.backbone.velocity, log), value, 1.0)
    with pytest.raises(ValueError, match="got inf at t = 1: begin below t = 1"):
        velocity(z_t, scalar(t), c)
    assert log == []
    assert bool(velocity(z_t, scalar(0.999), c).isfinite().all())


# CFG


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.7, 1.0, 4.5])
@pytest.mark.parametrize("at", [None, 0.6])
def test_cfg_goes_from_the_null_velocity_along_the_difference(scale, at, mixture):
    z_t, t, c = noisy(mixture, 4)
    t = t if at is None else scalar(at)
    u = mixture.backbone.velocity
    null, prompted = u(z_t, t, [NULL] * 4), u(z_t, t, c)
    expected = null + scale * (prompted - null)
    log = []
    found = CFG(Watched(u, log), scale)(z_t, t, c)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert [rows for _, rows, _ in log] == [4 if scale == 1 else 8]
    assert float((null - prompted).abs().max()) > 0.05


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_of_no_strength_is_cfg(scale, mixture):
    log, (z_t, t, c) = [], noisy(mixture, 3)
    cfg = CFG(mixture.backbone.velocity, scale)
    found = Guided(cfg, Linear(torch.ones_like(z_t), log=log), 0.0)(z_t, t, c)
    assert torch.equal(found, cfg(z_t, t, c))
    assert log == []


def directional(value, z_t, t, c, direction, h=1e-5):
    """Central differences along a direction, (B,)."""
    with torch.no_grad():
        up, down = (value(z_t + sign * h * direction, t, c) for sign in (1, -1))
    return (up - down) / (2 * h)


@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid"])
def test_cfg_inside_the_estimator_is_differentiated(name, mixture):
    """Each scale has a value of its own, and the gradient of that value to 1e-6."""
    reward, (z_t, t, c) = mixture.reward(name), noisy(mixture, 4)
    u, gradients = mixture.backbone.velocity, {}
    for scale in (1.0, 2.0):
        value = ESTIMATORS["tweedie"](mixture, reward, cfg=scale)
        null = u(z_t, t, [NULL] * 4)
        guess = z_t - expand_time(t, z_t) * (null + scale * (u(z_t, t, c) - null))
        found = value_and_gradient(value, z_t, t, c)
        expected = reward(mixture.backbone.decode(guess), c)
        torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)
        for seed in range(3):
            d = Streams.of(seed, "direction", rows=4).normal(z_t)
            slope = directional(value, z_t, t, c, d)
            along = (found.gradient * d).flatten(1).sum(1)
            torch.testing.assert_close(along, slope, rtol=1e-6, atol=1e-7)
        gradients[scale] = found.gradient
    apart = (gradients[2.0] - gradients[1.0]).flatten(1).norm(dim=1)
    assert float((apart / gradients[1.0].flatten(1).norm(dim=1)).max()) > 0.05


def test_cfg_outside_leaves_the_estimator_its_own_gradient(mixture):
    """Guided(CFG, Tweedie without CFG) adds the gradient of the plain velocity's guess."""
    reward, (z_t, t, c) = mixture.reward("quadratic"), noisy(mixture, 4)
    cfg = CFG(mixture.backbone.velocity, 2.0)
    for inside in (1.0, 2.0):
        value = ESTIMATORS["tweedie"](mixture, reward, cfg=inside)
        gradient = value_and_gradient(value, z_t, t, c).gradient
        found = Guided(cfg, value, 0.3, profile=constant)(z_t, t, c)
        torch.testing.assert_close(found, cfg(z_t, t, c) - 0.3 * gradient, rtol=1e-12, atol=1e-12)


# What Tweedie's graph keeps

GRAPHS = ("frozen", "unfrozen", "blockwise", "checkpointed")


def by_hand(world, reward, z_t, t, c):
    """The value and gradient of the reward of the guess, by autograd and nothing else."""
    z_t = z_t.clone().requires_grad_()
    guess = z_t - expand_time(t, z_t) * world.backbone.velocity(z_t, t, c)
    value = reward(world.backbone.decode(guess), c)
    (gradient,) = torch.autograd.grad(value.sum(), z_t)
    return Valued(value.detach(), gradient)


def same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        assert float(other.abs().max()) > 1e-3


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_has_the_same_value_and_gradient(graph, mixture):
    reward, inputs = mixture.reward("sigmoid"), noisy(mixture, 3)
    value = ESTIMATORS["tweedie"](mixture, reward, graph=graph)
    same(value_and_gradient(value, *inputs), by_hand(mixture, reward, *inputs), 1e-12)
    assert not any(weight.requires_grad for weight in value.parameters())


def small_batch(world, rows=2):
    rng, c = Streams.of(0, "shapes", rows=rows), list(world.prompts[:rows])
    z_t = rng.normal(torch.empty(rows, *world.backbone.latent))
    return z_t, torch.tensor(0.6), c


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_every_graph_has_the_same_value_and_gradient_in_a_network(graph, decoder):
    """A world of its own: the checkpointed one changes the backbone for good."""
    world = WORLDS["shapes"]()
    reward, inputs = world.reward("clip"), small_batch(world)
    expected = by_hand(world, reward, *inputs)
    if decoder == "tiny":
        world.backbone = world.tiny
        expected = by_hand(world, reward, *inputs)
    value = ESTIMATORS["tweedie"](world, reward, graph=graph, decoder=decoder)
    same(value_and_gradient(value, *inputs), expected, 1e-5)
    assert not any(weight.requires_grad for weight in value.parameters())
    with torch.no_grad():
        torch.testing.assert_close(value(*inputs), expected.value, rtol=1e-5, atol=1e-5)


def test_weights_are_frozen_again_even_if_the_reward_fails(mixture):
    value = ESTIMATORS["tweedie"](mixture, mixture.reward("linear"), graph="unfrozen")
    z_t, t, _ = noisy(mixture, 2)
    with pytest.raises(ValueError, match="expected prompts"):
        value(z_t, t, ["nobody", "knows"])
    assert not any(weight.requires_grad for weight in value.parameters())


def live(world, value, rows=8):
    """Peak bytes of one value and gradient, above weights and inputs."""
    z_t, t, c = small_batch(world, rows)
    value_and_gradient(value, z_t, t, c)  # prompts are encoded once
    standing = [*world.backbone.state_dict().values(), *value.reward.state_dict().values(), z_t, t]
    call = partial(value_and_gradient, value, z_t, t, c)
    return peak_bytes(call, torch.device("cpu"), iter(standing))["live"]


def test_unfrozen_weights_keep_more_and_checkpointing_less(shapes):
    """At batch 8 a half more, and not a third: blocks, decoder and reward are all recomputed."""
    other = WORLDS["shapes"]()  # for checkpointing, which stays on
    peaks = {
        graph: live(world, ESTIMATORS["tweedie"](world, world.reward("clip"), graph=graph))
        for graph, world in {"frozen": shapes, "unfrozen": shapes, "checkpointed": other}.items()
    }
    assert peaks["unfrozen"] > 1.4 * peaks["frozen"]
    assert peaks["checkpointed"] < 0.3 * peaks["frozen"]


def test_a_checkpointed_estimator_leaves_others_of_its_world_alone():
    world = WORLDS["shapes"]()
    reward = world.reward("clip")
    frozen = ESTIMATORS["tweedie"](world, reward)
    alone = live(world, frozen)
    ESTIMATORS["tweedie"](world, reward, graph="checkpointed")
    assert live(world, frozen) == pytest.approx(alone, rel=0.05)
