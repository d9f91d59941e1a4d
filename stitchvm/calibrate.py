r"""Affine calibration of a value estimator, one line per noise level.

    V'(z_t) = a_t V(z_t) + b_t,   (a_t, b_t) = argmin E (r(z_0) - a V(z_t) - b)^2

over forward-noised held-out images: the regression of the realised reward on the value.  It takes
away what is off on average at a noise level - a cosine of unit embeddings is too high by
1 / |E[e | z_t]| - and leaves alone how values are ranked there.  Between levels a and b are
interpolated along the logit of t; beyond the first and last they stay.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import Backbone, Prompts
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import ValueEstimator

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
AT_ONCE = 64


class Lines(NamedTuple):
    """A line for each noise level: t, slope a and offset b, (n,) each; t rises within (0, 1)."""

    t: Tensor
    slope: Tensor
    offset: Tensor

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and offset at times, of their shape."""
        known, asked = self.t.logit(), t.to(self.t).clamp(self.t[0], self.t[-1]).logit()
        right = torch.searchsorted(known, asked).clamp(1, len(known) - 1)
        share = (asked - known[right - 1]) / (known[right] - known[right - 1])
        slope, offset = (x[right - 1].lerp(x[right], share) for x in (self.slope, self.offset))
        return slope.to(t), offset.to(t)


class Calibrated(ValueEstimator):
    """An estimator with its lines.

    Args:
        inner: The estimator.
        lines: As `fit_lines` finds them.
    """

    def __init__(self, inner: ValueEstimator, lines: Lines) -> None:
        super().__init__()
        self.inner, self.lines = inner, lines
        self.latent, self.target = inner.latent, inner.target
        self.differentiable, self.stochastic = inner.differentiable, inner.stochastic

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        slope, offset = self.lines.at(t)
        return slope.to(z_t.device) * self.inner(z_t, t, c, rng) + offset.to(z_t.device)


def exchanged(c: Prompts, seed: int = 0) -> list[str]:
    """The prompts, each at the place of another at random: they say nothing of their images."""
    rng = torch.Generator().manual_seed(derive(seed, "exchanged"))
    order = torch.randperm(len(c), generator=rng).tolist()
    source = dict(zip(order, order[1:] + order[:1], strict=True))
    return [c[source[k]] for k in range(len(c))]


@torch.no_grad()
def fit_lines(
    inner: ValueEstimator,
    backbone: Backbone,
    reward: Reward,
    z_0: Tensor,
    c: Prompts,
    *,
    levels: tuple[float, ...] = LEVELS,
    seed: int = 0,
) -> Lines:
    """The line of every noise level.

    Args:
        inner: Whose.
        backbone: Decodes.
        reward: What is realised.
        z_0: Clean latents that nothing was trained on, (n, *latent), drawn under their prompts
            for an estimator of the `prompt` posterior, regardless of them for one of the `data`.
        c: The prompts.
        levels: Noise levels t, rising.
        seed: Of the noise.

    Raises:
        ValueError: for fewer than three latents, a soft value or a sampler's, which noised latents
            do not realise, or levels that don't rise.
    """
    if len(z_0) < 3:  # noqa: PLR2004 - a line through two points says nothing
        raise ValueError(f"expected at least 3 latents, got {len(z_0)}")
    if not inner.target.realised:
        raise ValueError(
            f"expected an estimator of the mean value over data or given the prompt, got "
            f"{inner.target}"
        )
    if list(levels) != sorted(set(levels)) or not 0 < levels[0] < levels[-1] < 1:
        raise ValueError(f"expected levels that rise within (0, 1), got {levels}")
    rows = [slice(first, first + AT_ONCE) for first in range(0, len(z_0), AT_ONCE)]
    r = torch.cat([reward(backbone.decode(z_0[s]), c[s]) for s in rows]).double()
    lines = []
    for number, level in enumerate(levels):
        rng = Streams.of(seed, "calibrate", number, rows=len(z_0))
        t = z_0.new_tensor(level)
        z_t = noise(z_0, t, rng.child("eps").normal(z_0))
        own = rng.child("value")
        v = torch.cat([inner(z_t[s], t, c[s], own[s]) for s in rows]).double()
        off = v - v.mean()
        spread = off.square().sum()
        slope = (off * r).sum() / spread if spread > 0 else spread  # a constant explains nothing
        line = (t.double(), slope, r.mean() - slope * v.mean())
        lines.append(torch.stack([x.cpu() for x in line]))
    return Lines(*torch.stack(lines, 1))
