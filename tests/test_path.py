"""The path's identities against autodiff and closed forms of a Gaussian, in float64."""

import math
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from stitchvm import path

D = 3
EYE = torch.eye(D, dtype=torch.float64)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SMALL = settings(max_examples=40, deadline=None)
TIME = st.floats(0.02, 1.0)
SEED = st.integers(0, 10_000)


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Gaussian:
    """z_0 ~ N(m, C) and what the path makes of it, by the rules for jointly normal vectors."""

    def __init__(self, seed):
        root = normal(seed, D, D)
        self.m, self.c = normal(seed + 1, D), root @ root.T + 0.1 * EYE

    def marginal(self, t):
        return (1 - t) * self.m, (1 - t) ** 2 * self.c + t**2 * EYE

    def regress(self, z_t, t, of_z_0, of_eps):
        """E[of_z_0 z_0 + of_eps eps | z_t]."""
        mean, s = self.marginal(t)
        cross = of_z_0 * (1 - t) * self.c + of_eps * t * EYE
        return of_z_0 * self.m + (z_t - mean) @ torch.linalg.solve(s, cross)

    def velocity(self, z_t, t):
        return self.regress(z_t, t, -1, 1)


def points(law, seed, t, rows=4):
    mean, s = law.marginal(t)
    return mean + normal(seed + 2, rows, D) @ torch.linalg.cholesky(s).T


# noise, denoise, score


@SMALL
@given(SEED, st.floats(0.0, 1.0))
def test_noise_is_the_straight_line_of_every_row(seed, t):
    z_0, eps, times = normal(seed, 3, 2, 2), normal(seed + 1, 3, 2, 2), [0.0, 1.0, t]
    z_t = path.noise(z_0, torch.tensor(times, dtype=torch.float64), eps)
    assert torch.equal(z_t[0], z_0[0])
    assert torch.equal(z_t[1], eps[1])
    torch.testing.assert_close(z_t[2], (1 - t) * z_0[2] + t * eps[2], rtol=1e-15, atol=1e-15)
    one = path.noise(z_0, scalar(t), eps)
    torch.testing.assert_close(one[2], z_t[2], rtol=0, atol=0)


@SMALL
@given(SEED, TIME)
def test_score_is_the_gradient_of_the_log_density(seed, t):
    law = Gaussian(seed)
    z_t = points(law, seed, t).requires_grad_()
    (expected,) = torch.autograd.grad(
        MultivariateNormal(*law.marginal(t)).log_prob(z_t).sum(), z_t
    )
    found = path.score(z_t, scalar(t), law.velocity(z_t, t))
    torch.testing.assert_close(found, expected, **CLOSE)


@SMALL
@given(SEED, st.floats(0.0, 1.0))
def test_denoise_is_the_posterior_mean(seed, t):
    law = Gaussian(seed)
    z_t = points(law, seed, t)
    found = path.denoise(z_t, scalar(t), law.velocity(z_t, t))
    torch.testing.assert_close(found, law.regress(z_t, t, 1, 0), **CLOSE)


@SMALL
@given(SEED, TIME)
def test_denoised_and_score_make_up_the_point(seed, t):
    """z_t = (1 - t) E[z_0 | z_t] + t E[eps | z_t] with E[eps | z_t] = -t score, whatever u is."""
    z_t, u = normal(seed, 4, D), normal(seed + 1, 4, D)
    z_0, eps = path.denoise(z_t, scalar(t), u), -t * path.score(z_t, scalar(t), u)
    torch.testing.assert_close(eps - z_0, u, **CLOSE)
    torch.testing.assert_close(path.noise(z_0, scalar(t), eps), z_t, **CLOSE)


@pytest.mark.parametrize(
    "call",
    [
        path.noise,
        path.denoise,
        path.score,
        lambda z, t, eps: path.bridge(z, scalar(0.1), t, eps),
        lambda z, t, eps: path.bridge(z, t, scalar(0.9), eps),
    ],
    ids=["noise", "denoise", "score", "bridge t", "bridge tau"],
)
@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (4, 1, 1)])
def test_a_time_of_wrong_shape_is_refused(call, shape):
    z, t = normal(0, 4, 2, 1), torch.full(shape, 0.5, dtype=torch.float64)
    message = f"expected t of shape () or (4,), got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(z, t, z)


# bridge


def coefficients(tau, t):
    """What the bridge multiplies z_tau and eps with: rows z_t and u, columns z_tau and eps."""
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    of_anchor = path.bridge(one, scalar(tau), scalar(t), none)
    of_noise = path.bridge(none, scalar(tau), scalar(t), one)
    return [[float(a), float(b)] for a, b in zip(of_anchor, of_noise, strict=True)]


PAIR = st.tuples(st.floats(0.0, 0.95), st.floats(0.02, 1.0)).map(
    lambda pair: (pair[0], pair[0] + (1 - pair[0]) * pair[1])
)


@SMALL
@given(PAIR)
def test_bridge_coefficients_are_the_papers(pair):
    tau, t = pair
    (abar, sbar), _ = coefficients(tau, t)
    assert abar == pytest.approx((1 - t) / (1 - tau), abs=1e-12)
    assert sbar == pytest.approx(math.sqrt(t**2 - ((1 - t) / (1 - tau) * tau) ** 2), abs=1e-12)


@SMALL
@given(PAIR)
def test_noising_to_tau_and_on_is_noising_at_once(pair):
    tau, t = pair
    (abar, sbar), _ = coefficients(tau, t)
    assert abar * (1 - tau) == pytest.approx(1 - t, abs=1e-12)
    assert (abar * tau) ** 2 + sbar**2 == pytest.approx(t**2, rel=1e-12)


@SMALL
@given(PAIR, st.floats(0.1, 0.9))
def test_two_bridges_are_one(pair, between):
    tau, t = pair
    middle = tau + between * (t - tau)
    (whole, spread), _ = coefficients(tau, t)
    (first, spread_1), _ = coefficients(tau, middle)
    (second, spread_2), _ = coefficients(middle, t)
    assert second * first == pytest.approx(whole, abs=1e-12)
    assert (second * spread_1) ** 2 + spread_2**2 == pytest.approx(spread**2, rel=1e-9)


@SMALL
@given(SEED, PAIR)
def test_bridge_target_is_the_time_derivative_of_the_point(seed, pair):
    tau, t = pair
    z_tau, eps = normal(seed, 4, D), normal(seed + 1, 4, D)
    _, derivative = torch.autograd.functional.jvp(
        lambda t: path.bridge(z_tau, scalar(tau), t, eps).z_t, scalar(t), scalar(1.0)
    )
    u = path.bridge(z_tau, scalar(tau), scalar(t), eps).u
    torch.testing.assert_close(u, derivative, **CLOSE)


@SMALL
@given(SEED, PAIR)
def test_bridge_target_has_the_marginal_velocity_as_its_mean(seed, pair):
    """E[u | z_t] with z_tau ~ p_tau, by regression of one normal vector on another."""
    tau, t = pair
    law = Gaussian(seed)
    mean, s = law.marginal(tau)
    (abar, sbar), (abar_dot, sbar_dot) = coefficients(tau, t)
    z_t = points(law, seed, t)
    variance = abar**2 * s + sbar**2 * EYE
    cross = abar_dot * abar * s + sbar_dot * sbar * EYE
    expected = abar_dot * mean + (z_t - abar * mean) @ torch.linalg.solve(variance, cross)
    torch.testing.assert_close(law.velocity(z_t, t), expected, rtol=1e-8, atol=1e-8)


def test_a_bridge_from_clean_data_is_the_path_itself():
    z_0, eps, t = normal(0, 5, D), normal(1, 5, D), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    found = path.bridge(z_0, scalar(0.0), t, eps)
    torch.testing.assert_close(found.z_t, path.noise(z_0, t, eps), rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(found.u, eps - z_0, rtol=1e-15, atol=1e-15)


def test_bridge_takes_one_time_a_row():
    z, eps = normal(0, 3, D), normal(1, 3, D)
    tau = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    t = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64)
    together = path.bridge(z, tau, t, eps)
    for row in range(3):
        alone = path.bridge(z[row : row + 1], tau[row], t[row], eps[row : row + 1])
        torch.testing.assert_close(together.z_t[row : row + 1], alone.z_t, rtol=0, atol=0)
        torch.testing.assert_close(together.u[row : row + 1], alone.u, rtol=0, atol=0)


def test_bridge_target_spreads_like_one_over_the_root_of_the_gap():
    near, far = (coefficients(0.4, 0.4 + gap)[1][1] for gap in (1e-6, 1e-4))
    assert near / far == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize(
    ("tau", "t", "gap"), [(0.5, 0.5, "0"), (0.5, 0.25, "-0.25"), (0.25, [0.75, 0.125], "-0.125")]
)
def test_bridge_only_goes_up(tau, t, gap):
    z, t = normal(0, 2, D), torch.tensor(t, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"expected t > tau, got a smallest gap of {gap}$"):
        path.bridge(z, scalar(tau), t, z)


# match_snr


def test_half_noise_on_a_large_latent_is_a_seventeenth_on_a_small_one():
    assert path.match_snr(0.5, 64) == pytest.approx(1 / 17, rel=1e-15)


SIZE = st.integers(1, 256).map(lambda side: side**2)


@SMALL
@given(st.floats(0.01, 0.99), SIZE, SIZE)
def test_matched_times_have_one_signal_to_noise_ratio(t, positions, reference):
    matched = path.match_snr(t, positions, reference)
    ours, theirs = ((1 - matched) / matched) ** 2 * positions, ((1 - t) / t) ** 2 * reference
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert path.match_snr(matched, reference, positions) == pytest.approx(t, rel=1e-9)
    assert path.match_snr(t, positions, positions) == pytest.approx(t, rel=1e-12)


# time_grid

STEPS, SHIFT = st.integers(1, 40), st.floats(0.1, 10.0)
ENDS = st.tuples(st.floats(0.0, 0.9), st.floats(0.05, 1.0)).map(
    lambda pair: (pair[0] + (1 - pair[0]) * pair[1], pair[0])
)


def warp(t, shift):
    return shift * t / (1 + (shift - 1) * t)


@SMALL
@given(STEPS, ENDS, SHIFT)
def test_grid_descends_between_its_exact_ends(steps, ends, shift):
    times = path.time_grid(steps, scalar(ends[0]), stop=ends[1], shift=shift)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (float(times[0]), float(times[-1])) == ends
    assert bool((times.diff() < 0).all())


@SMALL
@given(STEPS, SHIFT)
def test_shift_warps_an_even_grid(steps, shift):
    times = path.time_grid(steps, scalar(1.0), shift=shift)
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(times, warp(even, shift), rtol=1e-12, atol=1e-12)


@SMALL
@example(1, (1.0, 0.0), 1.0, 1 / 3)  # where 1 is warped to a little more
@given(STEPS, ENDS, SHIFT, SHIFT)
def test_shifts_compose_by_multiplication(steps, ends, shift, more):
    times = path.time_grid(steps, scalar(ends[0]), stop=ends[1], shift=shift)
    start, stop = (min(warp(end, more), 1.0) for end in ends)
    expected = path.time_grid(steps, scalar(start), stop=stop, shift=shift * more)
    torch.testing.assert_close(warp(times, more), expected, rtol=1e-10, atol=1e-10)


@SMALL
@given(st.integers(2, 40), ENDS, SHIFT, st.data())
def test_the_rest_of_a_grid_is_the_grid_from_there(steps, ends, shift, data):
    done = data.draw(st.integers(1, steps - 1))
    times = path.time_grid(steps, scalar(ends[0]), stop=ends[1], shift=shift)
    rest = path.time_grid(steps - done, times[done], stop=ends[1], shift=shift)
    torch.testing.assert_close(rest, times[done:], rtol=1e-10, atol=1e-10)


def test_rows_have_grids_of_their_own():
    start = torch.tensor([1.0, 0.8, 0.25], dtype=torch.float64)
    times = path.time_grid(7, start, stop=0.1, shift=3.0)
    assert times.shape == (8, 3)
    for row, t in enumerate(start):
        alone = path.time_grid(7, t, stop=0.1, shift=3.0)
        torch.testing.assert_close(times[:, row], alone, rtol=0, atol=1e-15)


def test_a_whole_number_is_a_time_too():
    assert path.time_grid(4, start=1).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"steps": 4, "shift": 0.0}, "expected shift > 0, got 0.0"),
        ({"steps": 4, "shift": -1.0}, "expected shift > 0, got -1.0"),
        *(
            (
                {"steps": 4, "start": torch.tensor(start), "stop": stop},
                f"expected 0 <= stop < start <= 1, got stop={stop}, start={torch.tensor(start)}",
            )
            for start, stop in (
                (0.5, 0.5),
                (0.25, 0.5),
                (1.5, 0.0),
                (0.5, -0.25),
                (math.nan, 0.0),
                ([1.0, 0.25], 0.5),
                ([1.0, 1.25], 0.5),
            )
        ),
    ],
)
def test_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        path.time_grid(**arguments)
