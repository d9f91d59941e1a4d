"""Stitching: the closed-form fit against numpy, the layer and the value model against their parts.

The contracts of backbones and rewards that stitching rests on stand at the end.
"""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from baselines import linear_stitch
from bench.worlds.gaussian import GaussianWorld
from bench.worlds.gaussian.mixture import Noised
from stitchvm.backbone import NULL
from stitchvm.path import noise
from stitchvm.reward import Hidden
from stitchvm.stitch import LinearFit, Stitched, StitchLayer, fit_linear, resize
from stitchvm.streams import Streams
from stitchvm.value import Target, value_and_gradient

SMALL = settings(max_examples=30, deadline=None)
SEED = st.integers(0, 9999)
BLOCKS, ENTRIES = (1, 2, 3, 4), (1, 2)
REWARDS = ("linear", "quadratic", "sigmoid")


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def tokens():
    """A Gaussian world of four tokens."""
    return GaussianWorld(latent=(2, 2, 2), components=3, rank=2, prompts=4)


def noised(world, rows):
    """Noised data at times of their own: z_t, t and prompts."""
    rng = Streams.of(1, "noised", rows=rows)
    c = [world.prompts[row % len(world.prompts)] for row in range(rows)]
    z_0, t = world.draw([NULL] * rows, rng.child("z_0")), rng.child("t").uniform()
    return noise(z_0, t, rng.child("eps").normal(z_0)), t, c


# fit_linear


@SMALL
@given(SEED, st.integers(1, 6), st.integers(1, 4), st.sampled_from([torch.float64, torch.float32]))
def test_fit_recovers_a_planted_map(seed, p, q, dtype):
    x, weight, bias = normal(seed, 80, p).to(dtype), normal(seed + 1, q, p), normal(seed + 2, q)
    fit = fit_linear(x, x.double() @ weight.T + bias)
    torch.testing.assert_close(fit.weight, weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(fit.bias, bias, rtol=0, atol=1e-8)
    assert fit.rank == p
    assert fit.loss < 1e-16


@SMALL
@given(SEED, st.integers(1, 6), st.integers(1, 4))
def test_fit_is_numpys_least_squares_with_an_intercept(seed, p, q):
    x, y = 3 + normal(seed, 50, p), normal(seed + 1, 50, q) - 2
    fit = fit_linear(x, y)
    expected = np.linalg.lstsq(np.c_[x.numpy(), np.ones(50)], y.numpy(), rcond=None)[0]
    found = torch.cat([fit.weight, fit.bias[:, None]], 1).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    rows = [sum((float(v) ** 2) for v in fit.weight @ a + fit.bias - b) for a, b in zip(x, y)]  # noqa: B905
    assert fit.loss == pytest.approx(sum(rows) / (50 * q), rel=1e-12)


@pytest.mark.parametrize(
    ("features", "rank"),
    [
        (lambda x: torch.cat([x, x @ normal(9, 3, 2)], 1), 3),  # two of five repeat the others
        (lambda x: torch.cat([x, torch.ones(40, 1)], 1), 3),  # a constant says nothing
        (lambda x: x.softmax(1), 2),  # responsibilities sum to one
    ],
    ids=["repeated", "constant", "simplex"],
)
def test_fit_of_dependent_features_warns_and_has_least_norm(features, rank):
    x, y = features(normal(0, 40, 3)), normal(1, 40, 2)
    message = f"features have rank {rank} of {x.shape[1]}: returning the solution of least norm"
    with pytest.warns(RuntimeWarning, match=f"^{message}$"):
        fit = fit_linear(x, y)
    assert fit.rank == rank
    centred, aim = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    expected = np.linalg.pinv(centred, rcond=1e-10) @ aim
    np.testing.assert_allclose(fit.weight.T, expected, rtol=0, atol=1e-8)
    bias = y.mean(0).numpy() - expected.T @ x.mean(0).numpy()
    np.testing.assert_allclose(fit.bias, bias, rtol=0, atol=1e-8)
    loss = ((centred @ expected - aim) ** 2).mean()
    assert fit.loss == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ((9, 2), (8, 2), "expected features (n, p) and targets (n, q), got (9, 2) and (8, 2)"),
        ((9,), (9, 2), "expected features (n, p) and targets (n, q), got (9,) and (9, 2)"),
        ((9, 2), (9,), "expected features (n, p) and targets (n, q), got (9, 2) and (9,)"),
        (
            (9, 2, 1),
            (9, 2),
            "expected features (n, p) and targets (n, q), got (9, 2, 1) and (9, 2)",
        ),
        ((4, 5), (4, 2), "expected more rows (tokens) than the 5 features, got 4"),
        ((5, 5), (5, 2), "expected more rows (tokens) than the 5 features, got 5"),
    ],
)
def test_fit_refuses(features, targets, message):
    with refused(message):
        fit_linear(normal(0, *features), normal(1, *targets))


# the layer


def a_fit(out, inner, seed=0):
    return LinearFit(normal(seed, out, inner), normal(seed + 1, out), inner, 0.0)


def trained(layer):
    """The layer with every parameter away from its start."""
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(seed + 100, *parameter.shape))
    return layer


@pytest.mark.parametrize("size", [(3, 4), (6, 7), (2, 2)])
def test_layer_starts_as_the_resampled_fit(size):
    fit, h = a_fit(16, 5), normal(3, 2, 5, 3, 4)
    found = StitchLayer(fit, size)(h)
    linear = torch.einsum("oi,bihw->bohw", fit.weight, h) + fit.bias[:, None, None]
    assert found.shape == (2, 16, *size)
    torch.testing.assert_close(found, resize(linear, size), rtol=1e-12, atol=1e-12)


@SMALL
@given(SEED, st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_resampling_commutes_with_the_fit(seed, size):
    fit, h = a_fit(3, 4, seed), normal(seed + 2, 2, 4, 3, 5)

    def linear(h):
        return functional.conv2d(h, fit.weight[:, :, None, None], fit.bias)

    torch.testing.assert_close(
        resize(linear(h), size), linear(resize(h, size)), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("size", [2, 4, 5, 8, 13])
def test_resampling_interpolates_between_the_centres_of_tokens(size):
    """A ramp of slope one stays one, clamped beyond the first and last centre."""
    ramp = torch.arange(4.0, dtype=torch.float64).expand(1, 1, 4, 4)
    centres = ((torch.arange(size).double() + 0.5) * 4 / size - 0.5).clamp(0, 3)
    expected = centres.expand(1, 1, size, size)
    torch.testing.assert_close(resize(ramp, (size, size)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("out", "narrow"), [(16, 2), (24, 3), (20, 2), (4, 1)])
def test_residual_is_one_to_eight_and_starts_at_zero(out, narrow):
    layer, h = StitchLayer(a_fit(out, 3), (2, 2)), normal(5, 2, 3, 2, 2)
    _, down, _, up = layer.residual
    assert (tuple(down.weight.shape), tuple(up.weight.shape)) == (
        (narrow, out, 1, 1),
        (out, narrow, 1, 1),
    )
    assert not bool(up.weight.any())
    assert not bool(up.bias.any())
    assert not bool(layer.residual(layer.linear(h)).any())
    assert bool(down.weight.any())  # else no gradient would ever reach it


def test_residual_is_equation_58():
    layer, h = trained(StitchLayer(a_fit(16, 3), (5, 4))), normal(5, 2, 3, 2, 2)
    with torch.no_grad():
        _, down, _, up = layer.residual
        mixed = resize(layer.linear(h), (5, 4))
        narrow = torch.einsum("oi,bihw->bohw", down.weight[..., 0, 0], functional.silu(mixed))
        narrow = functional.silu(narrow + down.bias[:, None, None])
        wide = torch.einsum("oi,bihw->bohw", up.weight[..., 0, 0], narrow)
        expected = mixed + wide + up.bias[:, None, None]
        torch.testing.assert_close(layer(h), expected, rtol=1e-12, atol=1e-12)


def test_one_optimiser_step_opens_the_residual():
    layer, h = StitchLayer(a_fit(16, 3), (2, 2)), normal(5, 8, 3, 2, 2)
    down, up = layer.residual[1], layer.residual[3]
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01)

    def backward():
        optimiser.zero_grad()
        (layer(h) - normal(6, 8, 16, 2, 2)).square().mean().backward()

    backward()
    assert not bool(down.weight.grad.any())  # behind a zero
    assert bool(up.weight.grad.any())
    optimiser.step()
    backward()
    assert float(down.weight.grad.abs().max()) > 1e-6


# the value model


@pytest.mark.parametrize("i", BLOCKS)
@pytest.mark.parametrize("j", ENTRIES)
@pytest.mark.parametrize("name", REWARDS)
def test_stitched_is_trunk_layer_tail_score(i, j, name, tokens):
    z_t, t, c = noised(tokens, 5)
    backbone, reward = tokens.backbone, tokens.reward(name)
    features = backbone.trunk(z_t, t, i, [NULL] * 5).features
    layer = trained(StitchLayer(a_fit(16, features.shape[1]), (2, 2))).requires_grad_(False)
    estimator = Stitched(backbone, i, layer, reward, j)
    expected = reward.score(reward.tail(Hidden(layer(features)), j).embedding, c)
    torch.testing.assert_close(estimator(z_t, t, c), expected, rtol=1e-12, atol=1e-12)
    assert estimator.target == Target("mean", "data")
    assert estimator.latent == tokens.backbone.latent
    before = backbone.trunk(z_t, t, i, c).features
    prompted = reward.score(reward.tail(Hidden(layer(before)), j).embedding, c)
    matters = i > 1  # the first block knows no prompt
    assert bool((prompted - expected).abs().max() > 1e-6) == matters


@pytest.mark.parametrize(
    ("i", "j", "message"),
    [
        (0, 1, "expected i in 1..4, got 0"),
        (5, 1, "expected i in 1..4, got 5"),
        (1, 0, "expected j in 1..2, got 0"),
        (1, 3, "expected j in 1..2, got 3"),
    ],
)
def test_stitched_refuses_blocks_that_are_not_there(i, j, message, tokens):
    layer = StitchLayer(a_fit(16, 6), (2, 2))
    with refused(message):
        Stitched(tokens.backbone, i, layer, tokens.reward("linear"), j)


def test_a_fit_behind_the_posterior_mean_approaches_the_truth_of_a_linear_reward(tokens):
    """Block 3 holds E[z_0 | z_t] and the reward's patches are linear: the fit ends in the truth.

    Measured with 400 and 6400 probes: RMSE 0.048 and 0.014 on a truth of spread 0.63, gradient off
    by 0.089 and 0.026 of its norm.  Sixteen times the probes should quarter both, give or take
    the luck of one probe set.
    """
    reward, (z_t, t, c) = tokens.reward("linear"), noised(tokens, 1000)
    exact = value_and_gradient(tokens.truth(reward, Target("mean", "data")), z_t, t, c)
    rmse, slopes = [], []
    for probes in (400, 6400):
        found = value_and_gradient(
            linear_stitch.build(tokens, reward, i=3, probes=probes), z_t, t, c
        )
        rmse.append(float((found.value - exact.value).square().mean().sqrt()))
        slopes.append(float((found.gradient - exact.gradient).norm() / exact.gradient.norm()))
    assert rmse[1] < 0.03 * float(exact.value.std())
    assert slopes[1] < 0.03
    assert 2 < rmse[0] / rmse[1] < 8
    assert 2 < slopes[0] / slopes[1] < 8


def test_the_fit_finds_the_decoder_and_the_patches(tokens):
    """Its weight on the posterior mean is patch o decoder, that on the score nothing."""
    reward = tokens.reward("linear")
    stitched = linear_stitch.build(tokens, reward, i=3, probes=3000)
    weight = stitched.layer.linear.weight[:, :, 0, 0]
    one = torch.eye(2, dtype=torch.float64)[:, :, None, None]
    expected = reward.head(tokens.backbone.decode(one), 1).map[:, :, 0, 0].T
    scale = float(expected.abs().max())
    torch.testing.assert_close(weight[:, :2], expected, rtol=0, atol=0.1 * scale)
    assert float(weight[:, 2:].abs().max()) < 0.05 * scale


@pytest.mark.parametrize("i", BLOCKS)
@pytest.mark.filterwarnings("ignore:features have rank:RuntimeWarning")  # block 2 sums to one
def test_linear_blocks_can_be_entered_anywhere(i, tokens):
    """Least squares commutes with the linear blocks of this reward, so j changes no value."""
    z_t, t, c = noised(tokens, 20)
    first, second = (
        linear_stitch.build(tokens, tokens.reward("sigmoid"), i=i, j=j)(z_t, t, c) for j in ENTRIES
    )
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


# contracts

BACKBONES = {
    "gaussian": lambda: GaussianWorld(latent=(2, 1, 1), components=3, rank=2, prompts=4),
    "gaussian, four tokens": lambda: GaussianWorld(latent=(3, 2, 2), components=2, prompts=3),
}


@pytest.fixture(scope="module", params=BACKBONES.values(), ids=BACKBONES)
def any_world(request):
    return request.param()


@pytest.mark.parametrize("null", [False, True])
def test_a_trunk_resumes_to_the_velocity(null, any_world):
    z_t, t, c = noised(any_world, 6)
    backbone = any_world.backbone
    prompts = [NULL] * 6 if null else c
    for i in range(1, backbone.depth + 1):
        state = backbone.trunk(z_t, t, i, None if null else c)
        named = backbone.trunk(z_t, t, i, prompts)
        assert torch.equal(state.features, named.features)
        expected = backbone.velocity(z_t, t, prompts)
        torch.testing.assert_close(backbone.resume(state), expected, rtol=1e-12, atol=1e-12)


def test_a_trunk_of_one_row_or_one_time_is_that_of_a_batch(any_world):
    (z_t, t, c), backbone = noised(any_world, 4), any_world.backbone
    for i in range(1, backbone.depth + 1):
        together = backbone.trunk(z_t, t, i, c).features
        alone = [backbone.trunk(z_t[k : k + 1], t[k], i, c[k : k + 1]).features for k in range(4)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-11, atol=1e-11)


def test_a_trunk_is_differentiable_in_the_latents(any_world):
    (z_t, t, c), backbone = noised(any_world, 2), any_world.backbone
    z_t.requires_grad_()
    for i in range(1, backbone.depth + 1):

        def features(z_t, i=i):
            return backbone.trunk(z_t, t, i, c).features

        assert torch.autograd.gradcheck(features, z_t, eps=1e-6, atol=1e-6, rtol=1e-6)


def test_features_of_the_gaussian_backbone_have_the_documented_channels(any_world):
    (z_t, t, _), backbone = noised(any_world, 3), any_world.backbone
    (channels, *size), components = backbone.latent, len(backbone.means)
    documented = [components * channels, components * (1 + channels), 2 * channels, channels]
    for i, expected in enumerate(documented, 1):
        assert backbone.trunk(z_t, t, i).features.shape == (3, expected, *size)


@pytest.mark.parametrize(("missing", "first"), [("log_density", 2), ("mean", 3)])
def test_a_trunk_runs_no_block_beyond_its_last(missing, first, any_world, monkeypatch):
    """Responsibilities need the densities, block 3 the means: take them away."""
    z_t, t, c = noised(any_world, 3)
    monkeypatch.delattr(Noised, missing)
    for i in range(1, first):
        any_world.backbone.trunk(z_t, t, i, c)
    with pytest.raises(AttributeError, match=missing):
        any_world.backbone.trunk(z_t, t, first, c)


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_the_same_entered_anywhere(name, any_world):
    z_0, _, c = noised(any_world, 6)
    x, reward = any_world.backbone.decode(z_0), any_world.reward(name)
    expected = reward(x, c)
    assert float(expected.std()) > 0.01
    for j in range(1, reward.depth + 1):
        found = reward.score(reward.tail(reward.head(x, j), j).embedding, c)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
