r"""The rectified-flow path between data and noise, and what one velocity says about it.

Time runs from 0 (clean) to 1 (pure noise):

    z_t = alpha_t z_0 + sigma_t eps,   alpha_t = 1 - t,   sigma_t = t                     (Eq. 1)
    u_t = E[eps - z_0 | z_t]                                                            (Eq. 1)
    E[z_0 | z_t] = z_t - t u_t                                                           (Eq. 22)
    grad log p_t(z_t) = -((1 - t) u_t + z_t) / t                                         (Eq. 25)

and, from an anchor z_tau instead of z_0, for t > tau,

    z_t = abar z_tau + sbar eps,   abar = alpha_t / alpha_tau,
    sbar^2 = sigma_t^2 - abar^2 sigma_tau^2                                      (Eqs. 74-76)
    E[z_tau | z_t] = ((1 - tau) / t) (sbar sbar' z_t - sbar^2 u_t)

All functions take latents (B, *latent) and times () or (B,).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def expand_time(t: Tensor, z: Tensor) -> Tensor:
    """Shape a time so that it broadcasts against latents.

    Args:
        t: Times, () or (B,).
        z: Latents, (B, *latent).

    Returns:
        The times in the latents' dtype, () or (B, 1, ..., 1).

    Raises:
        ValueError: if t has any other shape.
    """
    if t.shape not in {(), (z.shape[0],)}:
        raise ValueError(f"expected t of shape () or ({z.shape[0]},), got {tuple(t.shape)}")
    return (t if t.ndim == 0 else t.reshape(-1, *[1] * (z.ndim - 1))).to(z.dtype)


def noise(z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise clean latents to time t (Eq. 1); (B, *latent)."""
    t = expand_time(t, z_0)
    return (1 - t) * z_0 + t * eps


def denoise(z_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """The posterior mean E[z_0 | z_t] that a velocity implies (Tweedie, Eq. 22); (B, *latent)."""
    return z_t - expand_time(t, z_t) * u


def score(z_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """The score grad log p_t(z_t) that a velocity implies (Eq. 25); (B, *latent).  Needs t > 0."""
    t = expand_time(t, z_t)
    return -((1 - t) * u + z_t) / t


class Bridge(NamedTuple):
    """A point noised further from an anchor, and the velocity target there (Eqs. 74-76)."""

    z_t: Tensor
    u: Tensor


def bridge(z_tau: Tensor, tau: Tensor, t: Tensor, eps: Tensor) -> Bridge:
    """Noise an anchor z_tau on to time t, with E[u | z_t] = u_t (Eqs. 74-76).

    The target's spread grows like 1 / sqrt(t - tau): keep a gap.

    Args:
        z_tau: Anchors, (B, *latent).
        tau: Their times, () or (B,).
        t: Later times, () or (B,), above tau.
        eps: Standard normal noise, (B, *latent).

    Raises:
        ValueError: if some t is not above its tau.
    """
    tau, t = expand_time(tau, z_tau), expand_time(t, z_tau)
    if not bool((t > tau).all()):
        raise ValueError(f"expected t > tau, got a smallest gap of {float((t - tau).min()):g}")
    abar = (1 - t) / (1 - tau)
    sbar = (t**2 - (abar * tau) ** 2).sqrt()
    abar_dot = -1 / (1 - tau)
    sbar_dot = (t - abar * abar_dot * tau**2) / sbar
    return Bridge(abar * z_tau + sbar * eps, abar_dot * z_tau + sbar_dot * eps)


def anchor(z_t: Tensor, tau: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """The anchor E[z_tau | z_t] that a velocity implies: what `denoise` is at tau = 0.

    The inverse of `bridge`: of its u it gives back z_tau; unlike u, finite as t -> tau.

    Args:
        z_t: Latents, (B, *latent).
        tau: Times of their anchors, () or (B,).
        t: Their times, () or (B,), at or above tau and above 0.
        u: Velocities at z_t, (B, *latent).
    """
    tau, t = expand_time(tau, z_t), expand_time(t, z_t)
    abar = (1 - t) / (1 - tau)
    sbar_square = t**2 - (abar * tau) ** 2
    sbar_sbar_dot = t + (1 - t) * tau**2 / (1 - tau) ** 2
    return (1 - tau) / t * (sbar_sbar_dot * z_t - sbar_square * u)


def match_snr(t: float, positions: int, reference: int = 128 * 128) -> float:
    """The time at which a latent is as corrupted as a reference latent is at t.

    Noise averages out over positions, so a latent with fewer of them loses its content at a
    lower t: equal ((1 - t) / t)^2 x positions.  0.5 on 128 x 128 is 0.059 on 8 x 8.

    Args:
        t: Time on the reference latent, in (0, 1).
        positions: Height times width of the latent at hand.
        reference: Height times width of the reference latent; 128 x 128 is 1024 px at SD 3.5.
    """
    return 1 / (1 + (1 - t) / t * math.sqrt(reference / positions))


def time_grid(
    steps: int, start: Tensor | float = 1.0, stop: float = 0.0, shift: float = 1.0
) -> Tensor:
    """Times a sampler visits, from start down to stop.

    With shift s the times are s t / (1 + (s - 1) t) of an even grid: s > 1 spends more steps at
    high noise (Esser et al., 2024, arXiv:2403.03206, Eq. 23).

    Args:
        steps: Number of steps, at least 1.
        start: First time, () or (B,).
        stop: Last time; the sampler stops there (tau).
        shift: s above.

    Returns:
        Times, (steps + 1,) or (steps + 1, B), in the dtype of start (float64 for a number).

    Raises:
        ValueError: if steps < 1, shift <= 0, or not 0 <= stop < start <= 1.
    """
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"expected shift > 0, got {shift}")
    if not isinstance(start, Tensor):
        start = torch.tensor(float(start), dtype=torch.float64)
    if not bool(((start > stop) & (start <= 1)).all()) or stop < 0:
        raise ValueError(f"expected 0 <= stop < start <= 1, got stop={stop}, start={start}")
    even = torch.linspace(0, 1, steps + 1, dtype=start.dtype, device=start.device)
    even = even.reshape(-1, *[1] * start.ndim)
    first, last = start / (shift + (1 - shift) * start), stop / (shift + (1 - shift) * stop)
    warped = first + (last - first) * even
    times = shift * warped / (1 + (shift - 1) * warped)
    times[0], times[-1] = start, stop  # exactly, whatever the rounding in between
    return times
