"""The Gaussian world against dense linear algebra, quadrature, brute force and differences."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import eigh
from scipy.special import expit, log_softmax, logsumexp, softmax
from scipy.stats import multivariate_normal

from bench.worlds.gaussian import CURVATURE, GaussianWorld, truth
from bench.worlds.gaussian.mixture import Mixture, Noised, Posterior
from bench.worlds.gaussian.rewards import GAIN
from bench.worlds.gaussian.truth import Truth, embedding_map
from stitchvm.backbone import NULL
from stitchvm.path import noise, score
from stitchvm.reward import Features, Hidden, Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, value_and_gradient

REWARDS = GaussianWorld.rewards
POSTERIORS = ("data", "prompt")
SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the paper's section 5
LAM = 0.8
TARGETS = [
    Target(value, p, lam) for value, lam in (("mean", None), ("soft", LAM)) for p in POSTERIORS
]
EVERY = settings(max_examples=25, deadline=None)


@cache
def small():
    return GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=4)


@cache
def default():
    return GaussianWorld()


def time(t):
    return torch.tensor(t, dtype=torch.float64)


def prompts_of(world, rows):
    return [world.prompts[row % len(world.prompts)] for row in range(rows)]


def noisy(world, t, rows=4):
    """Forward-noised latents of the world's own prompts: z_t, t and c."""
    c, rng = prompts_of(world, rows), Streams.of(0, "noisy", rows=rows)
    z_0 = world.draw(c, rng.child("z_0"))
    return noise(z_0, time(t), rng.child("eps").normal(z_0)), time(t), c


def seen(posterior, c):
    """The prompts a posterior is conditioned on."""
    return c if posterior == "prompt" else [NULL] * len(c)


def condition(mixture, log_weights, z_t, t):
    """rho (K,), means (K, d) and covariances (K, d, d) of z_0 | z_t of one flat latent.

    By conditioning the joint Gaussian of (z_0, z_t), one component after the other.
    """
    a, d = 1 - t, len(z_t)
    log_p, means, covariances = [], [], []
    for m, cov in zip(mixture.means.numpy(), mixture.covariances().numpy(), strict=True):
        cross, noised = a * cov, a * a * cov + t * t * np.eye(d)
        gain = np.linalg.solve(noised, cross).T
        log_p.append(multivariate_normal(a * m, noised).logpdf(z_t))
        means.append(m + gain @ (z_t - a * m))
        covariances.append(cov - gain @ cross)
    return softmax(log_weights + np.array(log_p)), np.array(means), np.array(covariances)


def conditioned(world, posterior, z_t, t, c):
    """What `condition` says, row by row."""
    log_weights = world.book.weights(seen(posterior, c)).numpy()
    rows = zip(log_weights, z_t.flatten(1).numpy(), t.expand(len(z_t)).tolist(), strict=True)
    return [condition(world.backbone.mixture, *row) for row in rows]


@cache
def case(world, posterior, t, rows=2):
    """Noisy latents z_t, t, c of a world, and their conditioned posteriors."""
    inputs = noisy(world(), t, rows)
    return *inputs, conditioned(world(), posterior, *inputs)


def brute_prior(world, c, count, seed=0):
    """Clean latents of one prompt, (count, *latent), by numpy alone."""
    random, mixture = np.random.default_rng(seed), world.backbone.mixture
    weights = world.book.weights([c])[0].exp().numpy()
    k = random.choice(len(weights), size=count, p=weights / weights.sum())
    roots = np.linalg.cholesky(mixture.covariances().numpy())
    xi = random.normal(size=(count, roots.shape[1]))
    flat = mixture.means.numpy()[k] + np.einsum("nde,ne->nd", roots[k], xi)
    return torch.from_numpy(flat).unflatten(1, world.backbone.latent)


def reward_at(world, reward, z_0, c):
    """The reward of clean latents under one prompt, as an array."""
    return reward(world.backbone.decode(z_0), [c] * len(z_0)).numpy()


def standard_errors(draws, expected, weights=None):
    """How many standard errors a (self-normalised) mean of draws (n, ...) is off, at most."""
    draws = np.asarray(draws)
    weights = np.full(len(draws), 1 / len(draws)) if weights is None else weights / weights.sum()
    mean = np.tensordot(weights, draws, 1)
    error = np.sqrt(np.tensordot(weights**2, (draws - mean) ** 2, 1))
    return float(np.max(abs(mean - np.asarray(expected)) / error))


def outer(draws, mean):
    apart = np.asarray(draws) - np.asarray(mean)
    return np.einsum("nd,ne->nde", apart, apart)


# Mixtures


@st.composite
def mixtures(draw):
    """Any mixture of up to 4 components in up to 5 dimensions, with noised latents of it."""
    components, d = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rank = draw(st.integers(0, d))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixture = Mixture(
        means=torch.from_numpy(random.normal(size=(components, d))),
        floors=torch.from_numpy(random.uniform(0.1, 2, components)),
        directions=torch.from_numpy(np.linalg.qr(random.normal(size=(components, d, d)))[0])[
            ..., :rank
        ],
        spikes=torch.from_numpy(random.uniform(-0.05, 3, (components, rank))),
    )
    log_weights = torch.from_numpy(log_softmax(random.normal(size=(3, components)), 1))
    z_t = torch.from_numpy(2 * random.normal(size=(3, d)))
    return mixture, log_weights, z_t, torch.from_numpy(random.uniform(0.05, 1, 3))


@EVERY
@given(mixtures())
def test_covariances_are_a_floor_and_spikes_along_directions(given_mixture):
    mixture = given_mixture[0]
    for k, covariance in enumerate(mixture.covariances().numpy()):
        u, d = mixture.directions[k].numpy(), mixture.means.shape[1]
        dense = float(mixture.floors[k]) * np.eye(d) + u @ np.diag(mixture.spikes[k]) @ u.T
        np.testing.assert_allclose(covariance, dense, atol=1e-13)


@EVERY
@given(mixtures())
def test_from_covariances_keeps_means_and_covariances(given_mixture):
    mixture = given_mixture[0]
    again = Mixture.from_covariances(mixture.means, mixture.covariances())
    torch.testing.assert_close(again.means, mixture.means)
    torch.testing.assert_close(again.covariances(), mixture.covariances(), atol=1e-12, rtol=0)
    assert (again.spikes >= 0).all()


@EVERY
@given(mixtures())
def test_noised_densities_are_those_of_dense_gaussians(given_mixture):
    mixture, _, z_t, t = given_mixture
    found = Noised.of(mixture, z_t, t).log_density()
    a, eye = 1 - t[:, None], torch.eye(z_t.shape[1], dtype=torch.float64)
    for k, covariance in enumerate(mixture.covariances()):
        noised = a[..., None] ** 2 * covariance + t[:, None, None] ** 2 * eye
        dense = torch.distributions.MultivariateNormal(a * mixture.means[k], noised)
        torch.testing.assert_close(found[:, k], dense.log_prob(z_t), rtol=1e-10, atol=1e-10)


@EVERY
@given(mixtures(), st.integers(1, 3))
def test_posterior_is_the_conditional_of_the_joint_gaussian(given_mixture, q):
    mixture, log_weights, z_t, t = given_mixture
    posterior = Posterior.of(mixture, log_weights, z_t, t)
    e = np.random.default_rng(q).normal(size=(q, z_t.shape[1]))
    projected = posterior.project(torch.from_numpy(e))
    exact = {"rtol": 1e-9, "atol": 1e-10}
    for row in range(len(z_t)):
        rho, means, covariances = condition(
            mixture, log_weights[row].numpy(), z_t[row].numpy(), float(t[row])
        )
        mean = rho @ means
        np.testing.assert_allclose(posterior.log_rho[row].exp(), rho, **exact)
        np.testing.assert_allclose(posterior.means[row], means, **exact)
        np.testing.assert_allclose(posterior.mean()[row], mean, **exact)
        total = np.einsum("k,kde->de", rho, covariances)
        total = total + np.einsum("k,kde->de", rho, outer(means, mean))
        np.testing.assert_allclose(posterior.covariance()[row], total, **exact)
        np.testing.assert_allclose(projected[0][row], means @ e.T, **exact)
        np.testing.assert_allclose(projected[1][row], e @ covariances @ e.T, **exact)


@EVERY
@given(mixtures())
def test_one_time_for_all_rows_is_that_time_repeated(given_mixture):
    mixture, log_weights, z_t, t = given_mixture
    one = Posterior.of(mixture, log_weights, z_t, t[0])
    many = Posterior.of(mixture, log_weights, z_t, t[:1].expand(3))
    torch.testing.assert_close(one.covariance(), many.covariance(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.mean(), many.mean(), rtol=1e-12, atol=1e-12)


@EVERY
@given(mixtures())
def test_noised_mean_residuals_and_score_agree_with_the_density(given_mixture):
    mixture, log_weights, z_t, t = given_mixture
    z_t = z_t.requires_grad_()
    noised = Noised.of(mixture, z_t, t)
    log_p = log_weights + noised.log_density()
    (expected,) = torch.autograd.grad(log_p.logsumexp(-1).sum(), z_t, retain_graph=True)
    rho = log_p.softmax(-1)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(noised.score(rho), expected, **close)
    residuals = torch.einsum("bk,bkd->bd", rho, noised.residuals())
    torch.testing.assert_close(-residuals, expected, **close)
    mean = Posterior.of(mixture, log_weights, z_t, t).mean()
    torch.testing.assert_close(noised.mean(rho), mean, **close)


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_posterior_draws_have_the_conditional_moments(t):
    world, rows = small(), 20_000
    z_t, t, c = noisy(world, t, rows=1)
    ((rho, means, covariances),) = conditioned(world, "prompt", z_t, t, c)
    draws = world.posterior("prompt")(
        z_t.expand(rows, -1, -1, -1), t, c * rows, Streams.of(0, "draws", rows=rows)
    ).flatten(1)
    mean = rho @ means
    total = np.einsum("k,kde->de", rho, covariances + outer(means, mean))
    assert standard_errors(draws, mean) < 4
    assert standard_errors(outer(draws, mean), total) < 4


def test_posterior_draws_of_clean_latents_are_these_latents():
    z_0, t, c = noisy(small(), 0.0)
    draws = small().posterior("data")(z_0, t, c, Streams.of(1, rows=4))
    torch.testing.assert_close(draws, z_0, rtol=1e-12, atol=1e-12)


def test_posterior_draws_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="expected the data or prompt posterior, got 'model'"):
        small().posterior("model")
    with pytest.raises(ValueError, match="expected rng, one stream per latent, got None"):
        small().posterior("data")(*noisy(small(), 0.5), None)


@pytest.mark.parametrize("c", ["scene 2", NULL])
def test_draws_have_the_moments_of_their_prompt(c):
    world, rows = small(), 20_000
    draws = world.draw([c] * rows, Streams.of(0, "draws", rows=rows)).flatten(1)
    weights, mixture = softmax(world.book.weights([c])[0].numpy()), world.backbone.mixture
    mean = weights @ mixture.means.numpy()
    total = np.einsum(
        "k,kde->de", weights, mixture.covariances().numpy() + outer(mixture.means, mean)
    )
    assert standard_errors(draws, mean) < 4
    assert standard_errors(outer(draws, mean), total) < 4


def test_draws_depend_on_their_own_stream_alone():
    world, rng = small(), Streams.of(0, "rows", rows=6)
    c = prompts_of(world, 6)
    together = world.draw(c, rng)
    torch.testing.assert_close(world.draw(c[2:4], Streams(rng.seeds[2:4])), together[2:4])


# Backbone


@pytest.mark.parametrize("t", [1e-3, *SIGMAS, 1.0])
@pytest.mark.parametrize("c", ["scene 1", NULL])
def test_velocity_is_the_distance_to_the_posterior_mean_over_t(t, c):
    world = small()
    z_t, t, _ = noisy(world, t)
    u = world.backbone.velocity(z_t, t, [c] * 4)
    mean = [rho @ means for rho, means, _ in conditioned(world, "prompt", z_t, t, [c] * 4)]
    expected = (z_t.flatten(1).numpy() - np.array(mean)) / float(t)
    np.testing.assert_allclose(u.flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world", [small, default])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_velocity_implies_the_score_of_the_density(world, t):
    """Eq. 25 against autograd through log p_t(z_t | c)."""
    world = world()
    z_t, t, c = noisy(world, t)
    z_t = z_t.requires_grad_()
    log_density = Noised.of(world.backbone.mixture, z_t.flatten(1), t).log_density()
    log_p = (world.book.weights(c) + log_density).logsumexp(-1)
    (expected,) = torch.autograd.grad(log_p.sum(), z_t)
    found = score(z_t, t, world.backbone.velocity(z_t, t, c))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("world", [small, default])
def test_velocity_is_exact_at_both_ends_and_continuous_there(world):
    world = world()
    z, _, c = noisy(world, 0.3)
    velocity, ends = world.backbone.velocity, time([0.0, 0.0, 1.0, 1.0])
    prior = (world.book.weights(c).softmax(-1) @ world.backbone.mixture.means).view_as(z)
    expected = torch.cat([-z[:2], (z - prior)[2:]])  # E[eps - z_0 | z_t] at t = 0 and t = 1
    torch.testing.assert_close(velocity(z, ends, c), expected, rtol=1e-12, atol=1e-12)
    inside = time([1e-7, 1e-7, 1 - 1e-7, 1 - 1e-7])
    torch.testing.assert_close(velocity(z, inside, c), expected, rtol=0, atol=1e-3)


def test_null_velocity_averages_those_of_the_prompts():
    """u(z_t) = sum_c p(c | z_t) u(z_t, c): data are the even mixture of the prompts."""
    world = small()
    z_t, t, _ = noisy(world, 0.6, rows=3)
    log_density = Noised.of(world.backbone.mixture, z_t.flatten(1), t).log_density()
    log_p = (world.book.weights(world.prompts)[:, None] + log_density).logsumexp(-1)
    each = torch.stack([world.backbone.velocity(z_t, t, [c] * 3) for c in world.prompts])
    expected = torch.einsum("pb,pbchw->bchw", log_p.softmax(0), each)
    found = world.backbone.velocity(z_t, t, [NULL] * 3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    null = (world.book.weights([NULL] * 3) + log_density).logsumexp(-1)
    torch.testing.assert_close(null, log_p.logsumexp(0) - math.log(4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prompts", [1, 4, 64])
def test_null_weights_are_the_mean_over_prompts(prompts):
    book = GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=prompts).book
    weights = book.log_weights.exp()
    torch.testing.assert_close(weights[-1], weights[:-1].mean(0), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("i", [1, 2, 3, 4])
def test_trunk_resumes_to_the_velocity(i):
    backbone = small().backbone
    z_t, t, c = noisy(small(), 0.4)
    state = backbone.trunk(z_t, t, i, c)
    assert sum(work is not None for work in state.hidden) == (1, 2, 4, 5)[i - 1]  # no block more
    u = backbone.velocity(z_t, t, c)
    torch.testing.assert_close(backbone.resume(state), u, rtol=0, atol=0)
    for k in range(i, 5):
        features = backbone.advance(state, k).features
        torch.testing.assert_close(features, backbone.trunk(z_t, t, k, c).features)
    null = backbone.resume(backbone.trunk(z_t, t, i))
    torch.testing.assert_close(null, backbone.velocity(z_t, t, [NULL] * 4), rtol=0, atol=0)


def test_trunk_features_are_what_the_blocks_are_named_after():
    backbone, k = small().backbone, 3
    z_t, t, c = noisy(small(), 0.4)
    noised = Noised.of(backbone.mixture, z_t.flatten(1), t)
    log_rho = small().book.weights(c) + noised.log_density()
    rho = log_rho.softmax(-1)
    u = backbone.velocity(z_t, t, c)
    one, two, three, four = (backbone.trunk(z_t, t, i, c).features for i in (1, 2, 3, 4))
    residuals = noised.residuals().view(4, k, 2, 2, 1)
    torch.testing.assert_close(one.view(4, k, 2, 2, 1), residuals)
    torch.testing.assert_close(
        two[:, : 2 * k].view(4, k, 2, 2, 1), residuals * rho.view(4, k, 1, 1, 1)
    )
    torch.testing.assert_close(two[:, 2 * k :], rho.view(4, k, 1, 1).expand(-1, -1, 2, 1))
    torch.testing.assert_close(three, torch.cat([z_t - t * u, score(z_t, t, u)], 1))
    torch.testing.assert_close(four, u)


@pytest.mark.parametrize("i", [0, 5])
def test_trunk_refuses_blocks_it_has_not(i):
    z_t, t, _ = noisy(small(), 0.4)
    with pytest.raises(ValueError, match=f"expected i in 1..4, got {i}"):
        small().backbone.trunk(z_t, t, i)


@pytest.mark.parametrize("world", [small, default])
def test_encode_inverts_decode(world):
    backbone = world().backbone
    z, _, _ = noisy(world(), 0.3)
    x = backbone.decode(z)
    assert x.shape == (4, 3, *(2 * n for n in z.shape[2:]))
    torch.testing.assert_close(backbone.encode(x), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.square().sum(), z.square().sum())  # an isometry


# Rewards


@pytest.mark.parametrize("name", REWARDS)
def test_reward_is_its_formula_at_every_entry(name):
    world = small()
    reward = world.reward(name)
    z_0, _, c = noisy(world, 0.0)
    x = world.backbone.decode(z_0)
    e = (z_0.flatten(1) @ embedding_map(world.backbone, reward).T).numpy()
    p = [world.prompts.index(text) for text in c]
    match name:
        case "linear":
            expected = (reward.w.numpy()[p] * e).sum(1)
        case "quadratic":
            expected = (reward.a.numpy()[p] * e**2).sum(1)
        case "sigmoid":
            expected = expit(2 * (reward.w.numpy()[p] * e).sum(1) + reward.b.numpy()[p])
    np.testing.assert_allclose(reward(x, c), expected, rtol=1e-11, atol=1e-12)
    for j in (1, 2):
        embedding = reward.tail(reward.head(x, j), j).embedding
        np.testing.assert_allclose(reward.score(embedding, c), expected, rtol=1e-11, atol=1e-12)
    entering = reward.advance(reward.head(x, 1), 1, 2).map
    np.testing.assert_array_equal(entering, reward.head(x, 2).map)


def test_reward_refuses_blocks_it_has_not():
    with pytest.raises(ValueError, match=r"expected j in 1\.\.2, got 3"):
        small().reward("linear").head(torch.zeros(1, 3, 4, 2, dtype=torch.float64), 3)


def test_embedding_of_data_has_unit_covariance():
    world = default()
    e = embedding_map(world.backbone, world.reward("linear")).numpy()
    mixture, weights = world.backbone.mixture, softmax(world.book.weights([NULL])[0].numpy())
    apart = mixture.means.numpy() - weights @ mixture.means.numpy()
    total = np.einsum("k,kde->de", weights, mixture.covariances().numpy())
    total = total + np.einsum("k,kd,ke->de", weights, apart, apart)
    np.testing.assert_allclose(e @ total @ e.T, np.eye(16), atol=1e-12)


def test_reward_scales_are_those_promised():
    """Under the data a linear reward has unit variance; a third of the sigmoids is saturated."""
    world, rows = default(), 2000
    z_0 = world.draw([NULL] * rows, Streams.of(0, "scales", rows=rows))
    x, c = world.backbone.decode(z_0), prompts_of(world, rows)
    assert abs(float(world.reward("linear")(x, c).var()) - 1) < 0.1
    r = world.reward("sigmoid")(x, c)
    assert 0.28 < float(((r < 0.1) | (r > 0.9)).double().mean()) < 0.42


def integrate(f, mean, std):
    """E[f(mean + std x)], x standard normal, cut where a steep sigmoid bends."""
    bends = (-mean + np.array([-30, -3, 3, 30])) / std
    edges = [-13, *(bend for bend in bends if abs(bend) < 13), 13]
    pieces = [
        quad(lambda x: f(mean + std * x) * math.exp(-x * x / 2), *ends, epsabs=1e-12, limit=200)[0]
        for ends in itertools.pairwise(edges)
    ]
    return math.fsum(pieces) / math.sqrt(2 * math.pi)


def test_scores_of_the_default_world_are_far_from_the_limit_of_the_quadrature():
    world, reward = default(), default().reward("sigmoid")
    e, w = embedding_map(world.backbone, reward), GAIN * reward.w
    spread = e @ world.backbone.mixture.covariances() @ e.T
    assert float(torch.einsum("pq,kqr,pr->pk", w, spread, w).max().sqrt()) < 4  # limit: 20


@pytest.mark.parametrize("std", [1e-3, 0.1, 1, 5, 10, 20])
@pytest.mark.parametrize("mean", [-60, -5, -1, 0, 0.3, 10, 47])
def test_sigmoid_moments_equal_quadrature(std, mean):
    """To 1e-8, the soft value up to lambda = 5."""
    world = small()
    reward, c = world.reward("sigmoid"), [world.prompts[0]]
    w, b = reward.w[0], float(reward.b[0])
    m = ((mean - b) / GAIN * w)[None, None]  # w is a unit vector: a score of this mean and std
    s = ((std / GAIN) ** 2 * torch.outer(w, w))[None, None]
    assert abs(float(reward.mean(m, s, c)) - integrate(expit, mean, std)) < 1e-8
    for lam in (0.5, 1, 5):
        expected = math.log(integrate(lambda a, lam=lam: math.exp(lam * expit(a)), mean, std))
        assert abs(float(reward.log_mgf(m, s, c, lam)) - expected) / lam < 1e-8


# Truth


def expectation(f, world, name, row, c):
    """E[f(r)] of one conditioned row, for a reward of the one linear score w_c . e."""
    reward, p, (rho, means, covariances) = world.reward(name), world.prompts.index(c), row
    w = reward.w[p].numpy() @ embedding_map(world.backbone, reward).numpy()
    stds = np.sqrt(np.einsum("d,kde,e->k", w, covariances, w))
    b = float(reward.b[p]) if name == "sigmoid" else None
    r = {"linear": float, "sigmoid": lambda s: expit(2 * s + b)}[name]
    each = [integrate(lambda s: f(r(s)), *one) for one in zip(means @ w, stds, strict=True)]
    return float(rho @ each)


def by_hand(world, name, row, c, lam):
    """The mean (lam None) or soft value of one conditioned row, by integrals or eigenvalues."""
    if name == "quadratic":
        return by_eigenvalues(world, row, c, lam)
    if lam is None:
        return expectation(float, world, name, row, c)
    return math.log(expectation(lambda r: math.exp(lam * r), world, name, row, c)) / lam


def by_eigenvalues(world, row, c, lam):
    """The same for sum_m omega_m (x_m + delta_m)^2, x standard normal: the quadratic reward."""
    reward, (rho, means, covariances) = world.reward("quadratic"), row
    e, a = embedding_map(world.backbone, reward).numpy(), reward.a[world.prompts.index(c)]
    log_parts, parts = [], []
    for m, covariance in zip(means @ e.T, e @ covariances @ e.T, strict=True):
        root = np.linalg.cholesky(covariance)
        omega, q = np.linalg.eigh(root.T @ np.diag(a) @ root)
        delta = q.T @ np.linalg.solve(root, m)
        parts.append((omega * (1 + delta**2)).sum())
        if lam is not None:
            shrunk = 1 - 2 * lam * omega
            log_parts.append((lam * omega * delta**2 / shrunk - np.log(shrunk) / 2).sum())
    return rho @ parts if lam is None else logsumexp(log_parts, b=rho) / lam


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    ("world", "sigma"), [(small, 0.1), (small, 0.5), (small, 0.9), (default, 0.5)]
)
def test_truth_equals_integrals_over_the_conditioned_posterior(world, sigma, target, name):
    exact = world().truth(world().reward(name), target)
    z_t, t, c, rows = case(world, target.posterior, sigma)
    expected = [by_hand(world(), name, *one, target.lam) for one in zip(rows, c, strict=True)]
    np.testing.assert_allclose(exact(z_t, t, c), expected, rtol=1e-8, atol=1e-8)


@cache
def posterior_draws(posterior, t, count=10_000):
    """Exact draws, (count, 3, *latent), of three latents of the small world."""
    z_t, t, c = noisy(small(), t, rows=3)
    draws = [
        small().posterior(posterior)(
            z_t[row].expand(count, -1, -1, -1),
            t,
            [c[row]] * count,
            Streams.of(row, "exact", rows=count),
        )
        for row in range(3)
    ]
    return torch.stack(draws, 1)


def simulated(r, lam, exact, weights=None):
    """How many standard errors the mean or soft value of simulated rewards (n,) is off."""
    if lam is None:
        return standard_errors(r, exact, weights)
    return standard_errors(np.exp(lam * (r - exact)), 1.0, weights)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("sigma", [0.3, 0.7])
def test_truth_equals_a_large_simulation_of_the_posterior(sigma, target, name):
    reward = small().reward(name)
    z_t, t, c = noisy(small(), sigma, rows=3)
    exact = small().truth(reward, target)(z_t, t, c).tolist()
    draws = posterior_draws(target.posterior, sigma)
    for row in range(3):
        r = reward_at(small(), reward, draws[:, row], c[row])
        assert simulated(r, target.lam, exact[row]) < 4


@cache
def weighted_prior_draws(posterior, row):
    """Prior draws of the small world and p(z_0 | z_t) ~ p(z_0) N(z_t; (1 - t) z_0, t^2) on them.

    No posterior formula anywhere.
    """
    z_t, t, c = noisy(small(), 0.7, rows=2)
    z_0 = brute_prior(small(), seen(posterior, c)[row], 100_000, seed=row)
    off = (z_t[row] - (1 - t) * z_0).flatten(1).square().sum(1)
    return z_0, (-off / (2 * t**2)).softmax(0).numpy()


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_truth_equals_prior_draws_weighted_by_their_likelihood(target, name):
    reward = small().reward(name)
    z_t, t, c = noisy(small(), 0.7, rows=2)
    exact = small().truth(reward, target)(z_t, t, c).tolist()
    for row in range(2):
        z_0, weights = weighted_prior_draws(target.posterior, row)
        r = reward_at(small(), reward, z_0, c[row])
        assert simulated(r, target.lam, exact[row], weights) < 4


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_truth_is_the_reward_on_clean_latents(target, name):
    world, reward = small(), small().reward(name)
    z_0, t, c = noisy(world, 0.0)
    r = reward(world.backbone.decode(z_0), c)
    torch.testing.assert_close(world.truth(reward, target)(z_0, t, c), r, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_truth_does_not_look_at_pure_noise(target, name):
    world, reward = small(), small().reward(name)
    value = world.truth(reward, target)(noisy(world, 1.0)[0], time(1.0), ["scene 1"] * 4)
    torch.testing.assert_close(value, value[:1].expand(4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_truth_averages_to_the_clean_reward(name, posterior):
    """Over forward-noised latents E[V - r(z_0)] = 0: the truth that needs no oracle."""
    world, rows = default(), 1000
    reward, c, rng = world.reward(name), ["scene 3"] * rows, Streams.of(0, "tower", rows=rows)
    z_0 = world.draw(seen(posterior, c), rng.child("z_0"))
    z_t = noise(z_0, time(0.5), rng.child("eps").normal(z_0))
    value = world.truth(reward, Target(posterior=posterior))(z_t, time(0.5), c)
    r = reward(world.backbone.decode(z_0), c)
    assert standard_errors(value - r, 0.0) < 4
    assert float((value - r).var()) < 0.8 * float(r.var())  # and it knows something


# `lam` down to where rounding, 1e-16 / lam, is far below the tolerance
@EVERY
@given(
    name=st.sampled_from(REWARDS),
    posterior=st.sampled_from(POSTERIORS),
    lams=st.tuples(st.floats(1e-3, 1.5), st.floats(1e-3, 1.5)).map(sorted),
    sigma=st.floats(0, 1),
    scale=st.floats(0, 5),
)
def test_soft_value_grows_with_lambda_from_the_mean(name, posterior, lams, sigma, scale):
    world = small()
    reward, (z_t, t, c) = world.reward(name), noisy(world, sigma)
    targets = Target("mean", posterior), *(Target("soft", posterior, lam) for lam in lams)
    mean, low, high = (world.truth(reward, target)(scale * z_t, t, c) for target in targets)
    slack = 1e-11 * (1 + mean.abs())
    assert (low >= mean - slack).all()
    assert (high >= low - slack).all()
    assert name != "sigmoid" or (high <= 1 + slack).all()


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_soft_value_starts_at_the_mean_with_half_the_variance_as_slope(name, posterior):
    """V^lam = V~ + lam Var[r | z_t] / 2 + O(lam^2) (Eq. 54), the variance by hand."""
    world, lam = small(), 1e-4
    reward = world.reward(name)
    z_t, t, c, rows = case(small, posterior, 0.6)
    mean = world.truth(reward, Target("mean", posterior))(z_t, t, c)
    soft = world.truth(reward, Target("soft", posterior, lam))(z_t, t, c)
    for row, (asked, one) in enumerate(zip(c, rows, strict=True)):
        variance = variance_by_hand(world, name, one, asked)
        slope = float(soft[row] - mean[row]) / lam
        assert slope == pytest.approx(variance / 2, rel=5e-4)


def variance_by_hand(world, name, row, c):
    """Var[r | z_t] of one conditioned row."""
    if name != "quadratic":
        first = expectation(float, world, name, row, c)
        return expectation(lambda r: (r - first) ** 2, world, name, row, c)
    reward, (rho, means, covariances) = world.reward(name), row
    e, a = embedding_map(world.backbone, reward).numpy(), reward.a[world.prompts.index(c)]
    m, s, a = means @ e.T, e @ covariances @ e.T, np.diag(a)
    first = np.einsum("kq,qp,kp->k", m, a, m) + np.einsum("qp,kpq->k", a, s)
    within = 2 * np.einsum("qp,kps,st,ktq->k", a, s, a, s)
    within = within + 4 * np.einsum("kq,qp,kps,st,kt->k", m, a, s, a, m)
    return rho @ (within + first**2) - (rho @ first) ** 2


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
def test_truth_gradient_equals_central_differences(name, target, sigma):
    world, h = small(), 1e-5
    exact, (z_t, t, c) = world.truth(world.reward(name), target), noisy(world, sigma)
    found = value_and_gradient(exact, z_t, t, c).gradient.flatten(1)
    steps = h * torch.eye(4, dtype=torch.float64).view(4, *z_t.shape[1:])
    differences = [(exact(z_t + step, t, c) - exact(z_t - step, t, c)) / (2 * h) for step in steps]
    scale = float(found.abs().max())
    torch.testing.assert_close(found, torch.stack(differences, 1), rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ["linear", "quadratic"])
@pytest.mark.parametrize(
    ("world", "sigma"), [(small, 0.1), (small, 0.5), (small, 0.9), (default, 0.5)]
)
def test_soft_gradient_is_the_gap_between_posterior_means(name, world, sigma):
    """lam grad V^lam = (1 - t) / t^2 (E*[z_0 | z_t] - E[z_0 | z_t]): score of p*_t less p_t's."""
    world = world()
    reward, (z_t, t, c) = world.reward(name), noisy(world, sigma, rows=2)
    exact = world.truth(reward, Target("soft", "prompt", LAM))
    found = LAM * value_and_gradient(exact, z_t, t, c).gradient.flatten(1)
    for row in range(2):
        tilted, flat = world.tilted(reward, c[row], LAM), z_t[row].reshape(1, -1)
        weights = world.book.weights([c[row]])
        apart = Posterior.of(tilted.mixture, tilted.log_weights[None], flat, t).mean()
        apart = apart - Posterior.of(world.backbone.mixture, weights, flat, t).mean()
        expected = (1 - t) / t**2 * apart[0]
        torch.testing.assert_close(
            found[row], expected, rtol=0, atol=1e-9 * float(1 + found.abs().max())
        )


def largest_lambda(world, reward, c):
    """Where the smallest eigenvalue of some C_k^-1 - 2 lam A reaches 0, by dense algebra."""
    e = embedding_map(world.backbone, reward).numpy()
    a = e.T @ np.diag(reward.a[world.prompts.index(c)].numpy()) @ e
    return min(
        1 / (2 * eigh(a, np.linalg.inv(covariance), eigvals_only=True)[-1])
        for covariance in world.backbone.mixture.covariances().numpy()
    )


def test_soft_quadratic_value_ends_where_the_tilted_target_does():
    world = small()
    reward = world.reward("quadratic")
    ends = {c: largest_lambda(world, reward, c) for c in world.prompts}
    for c, end in ends.items():
        world.tilted(reward, c, 0.999999 * end)
        with pytest.raises(
            ValueError,
            match=r"expected lambda where every C\^-1 - 2 lambda A is positive definite, got .* "
            f"for '{c}': no tilted target exists",
        ):
            world.tilted(reward, c, 1.000001 * end)
    end = min(ends.values())  # a value serves every prompt
    world.truth(reward, Target("soft", "data", 0.999999 * end))
    with pytest.raises(ValueError, match="expected lambda where every"):
        world.truth(reward, Target("soft", "data", 1.000001 * end))


def test_default_quadratic_reward_tilts_as_far_as_promised():
    world = default()
    reward = world.reward("quadratic")
    assert min(largest_lambda(world, reward, c) for c in world.prompts[:2]) >= 1 / CURVATURE
    world.truth(reward, Target("soft", "data", 0.999 / CURVATURE))
    with pytest.raises(ValueError, match="positive definite, got 100 for 'scene 0'"):
        world.truth(reward, Target("soft", "data", 100))


def test_truth_refuses_the_model_posterior():
    world = small()
    target = Target(posterior="model", kernel="ode, 4 steps")
    with pytest.raises(
        ValueError, match="expected the data or prompt posterior, got mean | ode, 4 steps"
    ):
        Truth(world.backbone, world.reward("linear"), target)
    assert world.truth(world.reward("linear"), target) is None


class Foreign(Reward):
    """The mean pixel: a reward of which the world knows nothing."""

    depth = 1

    def head(self, x, j):
        return Hidden(x)

    def advance(self, h, j, k):
        return h

    def head_weights(self):
        return {}

    def tail_weights(self, j):
        return {}

    def tail(self, h, j):
        return Features(h.map.flatten(2), h.map.flatten(1).mean(1, keepdim=True))

    def score(self, e, c):
        return e[:, 0]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_truth_about_a_foreign_reward_is_not_known(target):
    assert small().truth(Foreign(), target) is None


# Tilted target


@pytest.mark.parametrize("name", ["linear", "quadratic"])
@pytest.mark.parametrize("c", ["scene 0", "scene 3"])
def test_tilted_density_is_the_prior_times_exp_lambda_r(name, c):
    """log p* - log p - lam r is the same everywhere: -lam V^lam at pure noise."""
    world = small()
    reward = world.reward(name)
    tilted, z = world.tilted(reward, c, LAM), brute_prior(world, c, 200)
    prior = world.backbone.mixture, world.book.weights([c])[0]
    gap = -LAM * reward_at(world, reward, z, c)
    for sign, (mixture, log_weights) in ((1, (tilted.mixture, tilted.log_weights)), (-1, prior)):
        log_p = [
            multivariate_normal(m, covariance).logpdf(z.flatten(1))
            for m, covariance in zip(mixture.means, mixture.covariances(), strict=True)
        ]
        gap = gap + sign * logsumexp(np.array(log_p) + log_weights.numpy()[:, None], axis=0)
    exact = world.truth(reward, Target("soft", "prompt", LAM))
    free_energy = float(exact(z[:1], time(1.0), [c])) * LAM
    np.testing.assert_allclose(gap, -free_energy, atol=1e-9)


def tilted_prior(world, reward, c, lam, count=100_000):
    """Draws of the prior, flat, and the weights that make them draws of p*."""
    z_0 = brute_prior(world, c, count, seed=7)
    return z_0.flatten(1).numpy(), softmax(lam * reward_at(world, reward, z_0, c))


@pytest.mark.parametrize("name", ["linear", "quadratic"])
def test_tilted_moments_equal_weighted_prior_draws(name):
    world, c = small(), "scene 2"
    tilted = world.tilted(world.reward(name), c, LAM)
    z_0, weights = tilted_prior(world, world.reward(name), c, LAM)
    assert standard_errors(z_0, tilted.mean(), weights) < 4
    assert standard_errors(outer(z_0, tilted.mean()), tilted.covariance(), weights) < 4
    untilted = world.tilted(world.reward(name), c, 1e-12)
    assert (
        max(  # the test can see the tilt
            standard_errors(z_0, untilted.mean(), weights),
            standard_errors(outer(z_0, untilted.mean()), untilted.covariance(), weights),
        )
        > 10
    )


@pytest.mark.parametrize("name", ["linear", "quadratic"])
def test_tilted_draws_have_its_moments(name):
    tilted, rows = small().tilted(small().reward(name), "scene 2", LAM), 20_000
    draws = tilted.sample(Streams.of(0, "tilted", rows=rows)).flatten(1)
    assert standard_errors(draws, tilted.mean()) < 4
    assert standard_errors(outer(draws, tilted.mean()), tilted.covariance()) < 4


def test_rejection_draws_have_the_moments_of_weighted_prior_draws():
    world, c, lam, rows = small(), "scene 2", 2.0, 10_000
    reward = world.reward("sigmoid")
    draws = world.tilted(reward, c, lam).sample(Streams.of(0, "rejection", rows=rows)).flatten(1)
    z_0, weights = tilted_prior(world, reward, c, lam)
    mean = weights @ z_0
    assert standard_errors(draws, mean) < 4  # the reference's own error is a third of it
    assert standard_errors(outer(draws, mean), np.tensordot(weights, outer(z_0, mean), 1)) < 4
    assert standard_errors(draws, z_0.mean(0)) > 10


@pytest.mark.parametrize("name", REWARDS)
def test_tilted_draws_depend_on_their_own_stream_alone(name):
    tilted, rng = small().tilted(small().reward(name), "scene 1", LAM), Streams.of(0, rows=6)
    alone = tilted.sample(Streams(rng.seeds[2:4]))
    torch.testing.assert_close(tilted.sample(rng)[2:4], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_tilting_needs_a_positive_lambda(name, lam):
    with pytest.raises(ValueError, match=f"expected lambda > 0, got {lam:g}"):
        small().tilted(small().reward(name), "scene 0", lam)


def test_rejection_gives_up_with_a_message(monkeypatch):
    monkeypatch.setattr(truth, "TRIES", 2)
    tilted = small().tilted(small().reward("sigmoid"), "scene 1", 50.0)
    with pytest.raises(
        ValueError, match="expected lambda small enough for rejection sampling, got 50"
    ):
        tilted.sample(Streams.of(0, rows=50))


# World


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_responsibilities_of_the_default_world_are_shared(posterior):
    """What makes the world hard: from sigma 0.5 on no component is certain."""
    largest = {}
    for sigma in (0.5, 0.75):
        z_t, t, c = noisy(default(), sigma, rows=512)
        weights = default().book.weights(seen(posterior, c))
        rho = Posterior.of(default().backbone.mixture, weights, z_t.flatten(1), t).log_rho.exp()
        largest[sigma] = float(rho.max(-1).values.mean())
    assert largest[0.5] < 0.85
    assert largest[0.75] < 0.55


@pytest.mark.parametrize(
    ("name", "share"), [("linear", 0.4), ("quadratic", 0.1), ("sigmoid", 0.2)]
)
def test_prompts_of_the_default_world_matter(name, share):
    """E|V_prompt - V_data| as a share of the spread of V, at sigma 0.75."""
    z_t, t, c = noisy(default(), 0.75, rows=256)
    data, prompt = (
        default().truth(default().reward(name), Target(posterior=p))(z_t, t, c) for p in POSTERIORS
    )
    assert float((prompt - data).abs().mean()) > share * float(data.std())


RECIPE = {
    "components": 4,
    "latent": (2, 1, 2),
    "rank": 3,
    "prompts": 5,
    "seed": 1,
    "dtype": "float32",
}


def test_digest_names_the_recipe():
    """Every argument that changes a number changes it; the device does not."""
    base = {"components": 3, "latent": (2, 2, 1), "rank": 2, "prompts": 4}
    digests = [GaussianWorld(**{**base, name: value}).digest for name, value in RECIPE.items()]
    assert len({small().digest, *digests}) == 1 + len(RECIPE)
    assert GaussianWorld(**base, device="cpu:0").digest == small().digest
    assert GaussianWorld(**{**base, "latent": [2, 2, 1]}).digest == small().digest


def test_same_recipe_same_world():
    again = GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=4)
    z_t, t, c = noisy(small(), 0.5)
    for name in reversed(REWARDS):  # made in another order
        values = [w.truth(w.reward(name), Target())(z_t, t, c) for w in (small(), again)]
        torch.testing.assert_close(*values, rtol=0, atol=0)


def test_more_prompts_leave_components_and_network_alone():
    more = GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=40)
    for name in ("means", "floors", "directions", "spikes"):
        torch.testing.assert_close(
            getattr(more.backbone, name), getattr(small().backbone, name), rtol=0, atol=0
        )
    torch.testing.assert_close(more.backbone.decoder.weight, small().backbone.decoder.weight)


def test_another_seed_is_another_world():
    other = GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=4, seed=1)
    z_t, t, c = noisy(small(), 0.5)
    apart = other.backbone.velocity(z_t, t, c) - small().backbone.velocity(z_t, t, c)
    assert float(apart.abs().max()) > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bfloat16"}, "expected dtype float64 or float32, got 'bfloat16'"),
        ({"latent": (4, 8)}, r"expected latent \(C, H, W\) of positive sizes, got \(4, 8\)"),
        ({"latent": (4, 0, 8)}, r"expected latent .* got \(4, 0, 8\)"),
    ],
)
def test_world_refuses_a_wrong_recipe(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianWorld(**settings)


def test_world_refuses_names_it_does_not_know():
    with pytest.raises(
        ValueError,
        match=r"expected a reward in \('linear', 'quadratic', 'sigmoid'\), got 'cubic'",
    ):
        small().reward("cubic")
    message = "expected prompts 'scene 0' .. 'scene 3' or '', got 'scene 4'"
    with pytest.raises(ValueError, match=message):
        small().draw(["scene 0", "scene 4"], Streams.of(0, rows=2))
    z_t, t, _ = noisy(small(), 0.5)
    with pytest.raises(ValueError, match=message):
        small().backbone.velocity(z_t, t, ["scene 4"] * 4)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("target", [Target(), Target("soft", "prompt", LAM)], ids=str)
def test_float32_world_is_the_same_world_rounded(name, target):
    rounded = GaussianWorld(dtype="float32")
    z_t, t, c = noisy(default(), 0.5)
    exact = value_and_gradient(default().truth(default().reward(name), target), z_t, t, c)
    ours = rounded.truth(rounded.reward(name), target)
    found = value_and_gradient(ours, z_t.float(), t.float(), c)
    assert found.value.dtype == found.gradient.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), exact.value, rtol=0, atol=1e-4)
    scale = float(exact.gradient.abs().max())
    torch.testing.assert_close(found.gradient.double(), exact.gradient, rtol=0, atol=1e-3 * scale)
    assert rounded.draw(c, Streams.of(0, rows=4)).dtype == torch.float32


def test_a_reward_needs_a_prompt():
    world = GaussianWorld(latent=(2, 1, 1), components=3, rank=2, prompts=4)
    x = world.backbone.decode(torch.zeros(1, 2, 1, 1, dtype=torch.float64))
    for name in world.rewards:
        with pytest.raises(ValueError, match="expected a prompt to reward under, got the null"):
            world.reward(name)(x, [""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0}, "expected components >= 1, got 0"),
        ({"prompts": 0}, "expected prompts >= 1, got 0"),
        ({"rank": -1}, "expected rank >= 1, got -1"),
        ({"latent": (13, 1, 1)}, "expected at most 12 latent channels, got 13"),
    ],
)
def test_recipes_that_make_no_world_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianWorld(**settings)


def test_a_single_gaussian_is_a_world():
    world = GaussianWorld(components=1, prompts=2)
    truth = world.truth(world.reward("quadratic"), Target("mean", "prompt"))
    z_t = torch.zeros(2, *world.backbone.latent, dtype=torch.float64)
    assert truth(z_t, torch.tensor(0.5, dtype=torch.float64), world.prompts).isfinite().all()


def test_images_are_decoded_data_under_the_prompts_in_turn():
    world = small()
    parts = list(world.images("train", 2000))
    x_0, c = torch.cat([p.x_0 for p in parts]), [text for p in parts for text in p.c]
    assert c == [world.prompts[row % len(world.prompts)] for row in range(2000)]
    z_0 = world.backbone.encode(x_0)
    torch.testing.assert_close(world.backbone.decode(z_0), x_0, rtol=1e-10, atol=1e-12)
    mixture = world.backbone.mixture
    weights = world.book.weights([NULL])[0].exp()
    mean = weights @ mixture.means
    spread = z_0.flatten(1).std(0) / 2000**0.5
    assert ((z_0.flatten(1).mean(0) - mean).abs() < 5 * spread).all()
    assert torch.equal(next(iter(world.images("train", 7))).x_0, x_0[:7])
    assert not torch.equal(next(iter(world.images("held", 7))).x_0, x_0[:7])
