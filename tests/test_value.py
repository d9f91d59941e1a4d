"""Targets, and what every estimator refuses before it computes; gradients against closed forms."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator, value_and_gradient

LATENT, ROWS = (2, 1, 3), 4
C = [f"scene {row}" for row in range(ROWS)]
SMALL = settings(max_examples=25, deadline=None)


class Cubic(ValueEstimator):
    """V = w sum z^3 + t, of gradient 3 w z^2."""

    def __init__(self):
        super().__init__()
        self.latent, self.target = LATENT, Target()
        self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, z_t, t, c, rng=None):
        return self.w * z_t.pow(3).flatten(1).sum(1) + t


class Blind(Cubic):
    differentiable = False


class Noisy(Cubic):
    """V = sum z^3 xi: random, differentiable for a given rng."""

    stochastic = True

    def forward(self, z_t, t, c, rng=None):
        return (z_t.pow(3) * rng.normal(z_t)).flatten(1).sum(1)


def latents(rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, *LATENT), generator=generator, dtype=torch.float64)


def half(*shape):
    return torch.full(shape, 0.5, dtype=torch.float64)


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": "soft"}, "expected lambda > 0 for the soft value, got None"),
        ({"value": "soft", "lam": 0.0}, "expected lambda > 0 for the soft value, got 0.0"),
        ({"value": "soft", "lam": -2.0}, "expected lambda > 0 for the soft value, got -2.0"),
        ({"value": "soft", "lam": math.nan}, "expected lambda > 0 for the soft value, got nan"),
        ({"lam": 1.0}, "expected no lambda for the mean value, got 1.0"),
        ({"value": "median"}, "expected value in ('mean', 'soft'), got 'median'"),
        (
            {"posterior": "prior"},
            "expected posterior in ('data', 'prompt', 'model'), got 'prior'",
        ),
        (
            {"posterior": "model"},
            "expected a kernel for the model posterior and only there, got "
            "posterior='model', kernel=None",
        ),
        (
            {"posterior": "prompt", "kernel": "ode, 8 steps"},
            "expected a kernel for the model posterior and only there, got "
            "posterior='prompt', kernel='ode, 8 steps'",
        ),
    ],
)
def test_target_refuses(fields, message):
    with refused(message):
        Target(**fields)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(), "mean | data"),
        (Target(posterior="prompt"), "mean | prompt"),
        (Target("soft", "prompt", 2.0), "soft(2) | prompt"),
        (Target("soft", "data", 0.125), "soft(0.125) | data"),
        (Target("mean", "model", kernel="ode, 8 steps"), "mean | ode, 8 steps"),
        (Target("soft", "model", 1.0, "sigma, 4 steps"), "soft(1) | sigma, 4 steps"),
    ],
)
def test_target_says_what_it_is(target, text):
    assert str(target) == text
    plain = target.as_dict()
    assert plain.pop("text") == text
    assert Target(**plain) == target


# inputs


def wrong(**changes):
    return {"z_t": latents(), "t": half(ROWS), "c": C, "rng": None, **changes}


WRONG = [
    (wrong(t=half(ROWS) + 1), "expected t in [0, 1], got 1.5 to 1.5"),
    (
        wrong(t=torch.tensor([0.5, -0.25, 0.5, 1.0])),
        "expected t in [0, 1], got -0.25 to 1",
    ),
    (wrong(t=torch.tensor(math.nan)), "expected t in [0, 1], got nan to nan"),
    (wrong(t=half(1)), "expected t of shape () or (4,), got (1,)"),
    (wrong(t=half(ROWS, 1)), "expected t of shape () or (4,), got (4, 1)"),
    (wrong(z_t=latents()[:, :, :, :2]), "expected z_t of shape (B, 2, 1, 3), got (4, 2, 1, 2)"),
    (wrong(z_t=latents().flatten(1)), "expected z_t of shape (B, 2, 1, 3), got (4, 6)"),
    (wrong(z_t=latents()[0]), "expected z_t of shape (B, 2, 1, 3), got (2, 1, 3)"),
    (wrong(c=C[:3]), "expected 4 prompts, one per latent, got 3"),
    (wrong(c=[]), "expected 4 prompts, one per latent, got 0"),
    (wrong(c="four"), "expected 4 prompts, one per latent, got one string"),
    (
        wrong(rng=Streams.of(0, rows=3)),
        "expected 4 random streams, one per latent, got 3",
    ),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG)
@pytest.mark.parametrize("estimator", [Cubic(), Noisy()], ids=["deterministic", "stochastic"])
@pytest.mark.parametrize("named", [0, 2, 4])
def test_wrong_inputs_are_refused_by_place_and_by_name(estimator, inputs, message, named):
    if inputs["rng"] is None and estimator.stochastic:
        inputs = {**inputs, "rng": Streams.of(0, rows=ROWS)}
    places, names = list(inputs.values())[: 4 - named], dict(list(inputs.items())[4 - named :])
    with refused(message):
        estimator(*places, **names)


@pytest.mark.parametrize("inputs", [(), (None,)], ids=["left out", "None"])
def test_a_stochastic_estimator_wants_rng(inputs):
    with refused("expected rng, one stream per latent: Noisy is stochastic; got None"):
        Noisy()(latents(), half(), C, *inputs)


@pytest.mark.parametrize("t", [half(), half(ROWS), torch.tensor(0.0), torch.tensor(1.0)])
def test_right_inputs_pass_by_place_and_by_name(t):
    z_t, estimator = latents(), Cubic()
    expected = 0.5 * z_t.pow(3).sum((1, 2, 3)) + t
    for value in (estimator(z_t, t, C), estimator(z_t=z_t, t=t, c=tuple(C), rng=None)):
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)


# value_and_gradient


def test_a_gradient_that_is_none_is_refused():
    with refused("expected a differentiable estimator, got Blind"):
        value_and_gradient(Blind(), latents(), half(), C)


@SMALL
@given(st.integers(0, 9999), st.integers(1, 5))
def test_gradient_is_the_closed_form(seed, rows):
    z_t, t, estimator = latents(rows, seed), half(rows), Cubic()
    found = value_and_gradient(estimator, z_t, t, ["scene 0"] * rows)
    with torch.no_grad():
        expected = estimator(z_t, t, ["scene 0"] * rows)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=0)
    torch.testing.assert_close(found.gradient, 1.5 * z_t**2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("estimator", [Cubic(), Noisy()], ids=["deterministic", "stochastic"])
def test_gradient_of_a_row_is_its_own(estimator):
    z_t, rng = latents(), Streams.of(0, rows=ROWS)
    together = value_and_gradient(estimator, z_t, half(ROWS), C, rng)
    for row in range(ROWS):
        one, rng = slice(row, row + 1), Streams.of(0, rows=ROWS)
        alone = value_and_gradient(estimator, z_t[one], half(1), C[one], rng[one])
        torch.testing.assert_close(together.value[one], alone.value, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(together.gradient[one], alone.gradient, rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_gradient_leaves_no_graph_and_touches_nothing(grad):
    z_t, estimator = latents().requires_grad_(), Cubic()
    with torch.set_grad_enabled(grad):
        found = value_and_gradient(estimator, z_t, half(), C)
        assert torch.is_grad_enabled() == grad
    for result in found:
        assert not result.requires_grad
        assert result.grad_fn is None
    assert z_t.grad is None
    assert estimator.w.grad is None
    torch.testing.assert_close(found.gradient, 1.5 * z_t.detach() ** 2, rtol=1e-14, atol=0)
