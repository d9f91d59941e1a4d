"""Micro-benchmarks: one call of each estimator on 64 latents.  `make bench`; no time fails."""

import pytest
import torch

from baselines import ESTIMATORS
from bench.meter import synchronized
from bench.worlds import WORLDS
from stitchvm.path import noise
from stitchvm.streams import Streams
from stitchvm.value import value_and_gradient

ROWS = 64
SETTINGS = {"monte_carlo": {"particles": 4, "steps": 16}}


@pytest.fixture(scope="module")
def inputs():
    world = WORLDS["gaussian"]()
    c = [world.prompts[row % 16] for row in range(ROWS)]
    rng = Streams.of(0, "benchmark", rows=ROWS)
    z_0 = world.draw(c, rng.child("z_0"))
    t = torch.tensor(0.5, dtype=z_0.dtype)
    return world, noise(z_0, t, rng.child("eps").normal(z_0)), t, c, rng


@pytest.mark.parametrize("name", ESTIMATORS)
def test_value(benchmark, inputs, name):
    world, z_t, t, c, rng = inputs
    estimator = ESTIMATORS[name](world, world.reward("quadratic"), **SETTINGS.get(name, {}))

    def call():
        with torch.no_grad():
            value = estimator(z_t, t, c, rng)
        synchronized(value.device)
        return value

    benchmark.extra_info["latents"] = ROWS
    assert benchmark.pedantic(call, rounds=5, warmup_rounds=1).shape == (ROWS,)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradient(benchmark, inputs, name):
    world, z_t, t, c, rng = inputs
    estimator = ESTIMATORS[name](world, world.reward("quadratic"), **SETTINGS.get(name, {}))
    if not estimator.differentiable:
        pytest.skip("has no gradient")

    def call():
        gradient = value_and_gradient(estimator, z_t, t, c, rng).gradient
        synchronized(gradient.device)
        return gradient

    benchmark.extra_info["latents"] = ROWS
    assert benchmark.pedantic(call, rounds=5, warmup_rounds=1).shape == z_t.shape
