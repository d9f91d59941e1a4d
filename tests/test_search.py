"""Stage 1 against brute force, one pass counted, and the picks as the paper's rule makes them."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.meter import Calls
from bench.worlds.gaussian import GaussianWorld
from bench.worlds.shapes import shapes as shapes_world
from bench.worlds.shapes.scenes import draw, render
from stitchvm.backbone import NULL
from stitchvm.least_squares import LeastSquares
from stitchvm.path import noise
from stitchvm.search import Settings, load, search, tokens_of
from stitchvm.stitch import resize
from stitchvm.streams import Streams

PROBES, HELD = 24, 12


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Streamed least squares


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 4), st.integers(1, 30))
def test_portions_change_nothing_and_numpy_agrees(seed, p, q, portion):
    x, y = 3 + normal(seed, 60, p), normal(seed + 1, 60, q) - 5
    known = LeastSquares(p, q)
    for first in range(0, 60, portion):
        known.add(x[first : first + portion], y[first : first + portion])
    weight, bias, rank = known.solve()
    error, spread = known.errors(weight, bias)
    expected, *_ = np.linalg.lstsq(np.c_[np.ones(60), x.numpy()], y.numpy(), rcond=None)
    assert rank == p
    np.testing.assert_allclose(np.c_[bias.numpy(), weight.numpy()].T, expected, atol=1e-10)
    residual = np.c_[np.ones(60), x.numpy()] @ expected - y.numpy()
    np.testing.assert_allclose(error, (residual**2).mean(0), atol=1e-12)
    np.testing.assert_allclose(spread, y.numpy().var(0), rtol=1e-10)


def test_hardly_independent_features_are_fitted_as_well_as_numpy_does():
    """Normal equations, whose condition is squared, would be off by 1e-2 here."""
    x = normal(0, 200, 2) @ torch.tensor([[1.0, 1.0], [0.0, 1e-7]], dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * 1e7
    known = LeastSquares(2, 1)
    for rows in zip(x.split(17), y.split(17), strict=True):
        known.add(*rows)
    weight, bias, rank = known.solve()
    assert rank == 2
    torch.testing.assert_close(
        weight, 1e7 * torch.tensor([[1.0, -1.0]]).double(), rtol=1e-6, atol=0
    )
    assert bias.abs().max() < 1e-6


def test_dependent_features_get_the_least_norm_and_tell_their_rank():
    x = normal(0, 50, 2)
    x, y = torch.cat([x, x.sum(1, keepdim=True)], 1), normal(1, 50, 2)
    known = LeastSquares(3, 2)
    known.add(x, y)
    weight, _, rank = known.solve()
    assert rank == 2
    centred = (x - x.mean(0), y - y.mean(0))
    torch.testing.assert_close(weight, (torch.linalg.pinv(centred[0]) @ centred[1]).T)


def test_ridge_is_in_units_of_the_mean_squared_singular_value():
    x, y, ridge = normal(0, 50, 3), normal(1, 50, 2), 0.3
    known = LeastSquares(3, 2)
    known.add(x, y)
    weight, bias, _ = known.solve(ridge)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    gram = x0.T @ x0
    penalty = ridge * gram.trace() / 3 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(weight, torch.linalg.solve(gram + penalty, x0.T @ y0).T)
    error, _ = known.errors(weight, bias)
    torch.testing.assert_close(error, (x @ weight.T + bias - y).square().mean(0))


def test_no_more_rows_than_features_are_refused():
    known = LeastSquares(5, 1)
    known.add(normal(0, 5, 5), normal(1, 5, 1))
    with refused("expected more rows (tokens) than the 5 features, got 5"):
        known.solve()


# The search, in both worlds


@pytest.fixture(scope="module")
def found():
    """A world, its reward, probe and held-out images, and the search."""
    world = shapes_world()
    reward = world.reward("clip")
    x, y = render(draw("train", PROBES)), render(draw("tune", HELD))
    return world, reward, x, y, search(world.backbone, reward, x.split(7), y.split(5))


@torch.no_grad()
def rows_by_hand(found, name, i, j):
    """Features, targets and [CLS] of one pair, of all images."""
    world, reward, x, y, _ = found
    x, portion = (x, 7) if name == "probe" else (y, 5)
    rng, parts = Streams.of(0, "search", name, rows=len(x)), []
    for first in range(0, len(x), portion):  # float32 convolutions depend on the batch
        rows = slice(first, first + portion)
        z_0 = world.backbone.encode(x[rows])
        t = rng[rows].child("t").uniform(z_0.dtype)
        z_t = noise(z_0, t, rng[rows].child("eps").normal(z_0))
        target = reward.head(x[rows], j)
        features = resize(world.backbone.trunk(z_t, t, i).features, target.map.shape[-2:])
        cls = target.map.mean((2, 3)) if target.cls is None else target.cls
        parts.append((tokens_of(features), tokens_of(target.map), cls))
    return [torch.cat(part).double() for part in zip(*parts, strict=True)]


@pytest.mark.parametrize(("i", "j"), [(1, 1), (3, 2), (8, 4)])
def test_every_pair_is_the_fit_of_all_rows_at_once(i, j, found):
    *_, result = found
    features, targets, cls = rows_by_hand(found, "probe", i, j)
    design = np.c_[np.ones(len(features)), features.numpy()]
    expected, *_ = np.linalg.lstsq(design, targets.numpy(), rcond=None)
    fitted = design @ expected
    fit, token = result.interfaces[i, j]
    mapped = features @ fit.weight.T + fit.bias
    np.testing.assert_allclose(mapped, fitted, atol=1e-6 * np.abs(fitted).max())
    pair = next(p for p in result.pairs if (p.i, p.j) == (i, j))
    assert pair.loss == pytest.approx(((fitted - targets.numpy()) ** 2).mean(), rel=1e-6)
    spread = targets.var(0, correction=0)
    error = (mapped - targets).square().mean(0)
    assert pair.normalised == pytest.approx((error / spread).mean().item(), rel=1e-5)
    assert pair.r2 == pytest.approx(1 - (error.sum() / spread.sum()).item(), rel=1e-5)
    features, targets, _ = rows_by_hand(found, "held", i, j)
    error = (features @ fit.weight.T + fit.bias - targets).square().mean(0)
    spread = targets.var(0, correction=0)
    assert pair.held_loss == pytest.approx(error.mean().item(), rel=1e-5)
    assert pair.held_normalised == pytest.approx((error / spread).mean().item(), rel=1e-5)
    assert pair.held_r2 == pytest.approx(1 - (error.sum() / spread.sum()).item(), rel=1e-4)
    assert (pair.rank, pair.features) == (128, 128)
    if j == 1:
        assert token is None
    else:
        torch.testing.assert_close(token, cls.mean(0))


def test_all_pairs_are_there_and_held_out_losses_are_higher(found):
    *_, result = found
    assert [(p.i, p.j) for p in result.pairs] == [(i, j) for i in range(1, 9) for j in range(1, 5)]
    assert all(p.held_loss > p.loss for p in result.pairs)


def test_every_image_passes_once(found):
    world, reward, x, y, _ = found
    calls = Calls()
    blocks = Counter()
    handles = [
        block.register_forward_pre_hook(
            lambda _block, args, kwargs, k=k: blocks.update({k: len(args[0])}), with_kwargs=True
        )
        for k, block in enumerate([*world.backbone.blocks, *reward.vision.encoder.layers])
    ]
    try:
        calls.watch(world.backbone)
        with calls.during() as spent:
            search(world.backbone, reward, x.split(7), y.split(5))
    finally:
        for handle in handles:
            handle.remove()
    flops = 2 * 8  # a single latent through each block, once to count and once to go on
    assert spent["blocks"] == 8 * (PROBES + HELD) + flops
    assert sum(blocks[k] for k in range(8)) == 8 * (PROBES + HELD) + flops
    for k in range(3):  # of the reward, for j <= 4
        assert blocks[8 + k] == PROBES + HELD + 4


def test_picks_are_the_lowest_loss_and_the_cheapest_of_those_near(found):
    *_, result = found
    pairs = list(result.pairs)
    assert result.picks["paper"] == min(pairs, key=lambda p: p.loss)
    cheap = result.picks["cheap"]
    lowest = min(p.held_loss for p in pairs)
    assert cheap.held_loss <= 1.05 * lowest
    assert all(p.held_loss > 1.05 * lowest for p in pairs if p.cost < cheap.cost)
    costs = {(p.i, p.j): p.cost for p in pairs}
    assert all(costs[i, j] < costs[i + 1, j] for i in range(1, 8) for j in range(1, 5))
    assert all(costs[i, j] > costs[i, j + 1] for i in range(1, 9) for j in range(1, 4))


def lowest(result):
    return min(pair.held_loss for pair in result.pairs)


def test_a_saved_search_is_the_same(found, tmp_path):
    *_, result = found
    result = replace(result, about={**result.about, "world": "shapes"})
    result.save(tmp_path)
    again = load(tmp_path)
    assert (again.pairs, again.picks, again.about) == (result.pairs, result.picks, result.about)
    kept = {*result.near, *result.picks.values()}
    assert set(again.interfaces) == {(pair.i, pair.j) for pair in kept}
    assert {pair for pair in result.pairs if pair.held_loss <= 1.05 * lowest(result)} <= kept
    for pair in kept:
        fit, cls = again.interfaces[pair.i, pair.j]
        expected = result.interfaces[pair.i, pair.j]
        assert torch.equal(fit.weight, expected.fit.weight)
        assert torch.equal(fit.bias, expected.fit.bias)
        assert (fit.rank, fit.loss) == (expected.fit.rank, expected.fit.loss)
        assert (cls is None) == (expected.cls is None)
    picks = json.loads((tmp_path / "search.json").read_text())["picks"]
    assert picks == {name: [p.i, p.j] for name, p in result.picks.items()}
    with pytest.raises(FileNotFoundError, match=r"expected a search in .*, got no search.json"):
        load(tmp_path / "elsewhere")


def test_targets_can_come_from_decoded_latents(found):
    world, reward, x, y, _ = found
    decoded = Settings(entries=(2,), source="latents")
    once = search(world.backbone, reward, x.split(7), y.split(5), settings=decoded)
    assert {p.j for p in once.pairs} == {2}
    assert once.about == {"entries": (2,), "source": "latents", "ridge": 0.0, "seed": 0}
    with torch.no_grad():
        shown = world.backbone.decode(world.backbone.encode(y))
        for pixels, pair in ((y, found[-1].pairs[1]), (shown, once.pairs[0])):
            target = tokens_of(reward.head(pixels, 2).map).double()
            spread = target.var(0, correction=0).mean().item()
            of_rows = pair.held_loss / (1 - pair.held_r2)
            assert of_rows == pytest.approx(spread, rel=1e-5)


def test_linear_blocks_of_the_exact_world_are_fitted():
    world = GaussianWorld(latent=(2, 2, 2), components=3, rank=2, prompts=4)
    rng = Streams.of(0, "images", rows=200)
    x = world.backbone.decode(world.draw([NULL] * 200, rng))
    with pytest.warns(
        RuntimeWarning, match="features of block 2 have rank 8 of 9"
    ):  # responsibilities sum to 1
        result = search(world.backbone, world.reward("linear"), x.split(64), x.split(50))
    assert {(p.i, p.j) for p in result.pairs} == {(i, j) for i in range(1, 5) for j in (1, 2)}
    best = {p.i: p.r2 for p in result.pairs if p.j == 1}
    assert best[3] >= best[4] - 1e-9  # block 3 holds the posterior mean, block 4 less
    assert best[3] > 0.3


# Bad input


def test_entries_beyond_the_reward_are_refused(found):
    world, reward, x, y, _ = found
    with refused("expected entries j in 1..6, got [7]"):
        search(world.backbone, reward, [x], [y], settings=Settings(entries=(1, 7)))


@pytest.mark.parametrize("entries", [(), (2, 1), (1, 1)])
def test_entries_must_rise(entries, found):
    world, reward, x, y, _ = found
    with refused(f"expected entries j that rise, got {entries}"):
        search(world.backbone, reward, [x], [y], settings=Settings(entries=entries))


def test_layers_of_another_table_are_refused(found, tmp_path):
    found[-1].save(tmp_path)
    path = tmp_path / "fits.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ValueError, match=r"expected .*fits.safetensors with digest .*, got"):
        load(tmp_path)


def test_empty_sets_are_refused(found):
    world, reward, x, y, _ = found
    with refused("expected at least one image in the probe set, got none"):
        search(world.backbone, reward, [], [y])
    with refused("expected at least one image in the held set, got none"):
        search(world.backbone, reward, [x], [])


def test_images_of_one_colour_are_refused(found):
    world, reward, x, y, _ = found
    with refused("expected images that differ in the probe set, got equal ones"):
        search(world.backbone, reward, torch.full_like(x, 0.3).split(7), [y])
