r"""Guidance: a velocity that holds a velocity, so every sampler works with every guidance.

CFG       u = u(z_t | 0) + w (u(z_t | c) - u(z_t | 0))    Ho & Salimans, 2022, arXiv:2207.12598
Guided    u = u(z_t | c) - lambda c_t grad V(z_t | c)                              (Eqs. 4, 39)

Time falls, so ascending the value subtracts its gradient.  A sampler reads the score off the
velocity (Eq. 25), and with c_t = t / (1 - t) the score then gains exactly lambda grad V: the one
line above is Eq. 39 for the ODE and for the SDE with any nu, and with the exact soft value of the
same lambda it samples the tilted target p* ~ p exp(lambda r).

DPS (Chung et al., 2022, arXiv:2209.14687) is Guided with Tweedie; DPS + StitchVM is Guided with a
stitched value model.  Whether classifier-free guidance is inside the differentiated velocity is
the estimator's business: it holds a velocity of its own.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Prompts, Velocity
from stitchvm.path import expand_time
from stitchvm.value import Valued, ValueEstimator, value_and_gradient

Profile = Callable[[Tensor], Tensor]  # c_t >= 0 at times; 0: not guided there
Normalise = Callable[[Valued], Tensor]  # the gradient as it is applied, row by row


class CFG:
    """Classifier-free guidance, both branches in one call of twice the batch.

    Args:
        velocity: What is guided.
        scale: w; 1 is the velocity itself, 0 the null prompt's.
    """

    def __init__(self, velocity: Velocity, scale: float) -> None:
        self.velocity, self.scale = velocity, scale

    def __call__(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The guided velocity, (B, *latent)."""
        if self.scale == 1:
            return self.velocity(z_t, t, c)
        twice = t if t.ndim == 0 else torch.cat([t, t])
        both = self.velocity(torch.cat([z_t, z_t]), twice, [NULL] * len(z_t) + list(c))
        null, prompted = both.chunk(2)
        return null + self.scale * (prompted - null)


def exact(t: Tensor) -> Tensor:
    """T / (1 - t): Eq. 39, which samples p* with the exact soft value; infinite at t = 1."""
    return t / (1 - t)


def constant(t: Tensor) -> Tensor:
    """1 at all times: the paper's experiments (section 4.2)."""
    return torch.ones_like(t)


def clipped(t: Tensor, most: float = 4.0) -> Tensor:
    """The exact profile, at most `most`: that of t = 0.8 by default."""
    return (t / (1 - t)).clamp(max=most)


PROFILES: dict[str, Profile] = {"exact": exact, "constant": constant, "clipped": clipped}


def within(profile: Profile, first: float, last: float) -> Profile:
    """A profile that guides while first >= t >= last only.

    Raises:
        ValueError: if not 1 >= first >= last >= 0.
    """
    if not 1 >= first >= last >= 0:
        raise ValueError(f"expected a window 1 >= first >= last >= 0, got {first:g} to {last:g}")
    return lambda t: torch.where((t <= first) & (t >= last), profile(t), 0.0)


def every(profile: Profile, times: Tensor, n: int) -> Profile:
    """A profile that guides every n-th step of a time grid, n times as much, so as to move as far.

    Args:
        profile: What it thins out.
        times: The grid, (steps + 1,).
        n: 1 is the profile itself.

    Raises:
        ValueError: if n is not in 1..steps.
    """
    if not 1 <= n < len(times):
        raise ValueError(f"expected n in 1..{len(times) - 1}, the steps, got {n}")
    if n == 1:
        return profile
    chosen = times[:-1][n - 1 :: n]

    def thinned(t: Tensor) -> Tensor:
        return torch.where(torch.isin(t, chosen.to(t)), n * profile(t), 0.0)

    return thinned


def plain(valued: Valued) -> Tensor:
    """The gradient as it is."""
    return valued.gradient


def unit_rms(valued: Valued) -> Tensor:
    """The gradient with a root mean square of 1 in every sample; 0 stays 0."""
    rms = valued.gradient.flatten(1).double().square().mean(1).sqrt()
    return _divided(valued.gradient, rms.to(valued.gradient))


def per_value(valued: Valued) -> Tensor:
    """The gradient over |V|: that of log |V| but for its sign (TFG, arXiv:2409.15761)."""
    return _divided(valued.gradient, valued.value.abs())


def _divided(gradient: Tensor, by: Tensor) -> Tensor:
    """Every sample by a number of its own; where that is 0, 0."""
    by = expand_time(by, gradient)
    return torch.where(by == 0, 0.0, gradient / by)


NORMALISE: dict[str, Normalise] = {"none": plain, "rms": unit_rms, "value": per_value}


class Guided:
    """A velocity that a value estimator steers (Eq. 4).

    The estimator is asked first, so that a `SharedTrunk` that both hold goes on from its blocks.
    Where the profile is 0 it is not asked at all.

    Args:
        velocity: What is guided, as the sampler would use it: with its own CFG.
        value: Says where better images are; differentiable.
        strength: lambda >= 0, over the reward's unit unless gradients are normalised.
        profile: c_t.
        normalise: Of the gradient, each sample by itself.

    Raises:
        ValueError: for a negative or infinite strength, or an estimator without a gradient or
            with randomness of its own.
    """

    def __init__(
        self,
        velocity: Velocity,
        value: ValueEstimator,
        strength: float,
        *,
        profile: Profile = exact,
        normalise: Normalise = plain,
    ) -> None:
        if not (strength >= 0 and math.isfinite(strength)):
            raise ValueError(f"expected a finite strength >= 0, got {strength:g}")
        if not value.differentiable:
            raise ValueError(f"expected a differentiable estimator, got {type(value).__name__}")
        if value.stochastic:
            raise ValueError(
                f"expected an estimator without randomness of its own, got {type(value).__name__}"
            )
        self.velocity, self.value, self.strength = velocity, value, strength
        self.profile, self.normalise = profile, normalise

    def __call__(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The guided velocity, (B, *latent).

        Raises:
            ValueError: where the profile is infinite: the exact one at t = 1.
        """
        c_t = self.profile(t)
        if not bool(c_t.isfinite().all()):
            raise ValueError(
                f"expected a finite coefficient, got {float(c_t.max()):g} at "
                f"t = {float(t.max()):g}: begin below t = 1, where the exact profile is infinite"
            )
        if self.strength == 0 or not bool(c_t.any()):
            return self.velocity(z_t, t, c)
        ascent = self.normalise(value_and_gradient(self.value, z_t, t, c))
        return self.velocity(z_t, t, c) - self.strength * expand_time(c_t, z_t) * ascent
