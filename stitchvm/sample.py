r"""Samplers: from noise, or from any z_t, towards data along one velocity.

    dz = (u_t - nu_t^2 / 2 score_t) dt + nu_t dW,   t from 1 to 0                         (Eq. 11)

nu = 0 is the ODE.  Every nu keeps the marginals p_t; only nu^2 = 2 t / (1 - t), the reversal of
the forward process, draws z_0 from the posterior p(z_0 | z_t).

A Sampler is one transition kernel p(z_s | z_t), one velocity call; `sample` is the loop.  Solvers
that call the velocity twice a step (Heun) are loops of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import Prompts, Velocity
from stitchvm.path import expand_time, score
from stitchvm.streams import Streams

Nu = Callable[[Tensor], Tensor]  # diffusion coefficient nu_t at times in [0, 1)


def reversal(t: Tensor) -> Tensor:
    """sqrt(2 t / (1 - t)): the forward process reversed; its rollouts end in the posterior."""
    return (2 * t / (1 - t)).sqrt()


def flow_grpo(t: Tensor, a: float = 0.7) -> Tensor:
    """A sqrt(t / (1 - t)), a = 0.7: Flow-GRPO (Liu et al., 2025, arXiv:2505.05470)."""
    return a * (t / (1 - t)).sqrt()


def sigma(t: Tensor) -> Tensor:
    """The noise level t itself."""
    return t


def square(t: Tensor) -> Tensor:
    """3 t^2: rollover budget forcing (Kim et al., 2025, arXiv:2503.19385)."""
    return 3 * t**2


NU: dict[str, Nu] = {
    "reversal": reversal,
    "flow_grpo": flow_grpo,
    "sigma": sigma,
    "square": square,
}


class Normal(NamedTuple):
    """p(z_s | z_t): mean (B, *latent) and standard deviation, () or (B, 1, ..., 1)."""

    mean: Tensor
    std: Tensor

    def draw(self, rng: Streams) -> Tensor:
        """One z_s per row, (B, *latent)."""
        return self.mean + self.std * rng.normal(self.mean)


class Sampler(ABC):
    """A transition kernel along a velocity.

    Attributes:
        stochastic: Whether its standard deviation is positive: whether duplicates diverge.
    """

    stochastic: bool

    @abstractmethod
    def transition(self, z_t: Tensor, t: Tensor, s: Tensor, c: Prompts) -> Normal:
        """The kernel p(z_s | z_t) for s < t, by ONE velocity call.

        Args:
            z_t: Noisy latents, (B, *latent).
            t: Their times, () or (B,).
            s: Next times, of the same shape as t.
            c: Their prompts.
        """


class Ode(Sampler):
    """Euler steps of the probability-flow ODE: deterministic, first order.

    Args:
        velocity: The velocity u(z_t, t, c).
    """

    stochastic = False

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity

    def transition(self, z_t: Tensor, t: Tensor, s: Tensor, c: Prompts) -> Normal:
        """A point: z_t - (t - s) u_t."""
        step = expand_time(t - s, z_t)
        return Normal(z_t - step * self.velocity(z_t, t, c), torch.zeros_like(step))


class Sde(Sampler):
    """Euler-Maruyama steps of the reverse SDE (Eq. 11).

    A nu that is infinite at t = 1 is taken at the end of that step instead, as Flow-GRPO does.
    Errors fall like 1 / steps, except from t = 1 exactly with nu^2 = a^2 t / (1 - t): there the
    first steps' noise does not shrink and is forgotten with order min(1, a^2).

    Args:
        velocity: The velocity u(z_t, t, c).
        nu: The diffusion coefficient nu_t.
    """

    stochastic = True

    def __init__(self, velocity: Velocity, nu: Nu = reversal) -> None:
        self.velocity = velocity
        self.nu = nu

    def transition(self, z_t: Tensor, t: Tensor, s: Tensor, c: Prompts) -> Normal:
        """A Gaussian of mean z_t - (t - s)(u_t - nu^2 / 2 score_t) and variance nu^2 (t - s)."""
        step, nu = expand_time(t - s, z_t), expand_time(self.nu(torch.where(t < 1, t, s)), z_t)
        u = self.velocity(z_t, t, c)
        drift = u - nu**2 / 2 * score(z_t, t, u)
        return Normal(z_t - step * drift, nu * step.sqrt())


class Diverged(ArithmeticError):
    """Latents that are not finite, with the step that made them."""


class Step(NamedTuple):
    """Where a trajectory is: time () or (B,) and latents (B, *latent)."""

    t: Tensor
    z_t: Tensor


def trajectory(
    sampler: Sampler, z: Tensor, times: Tensor, c: Prompts, rng: Streams | None = None
) -> Iterator[Step]:
    """Walk down a time grid, yielding every point, the first included; stop when you like.

    Args:
        sampler: The transition kernel.
        z: Latents at times[0], (B, *latent).
        times: Descending times, (steps + 1,) or (steps + 1, B); see `time_grid`.
        c: Prompts, B of them.
        rng: One stream per row; needed by a stochastic sampler.

    Raises:
        ValueError: if a stochastic sampler comes without rng.
        Diverged: if a step ends in latents that are not finite.
    """
    if sampler.stochastic and rng is None:
        raise ValueError(f"expected rng: {type(sampler).__name__} is stochastic; got None")
    times = times.to(z.device)  # not the dtype: in bfloat16 neighbouring times would be equal
    yield Step(times[0], z)
    for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True), start=1):
        kernel = sampler.transition(z, t, s, c)
        last, z = z, kernel.mean if rng is None or not sampler.stochastic else kernel.draw(rng)
        check_finite(z, last, k, times)
        yield Step(s, z)


def check_finite(z: Tensor, last: Tensor, k: int, times: Tensor) -> None:
    """Refuse latents that are not finite.

    Args:
        z: Latents after step k, (B, *latent).
        last: Those before it.
        k: Steps done.
        times: The grid.

    Raises:
        Diverged: saying after which step, and from latents of which norm.
    """
    if not bool(z.isfinite().all()):
        raise Diverged(
            f"expected finite latents, got {int((~z.isfinite()).sum())} values that are not after "
            f"step {k} of {len(times) - 1} (t = {float(times[k].max()):.3g}), from latents of "
            f"norm {float(last.flatten(1).norm(dim=1).max()):.3g} at most"
        )


def sample(
    sampler: Sampler, z: Tensor, times: Tensor, c: Prompts, rng: Streams | None = None
) -> Tensor:
    """The end of a trajectory, (B, *latent): z_0, or z_tau where the grid stops at tau."""
    for step in trajectory(sampler, z, times, c, rng):
        z = step.z_t
    return z


def heun(velocity: Velocity, z: Tensor, times: Tensor, c: Prompts) -> Tensor:
    """Heun's method on the ODE: second order, two velocity calls a step.

    Arguments as in `trajectory`, without randomness.  Returns the latents at times[-1].
    """
    times = times.to(z.device)
    for t, s in zip(times[:-1], times[1:], strict=True):
        step = expand_time(t - s, z)
        u = velocity(z, t, c)
        z = z - step / 2 * (u + velocity(z - step * u, s, c))
    return z
