"""Samplers: marginals, orders and posteriors of mixtures, known exactly; the loop around them.

Three exact checks stand behind the statistical one: Euler-Maruyama is linear on one Gaussian, so
its moments propagate in closed form; on a one-dimensional mixture its density propagates on a
grid; and the kernel itself is Eq. 11.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from bench.worlds.gaussian import GaussianWorld
from bench.worlds.gaussian.backbone import GaussianBackbone
from bench.worlds.gaussian.mixture import Mixture, Noised, Posterior
from bench.worlds.gaussian.prompts import PromptBook
from stitchvm.path import noise, time_grid
from stitchvm.sample import NU, Ode, Sde, heun, sample, trajectory
from stitchvm.streams import Streams

SDES = {name: partial(Sde, nu=nu) for name, nu in NU.items()}
SAMPLERS = {**SDES, "ode": Ode}
PROMPT = "scene 0"
SMALL = settings(max_examples=30, deadline=None)

every_sampler = pytest.mark.parametrize("build", SAMPLERS.values(), ids=SAMPLERS)
every_sde = pytest.mark.parametrize("build", SDES.values(), ids=SDES)


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


def grid(steps, start=1.0, stop=0.0):
    return time_grid(steps, scalar(start), stop=stop)


def order(steps, errors):
    """Minus the slope of log error against log steps."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def crowd(backbone):
    """The velocity of one row of many particles, (1, P, d): one stream draws for all of them."""

    def velocity(z, t, c):
        flat = z[0].unflatten(1, backbone.latent)
        return backbone.velocity(flat, t, [*c] * len(flat)).flatten(1)[None]

    return velocity


def moments(mixture, log_weights, t):
    """Mean (d,) and covariance (d, d) of the noised mixture."""
    weights, eye = log_weights.softmax(-1), torch.eye(mixture.means.shape[1]).double()
    mean = weights @ mixture.means
    apart = mixture.means - mean
    within = torch.einsum("k,kde->de", weights, mixture.covariances())
    covariance = within + torch.einsum("k,kd,ke->de", weights, apart, apart)
    return (1 - t) * mean, (1 - t) ** 2 * covariance + t**2 * eye


@pytest.fixture(scope="module")
def one():
    """A single Gaussian: every sampler is linear on it."""
    return GaussianWorld(latent=(2, 1, 1), components=1, rank=2, prompts=2).backbone


@pytest.fixture(scope="module")
def ridge():
    """Two modes on the line, unequal in weight and width."""
    means, variances, weights = [-1.5, 1.0], [0.1, 0.3], [0.35, 0.65]
    mixture = Mixture(
        means=torch.tensor(means, dtype=torch.float64)[:, None],
        floors=torch.tensor(variances, dtype=torch.float64),
        directions=torch.ones(2, 1, 1, dtype=torch.float64),
        spikes=torch.zeros(2, 1, dtype=torch.float64),
    )
    book = PromptBook(torch.tensor([weights], dtype=torch.float64).log())
    return GaussianBackbone(mixture, book, (1, 1, 1), torch.eye(12, 1, dtype=torch.float64))


class Counted:
    """A velocity that counts its calls."""

    def __init__(self, velocity):
        self.velocity, self.calls = velocity, 0

    def __call__(self, z_t, t, c):
        self.calls += 1
        return self.velocity(z_t, t, c)


# the kernel


def test_nu_are_those_of_their_sources():
    t = scalar(0.5)
    found = {name: float(nu(t)) for name, nu in NU.items()}
    expected = {"reversal": 2**0.5, "flow_grpo": 0.7, "sigma": 0.5, "square": 0.75}
    assert found == pytest.approx(expected, rel=1e-15)


@SMALL
@given(st.sampled_from(list(NU)), st.floats(0.05, 0.99), st.floats(0.0, 0.98), st.integers(0, 999))
def test_sde_step_is_euler_maruyama_of_equation_11(name, t, share, seed):
    s, nu = share * t, float(NU[name](scalar(t)))
    z, u = Streams.of(seed, rows=3), Streams.of(seed, "u", rows=3)
    z, u = z.normal(torch.empty(3, 2, 1).double()), u.normal(torch.empty(3, 2, 1).double())
    mean, std = SDES[name](lambda *_: u).transition(z, scalar(t), scalar(s), [PROMPT] * 3)
    score = -((1 - t) * u + z) / t
    drift = u - nu**2 / 2 * score
    torch.testing.assert_close(mean, z - (t - s) * drift, rtol=1e-12, atol=1e-12)
    assert float(std) == pytest.approx(nu * (t - s) ** 0.5, rel=1e-12)


@every_sde
def test_first_step_from_noise_takes_nu_at_its_end(build, world):
    """Nu of `reversal` and `flow_grpo` is infinite at t = 1; rows below keep their own."""
    z = Streams.of(0, rows=2).normal(torch.empty(2, *world.backbone.latent).double())
    t, s, c = scalar([1.0, 0.5]), scalar([0.9, 0.4]), [PROMPT] * 2
    sampler = build(world.backbone.velocity)
    mean, std = sampler.transition(z, t, s, c)
    nu = torch.stack([sampler.nu(s[0]), sampler.nu(t[1])])
    torch.testing.assert_close(std.flatten(), nu * 0.1**0.5, rtol=1e-12, atol=0)
    u = world.backbone.velocity(z, t, c)
    expected = z[0] - 0.1 * (u[0] + nu[0] ** 2 / 2 * z[0])  # the score is -z_1
    torch.testing.assert_close(mean[0], expected, rtol=1e-12, atol=1e-12)
    assert bool(mean.isfinite().all())


# one Gaussian: moments propagate exactly


def affine(sampler, t, s):
    """F, f and q of the transition N(F z + f, q^2 I) on a two-dimensional latent."""
    z = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double().reshape(3, 2, 1, 1)
    mean, std = sampler.transition(z, t, s, [PROMPT] * 3)
    f = mean[0].flatten()
    return (mean[1:].flatten(1) - f).T, f, std.flatten()


def propagate(sampler, law, times):
    """Mean and covariance at every time, from the exact ones at the first."""
    mean, covariance = law(float(times[0]))
    yield mean, covariance
    for t, s in zip(times[:-1], times[1:], strict=True):
        along, shift, q = affine(sampler, t, s)
        mean = along @ mean + shift
        covariance = along @ covariance @ along.T + q**2 * torch.eye(2)
        yield mean, covariance


def orders(build, backbone, start):
    """Order of the covariance at one and two thirds of the way and at the end."""
    law = partial(moments, backbone.mixture, backbone.book.log_weights[0])
    all_steps, errors = (96, 192, 384), []
    for steps in all_steps:
        times = grid(steps, start)
        found = list(propagate(build(backbone.velocity), law, times))
        thirds = [steps // 3, 2 * steps // 3, steps]
        exact = {k: law(float(times[k])) for k in thirds}
        errors.append([float((found[k][1] - exact[k][1]).norm()) for k in thirds])
        drifts = [float((found[k][0] - exact[k][0]).norm()) for k in thirds]
        assert max(drifts) < 1e-12  # the mean moves on a straight line: no error at all
    assert max(errors[-1]) < 0.05
    return [order(all_steps, error) for error in np.transpose(errors)]


@every_sampler
def test_covariance_of_a_gaussian_is_kept_to_first_order(build, one):
    assert orders(build, one, 0.9) == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.parametrize("name", ["sigma", "square", "ode"])
def test_the_order_from_pure_noise_is_the_same(name, one):
    assert orders(SAMPLERS[name], one, 1.0) == pytest.approx([1, 1, 1], abs=0.1)


def test_an_infinite_nu_costs_order_from_pure_noise(one):
    """With nu^2 = a^2 t / (1 - t) the first steps' error decays like (h / (1 - t))^(a^2).

    Their noise is as large as z_1 itself however small the step h, and near t = 1 the drift
    forgets it at the rate a^2 / (1 - t): order 0.49 for `flow_grpo`, whereas `reversal`, of
    a^2 = 2, keeps its first order.  (At these steps 0.42; the first-order part fades later.)
    """
    assert orders(SDES["flow_grpo"], one, 1.0)[0] == pytest.approx(0.49, abs=0.1)


def test_reversal_keeps_first_order_from_pure_noise(one):
    first, second, last = orders(SDES["reversal"], one, 1.0)
    assert (first, second) == pytest.approx((1, 1), abs=0.1)
    assert last > 1.9  # its first-order error vanishes at t = 0 when it started at t = 1


@every_sampler
def test_draws_have_the_moments_of_the_kernels_they_come_from(build, one):
    """Eight steps, where the sampler is far from the marginals: this is about the draws."""
    times, particles = grid(8, 0.9), 20_000
    law = partial(moments, one.mixture, one.book.log_weights[0])
    *_, (mean, covariance) = propagate(build(one.velocity), law, times)
    first = law(0.9)[1]
    rng = Streams.of(0, "draws", rows=1)
    z = rng.child("z").normal(torch.empty(1, particles, 2).double())
    z = law(0.9)[0] + z @ torch.linalg.cholesky(first).T
    end = sample(build(crowd(one)), z, times, [PROMPT], rng)[0]
    spread = covariance.diagonal()
    # Standard errors of means and covariances of a Gaussian; four of them are allowed.
    four = 4 * (spread / particles).sqrt()
    assert bool(((end.mean(0) - mean).abs() < four).all())
    four = 4 * ((torch.outer(spread, spread) + covariance**2) / particles).sqrt()
    assert bool(((end.T.cov() - covariance).abs() < four).all())
    exact = law(0.0)[1]
    assert bool(((covariance - exact).abs() > four).any())  # the test can tell the two apart


# mixtures: the marginals


def density(backbone, x, t):
    log_p = Noised.of(backbone.mixture, x[:, None], scalar(t)).log_density()
    return (log_p + backbone.book.weights([PROMPT])).logsumexp(-1).exp()


@every_sde
def test_density_of_a_mixture_is_kept_to_first_order(build, ridge):
    """Chapman-Kolmogorov on a grid, total variation against the exact p_t half-way and at 0.3."""
    x = torch.linspace(-7, 7, 400, dtype=torch.float64)
    dx, sampler, all_steps, errors = float(x[1] - x[0]), build(ridge.velocity), (24, 48, 96), []
    for steps in all_steps:
        times, p, found = grid(steps, 0.9, 0.3), density(ridge, x, 0.9), []
        for t, s in zip(times[:-1], times[1:], strict=True):
            mean, std = sampler.transition(x[:, None, None, None], t, s, [PROMPT] * len(x))
            kernel = torch.distributions.Normal(mean.flatten(), std.flatten())
            p = kernel.log_prob(x[:, None]).exp() @ p * dx
            found.append(p)
        ends = [(found[steps // 2 - 1], 0.6), (found[-1], 0.3)]
        errors.append([float((q - density(ridge, x, t)).abs().sum() * dx / 2) for q, t in ends])
    assert max(errors[-1]) < 0.01
    assert [order(all_steps, error) for error in np.transpose(errors)] == pytest.approx(
        [1, 1], abs=0.15
    )


def deviations(world, build, start, steps, particles):
    """Errors of mean and covariance at three times, relative, with their standard errors.

    Relative means in units of the exact standard deviations, so that all entries compare.
    """
    c, backbone = world.prompts[1], world.backbone
    law = partial(moments, backbone.mixture, backbone.book.weights([c])[0])
    rng = Streams.of(0, "marginals", start, rows=particles)
    z_0 = world.draw([c] * particles, rng.child("z_0"))
    z = noise(z_0, scalar(start), rng.child("eps").normal(z_0)).flatten(1)[None]
    stream, times = Streams.of(0, "path", rows=1), grid(steps, start)
    for k, (t, z_t) in enumerate(trajectory(build(crowd(backbone)), z, times, [c], stream)):
        if k in {steps // 3, 2 * steps // 3, steps}:
            mean, covariance = law(float(t))
            scale = covariance.diagonal().sqrt()
            white = (z_t[0] - mean) / scale
            products = torch.einsum("bi,bj->bij", white, white).flatten(1)
            values, exact = torch.cat([white, products], 1), covariance / torch.outer(scale, scale)
            expected = torch.cat([torch.zeros(2), exact.flatten()])
            yield (values.mean(0) - expected).abs(), values.std(0) / particles**0.5


@pytest.mark.parametrize("start", [0.9, 1.0])
@every_sampler
def test_moments_of_a_mixture_are_kept(build, start, world):
    """To four standard errors plus 3 / steps, the order shown above."""
    for gaps, errors in deviations(world, build, start, 60, 4000):
        assert bool((gaps < 4 * errors + 3 / 60).all())
        assert float(errors.max()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.9, 1.0])
@every_sampler
def test_moments_of_a_mixture_converge(build, start, world):
    """The same with 40 000 particles, where the allowance falls with the steps."""
    for steps in (60, 180):
        for gaps, errors in deviations(world, build, start, steps, 40_000):
            assert bool((gaps < 4 * errors + 3 / steps).all())
            assert float(errors.max()) < 0.012


# mixtures: from one z_t, only the reversal draws from the posterior


def rollouts(ridge, nu, z_t, steps, particles=10_000):
    t = scalar(0.6)
    z = torch.full((1, particles, 1), z_t, dtype=torch.float64)
    rng = Streams.of(0, "rollouts", rows=1)
    return sample(Sde(crowd(ridge), nu), z, time_grid(steps, t), [PROMPT], rng).flatten()


def posterior(ridge, z_t):
    weights = ridge.book.weights([PROMPT])
    exact = Posterior.of(ridge.mixture, weights, scalar([[z_t]]), scalar(0.6))
    return float(exact.mean()), float(exact.covariance())


@pytest.mark.parametrize("z_t", [-0.2, 0.5])
def test_rollouts_of_the_reversal_end_in_the_posterior(z_t, ridge):
    """To four standard errors plus 1 / steps."""
    mean, variance = posterior(ridge, z_t)
    z_0, steps = rollouts(ridge, NU["reversal"], z_t, 96), 96
    assert float(z_0.mean()) == pytest.approx(mean, abs=4 * float(z_0.std()) / 100 + 1 / steps)
    error = float(((z_0 - mean) ** 2).std()) / 100
    assert float(z_0.var()) == pytest.approx(variance, abs=4 * error + 1 / steps)


@pytest.mark.parametrize("name", ["flow_grpo", "sigma", "square"])
def test_rollouts_of_a_smaller_nu_do_not(name, ridge):
    """They keep too much of z_t: at most a third of the variance, and another mean."""
    mean, variance = posterior(ridge, 0.5)
    z_0 = rollouts(ridge, NU[name], 0.5, 48)
    assert float(z_0.var()) < variance / 3
    assert float(z_0.mean()) - mean > 20 * float(z_0.std()) / 100


def test_rollouts_of_a_larger_nu_do_not(ridge):
    """Nu^2 = 4 t / (1 - t) forgets too much of z_t."""
    mean, variance = posterior(ridge, 0.5)
    z_0 = rollouts(ridge, lambda t: (4 * t / (1 - t)).sqrt(), 0.5, 96)
    assert float(z_0.var()) > 1.3 * variance
    assert mean - float(z_0.mean()) > 20 * float(z_0.std()) / 100


def test_the_ode_ends_in_one_point_that_is_not_the_posterior_mean(ridge):
    z = torch.full((3, 1, 1, 1), 0.5, dtype=torch.float64)
    z_0 = sample(Ode(ridge.velocity), z, grid(200, 0.6), [PROMPT] * 3).flatten()
    assert float(z_0.var()) == 0
    assert float(z_0[0]) - posterior(ridge, 0.5)[0] > 0.2


# the ODE: orders and diffusers


def flow(world, z, c, start, stop):
    """The exact flow, by an eighth-order solver at tolerance 1e-11."""

    def rate(t, flat):
        z_t = torch.from_numpy(flat).reshape(z.shape)
        return world.backbone.velocity(z_t, scalar(t), c).flatten().numpy()

    solved = solve_ivp(
        rate, (start, stop), z.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-11
    )
    return torch.from_numpy(solved.y[:, -1]).reshape(z.shape)


@pytest.mark.parametrize(("start", "stop"), [(1.0, 0.0), (0.9, 0.2)])
@pytest.mark.parametrize(
    ("solve", "claimed"),
    [
        (lambda velocity, z, times, c: sample(Ode(velocity), z, times, c), 1),
        (heun, 2),
    ],
    ids=["euler", "heun"],
)
def test_solvers_of_the_ode_have_their_order(solve, claimed, start, stop, world):
    z = Streams.of(0, "order", rows=8).normal(torch.empty(8, *world.backbone.latent).double())
    c, all_steps = [*world.prompts] * 2, (32, 64, 128)
    exact = flow(world, z, c, start, stop)
    errors = [
        float((solve(world.backbone.velocity, z, grid(k, start, stop), c) - exact).abs().max())
        for k in all_steps
    ]
    assert order(all_steps, errors) == pytest.approx(claimed, abs=0.1)


def test_heun_takes_two_velocity_calls_a_step(world):
    velocity = Counted(world.backbone.velocity)
    heun(velocity, torch.zeros(1, 2, 1, 1).double(), grid(5), [PROMPT])
    assert velocity.calls == 10


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_steps_as_diffusers_does(shift, world):
    from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: PLC0415 - seconds to import

    steps, c = 7, [*world.prompts]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    times = time_grid(steps, scalar(1.0), shift=shift)
    torch.testing.assert_close(scheduler.sigmas.double(), times, rtol=0, atol=1e-6)
    z = Streams.of(0, "diffusers", rows=4).normal(torch.empty(4, 2, 1, 1).double())
    theirs = z.clone()
    for timestep in scheduler.timesteps:
        u = world.backbone.velocity(theirs, timestep.double() / 1000, c)
        theirs = scheduler.step(u, timestep, theirs).prev_sample
    ours = sample(Ode(world.backbone.velocity), z, times, c)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)  # diffusers steps in float32


# the loop


@every_sampler
def test_trajectory_visits_every_time_and_begins_with_its_input(build, world):
    velocity = Counted(world.backbone.velocity)
    z, times = torch.ones(3, 2, 1, 1).double(), grid(6, 0.8, 0.2)
    rng, again = Streams.of(0, rows=3), Streams.of(0, rows=3)
    steps = list(trajectory(build(velocity), z, times, [PROMPT] * 3, rng))
    assert [float(step.t) for step in steps] == times.tolist()
    assert torch.equal(steps[0].z_t, z)
    assert velocity.calls == 6
    end = sample(build(velocity), z, times, [PROMPT] * 3, again)
    assert torch.equal(end, steps[-1].z_t)


@every_sampler
def test_a_grid_that_stops_at_tau_stops_the_sampler_there(build, world):
    """The first steps of a longer walk, drawn alike, are the shorter walk."""
    z, times, c = torch.ones(3, 2, 1, 1).double(), grid(10), [PROMPT] * 3
    sampler = build(world.backbone.velocity)
    whole = list(trajectory(sampler, z, times, c, Streams.of(0, rows=3)))
    short = sample(sampler, z, times[:5], c, Streams.of(0, rows=3))
    assert torch.equal(short, whole[4].z_t)
    assert float(whole[4].t) == pytest.approx(0.6, abs=1e-15)


@every_sde
def test_proposals_share_one_velocity_call(build, world):
    velocity, rng = Counted(world.backbone.velocity), Streams.of(0, rows=2)
    z, c = torch.ones(2, 2, 1, 1).double(), [PROMPT] * 2
    kernel = build(velocity).transition(z, scalar(0.5), scalar(0.4), c)
    proposals = torch.stack([kernel.draw(rng.child(m)) for m in range(4000)])
    assert velocity.calls == 1
    std = float(kernel.std)
    gap = (proposals.mean(0) - kernel.mean).abs().max()
    assert float(gap) < 4.5 * std / 4000**0.5
    assert proposals.std(0).flatten().tolist() == pytest.approx([std] * 4, rel=4.5 / 8000**0.5)


@every_sde
def test_a_stochastic_sampler_wants_rng(build, world):
    z, sampler = torch.ones(1, 2, 1, 1).double(), build(world.backbone.velocity)
    assert sampler.stochastic
    with pytest.raises(ValueError, match="^expected rng: Sde is stochastic; got None$"):
        sample(sampler, z, grid(2), [PROMPT])


def test_a_deterministic_sampler_leaves_rng_alone(world):
    z, rng = torch.ones(2, 2, 1, 1).double(), Streams.of(0, rows=2)
    sampler = Ode(world.backbone.velocity)
    assert not sampler.stochastic
    one = sample(sampler, z, grid(3), [PROMPT] * 2, rng)
    assert torch.equal(one, sample(sampler, z, grid(3), [PROMPT] * 2))
    assert torch.equal(rng.normal(z), Streams.of(0, rows=2).normal(z))


@every_sampler
@pytest.mark.parametrize("stop", [0.0, 0.15])
def test_rows_at_times_of_their_own_equal_one_by_one(build, stop, world):
    start = scalar([1.0, 0.9, 0.3])
    z = Streams.of(0, "rows", rows=3).normal(torch.empty(3, 2, 1, 1).double())
    c, sampler = [*world.prompts[:3]], build(world.backbone.velocity)
    times = time_grid(6, start, stop=stop)
    together = sample(sampler, z, times, c, Streams.of(1, rows=3))
    for row in range(3):
        one, rng = slice(row, row + 1), Streams.of(1, rows=3)
        alone = sample(sampler, z[one], times[:, row], [c[row]], rng[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-11, atol=1e-11)
        assert math.isfinite(float(alone.sum()))


@every_sampler
def test_sampling_is_differentiable(build, world):
    """Backpropagation through four steps equals central differences."""
    sampler, c, times = build(world.backbone.velocity), [PROMPT], grid(4, 0.9)

    def end(z):
        return sample(sampler, z, times, c, Streams.of(0, rows=1))

    z = scalar([0.3, -0.7]).reshape(1, 2, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(end, z, eps=1e-6, atol=1e-7)
