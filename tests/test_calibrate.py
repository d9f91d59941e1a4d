"""Calibration: the regression of realised rewards, and what it repairs."""

import re

import pytest
import torch

from baselines import ESTIMATORS
from bench.worlds.gaussian import GaussianWorld
from stitchvm.calibrate import Calibrated, Lines, fit_lines
from stitchvm.path import noise
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator, value_and_gradient

LEVELS = (0.2, 0.5, 0.8)


class Distorted(ValueEstimator):
    """An estimator that is off by a line of its own at each noise level."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.latent, self.target = inner, inner.latent, inner.target

    def forward(self, z_t, t, c, rng=None):
        return (self.inner(z_t, t, c, rng) - 3 * t) / (1 + t)


@pytest.fixture(scope="module")
def setting():
    world = GaussianWorld(latent=(2, 2, 1), components=3, rank=2, prompts=4)
    c = [world.prompts[row % 4] for row in range(6000)]
    z_0 = world.draw(c, Streams.of(0, "calibration", rows=len(c)))
    return world, world.reward("quadratic"), z_0, c


def test_a_distorted_truth_is_straightened(setting):
    """V = (truth - 3 t) / (1 + t), so that a = 1 + t and b = 3 t, known here by their noise."""
    world, reward, z_0, c = setting
    truth = world.truth(reward, Target(posterior="prompt"))
    lines = fit_lines(Distorted(truth), world.backbone, reward, z_0, c, levels=LEVELS)
    torch.testing.assert_close(lines.t, torch.tensor(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(lines.slope, 1 + lines.t, rtol=0.05, atol=0)
    torch.testing.assert_close(lines.offset, 3 * lines.t, rtol=0, atol=0.25)


def test_the_line_is_least_squares(setting):
    world, reward, z_0, c = setting
    inner = ESTIMATORS["tweedie"](world, reward)
    lines = fit_lines(inner, world.backbone, reward, z_0[:50], c[:50], levels=(0.3, 0.7))
    rng = Streams.of(0, "calibrate", 1, rows=50)
    t = torch.tensor(0.7, dtype=torch.float64)
    v = inner(noise(z_0[:50], t, rng.child("eps").normal(z_0[:50])), t, c[:50])
    r = reward(world.backbone.decode(z_0[:50]), c[:50])
    by_hand = torch.linalg.lstsq(torch.stack([v, torch.ones_like(v)], 1), r[:, None]).solution[
        :, 0
    ]
    torch.testing.assert_close(torch.stack([lines.slope[1], lines.offset[1]]), by_hand)


def test_calibrating_tweedie_lowers_its_error_on_other_latents(setting):
    world, reward, z_0, c = setting
    inner, truth = (ESTIMATORS[name](world, reward) for name in ("tweedie", "truth"))
    lines = fit_lines(inner, world.backbone, reward, z_0[:3000], c[:3000], levels=(0.3, 0.5, 0.7))
    t, rest = torch.tensor(0.5, dtype=torch.float64), z_0[3000:]
    z_t = noise(rest, t, Streams.of(1, rows=3000).normal(rest))
    before, after = (
        (estimator(z_t, t, c[3000:]) - truth(z_t, t, c[3000:])).square().mean()
        for estimator in (inner, Calibrated(inner, lines))
    )
    assert after < 0.5 * before


def test_lines_are_interpolated_along_the_logit_and_held_beyond(setting):
    world, reward, z_0, c = setting
    known = Lines(*(torch.tensor(x) for x in ([0.2, 0.5, 0.8], [1.0, 2.0, 4.0], [0.0, 1.0, 5.0])))
    halfway = torch.tensor([0.2, 0.5, 0.8]).logit()
    asked = torch.stack([(halfway[0] + halfway[1]) / 2, (halfway[1] + halfway[2]) / 2]).sigmoid()
    slope, offset = known.at(asked)
    torch.testing.assert_close(slope, torch.tensor([1.5, 3.0]))
    torch.testing.assert_close(offset, torch.tensor([0.5, 3.0]))
    slope, offset = known.at(torch.tensor([0.0, 0.1, 0.9, 1.0]))
    torch.testing.assert_close(slope, torch.tensor([1.0, 1.0, 4.0, 4.0]))
    estimator = Calibrated(ESTIMATORS["tweedie"](world, reward), known)
    t = torch.tensor(0.5, dtype=torch.float64)
    plain = value_and_gradient(estimator.inner, z_0[:3], t, c[:3])
    found = value_and_gradient(estimator, z_0[:3], t, c[:3])
    torch.testing.assert_close(found.value, 2 * plain.value + 1)
    torch.testing.assert_close(found.gradient, 2 * plain.gradient)


def test_what_never_varies_becomes_the_mean(setting):
    world, reward, z_0, c = setting
    lines = fit_lines(
        ESTIMATORS["constant"](world, reward, posterior="data"),
        world.backbone,
        reward,
        z_0[:60],
        [c[0]] * 60,
        levels=(0.3, 0.7),
    )
    r = reward(world.backbone.decode(z_0[:60]), [c[0]] * 60)
    assert lines.slope.tolist() == [0, 0]
    torch.testing.assert_close(lines.offset, r.mean().expand(2))


@pytest.mark.parametrize(
    ("rows", "levels", "message"),
    [
        (2, LEVELS, "expected at least 3 latents, got 2"),
        (9, (0.5, 0.2), "expected levels that rise within (0, 1), got (0.5, 0.2)"),
        (9, (0.0, 0.2), "expected levels that rise within (0, 1), got (0.0, 0.2)"),
    ],
)
def test_bad_input_is_refused(rows, levels, message, setting):
    world, reward, z_0, c = setting
    inner = ESTIMATORS["tweedie"](world, reward)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit_lines(inner, world.backbone, reward, z_0[:rows], c[:rows], levels=levels)


def test_a_soft_value_is_refused(setting):
    world, reward, z_0, c = setting
    soft = world.truth(reward, Target("soft", "prompt", 0.1))
    with pytest.raises(
        ValueError, match=r"expected an estimator of the mean value over data .* got soft\(0.1"
    ):
        fit_lines(soft, world.backbone, reward, z_0[:9], c[:9])
