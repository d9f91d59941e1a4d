r"""Monte Carlo: the mean reward of N rollouts of k solver steps from z_t.

    mean   1/N sum_n r(z_0^n)
    soft   (1 / lambda) log (1/N sum_n exp(lambda r(z_0^n))), biased low by about
           lambda Var[r | z_t] / (2 N) where lambda times the spread is small

Only the kernel `reversal`, nu^2 = 2 t / (1 - t), and `exact` draws end in the posterior
p(z_0 | z_t); every other sampler keeps the marginals but estimates what IT makes of z_t, a `model`
value.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stitchvm.align.guide import CFG
from stitchvm.backbone import NULL, Backbone, Prompts, Velocity
from stitchvm.path import expand_time, time_grid
from stitchvm.reward import Reward
from stitchvm.sample import NU, Ode, Sampler, Sde, sample
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import Finish, World

SOON = 1e-6  # a start for rows that are clean already; what it gives is not used
CHUNK = 1024  # latents times rollouts in flight at once: N sets the time, never the memory


class Rollout:
    """Finish z_t to z_0 with a sampler.

    Args:
        sampler: The kernel.
        steps: k.
        shift: Of the time grid from t to 0.
    """

    def __init__(self, sampler: Sampler, steps: int, shift: float = 1.0) -> None:
        time_grid(steps, shift=shift)  # refuses what is no grid
        self.sampler, self.steps, self.shift = sampler, steps, shift

    def __call__(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None) -> Tensor:
        """z_0 of every row, (B, *latent)."""
        clean = expand_time(t, z_t) == 0  # nothing to finish
        times = time_grid(self.steps, t.clamp(min=SOON), shift=self.shift)
        return torch.where(clean, z_t, sample(self.sampler, z_t, times, c, rng))


class MonteCarlo(ValueEstimator):
    """The aggregated reward of N rollouts per latent.

    Rollout n of a latent depends on its stream and n alone: values at smaller N are prefixes of
    those at larger N, whatever the batch or the chunks.

    Args:
        backbone: Decodes.
        reward: The reward on clean images.
        finish: One z_0 per row given (z_t, t, c, rng).
        target: What the rollouts aim at.
        particles: N.
        chunk: Latents times rollouts in flight at once; one rollout of the batch at least.
        stochastic: Whether finish draws from rng.
        differentiable: Whether what finish returns carries its gradient in z_t.

    Raises:
        ValueError: if particles < 1 or chunk < 1, or for N > 1 of a deterministic kernel.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        finish: Finish,
        target: Target,
        particles: int = 4,
        chunk: int = CHUNK,
        *,
        stochastic: bool = True,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        for name, number in (("particles", particles), ("chunk", chunk)):
            if number < 1:
                raise ValueError(f"expected {name} >= 1, got {number}")
        self.backbone, self.reward, self.finish = backbone, reward, finish
        self.latent, self.target = backbone.latent, target
        if particles > 1 and not stochastic:
            raise ValueError(
                f"expected particles = 1 with a deterministic kernel (all rollouts of one latent "
                f"are equal), got {particles}"
            )
        self.particles, self.chunk = particles, chunk
        self.stochastic, self.differentiable = stochastic, differentiable

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        return aggregate(self.rewards(z_t, t, c, rng), self.target.lam)

    def rewards(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None) -> Tensor:
        """The clean reward of every rollout, (N, B): any prefix is a smaller N.

        Arguments as in `forward`.  With gradients each chunk is recomputed in the backward pass.
        """
        at_once = max(1, self.chunk // len(z_t))
        chunks = [
            range(first, min(first + at_once, self.particles))
            for first in range(0, self.particles, at_once)
        ]
        if torch.is_grad_enabled() and z_t.requires_grad:
            parts = [
                checkpoint(self._chunk, z_t, t, c, rng, chunk, use_reentrant=False)
                for chunk in chunks
            ]
        else:
            parts = [self._chunk(z_t, t, c, rng, chunk) for chunk in chunks]
        return torch.cat(parts)

    def _chunk(
        self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None, chunk: range
    ) -> Tensor:
        """The rewards of some rollouts, (n, B)."""
        n = len(chunk)
        many, times = z_t.repeat(n, *[1] * (z_t.ndim - 1)), t if t.ndim == 0 else t.repeat(n)
        prompts = [*c] * n
        z_0 = self.finish(many, times, prompts, None if rng is None else rng.split(chunk))
        return self.reward(self.backbone.decode(z_0), prompts).unflatten(0, (n, -1))


def aggregate(rewards: Tensor, lam: float | None = None) -> Tensor:
    """The mean, or for a lambda the soft value in log space, of rewards (N, B) over N; (B,)."""
    if lam is None:
        return rewards.mean(0)
    return ((lam * rewards).logsumexp(0) - math.log(len(rewards))) / lam


def build(  # noqa: PLR0913
    world: World,
    reward: Reward,
    *,
    kernel: Literal["reversal", "flow_grpo", "sigma", "square", "ode", "exact"] = "reversal",
    steps: int = 32,
    shift: float = 1.0,
    particles: int = 4,
    value: Literal["mean", "soft"] = "mean",
    lam: float | None = None,
    posterior: Literal["data", "prompt"] = "prompt",
    guidance: float = 1.0,
    chunk: int = CHUNK,
) -> MonteCarlo:
    """Monte Carlo in a world.

    Args:
        world: Where.
        reward: Of what.
        kernel: `reversal`, another nu of `stitchvm.sample.NU`, `ode`, or `exact` posterior draws.
        steps: Solver steps of one rollout; unused by `exact`.
        shift: Of the rollout's time grid; unused by `exact`.
        particles: N.
        value: `mean` or `soft`.
        lam: Lambda of the soft value.
        posterior: `prompt` shows the sampler the prompt, `data` the null prompt.
        guidance: Scale of classifier-free guidance; any but 1 has a `model` value of its own.
        chunk: Latents times rollouts in flight at once.

    Raises:
        ValueError: for an unknown kernel, N > 1 with the deterministic one, exact draws in a
            world without them, or guidance without a prompt.
    """
    backbone = world.backbone
    if posterior not in {"data", "prompt"}:
        raise ValueError(f"expected the data or prompt posterior, got {posterior!r}")
    if guidance != 1 and (posterior == "data" or kernel == "exact"):
        what = "the null prompt" if posterior == "data" else "exact draws"
        raise ValueError(f"expected guidance 1 with {what}, got {guidance:g}")
    if kernel == "exact":
        finish = world.posterior(posterior)
        if finish is None:
            raise ValueError(f"expected a world with exact posterior draws, got {world.name!r}")
        return MonteCarlo(
            backbone, reward, finish, Target(value, posterior, lam), particles, chunk
        )
    velocity: Velocity = CFG(backbone.velocity, guidance)
    if posterior == "data":
        velocity = without_prompt(backbone.velocity)
    finish = Rollout(_sampler(kernel, velocity), steps, shift)
    if kernel == "reversal" and guidance == 1:
        target = Target(value, posterior, lam)
    else:
        prompt = "" if posterior == "prompt" else ", null prompt"
        guided = "" if guidance == 1 else f", CFG {guidance:g}"
        grid = "" if shift == 1 else f", shift {shift:g}"
        target = Target(value, "model", lam, f"{kernel}, {steps} steps{grid}{prompt}{guided}")
    return MonteCarlo(
        backbone, reward, finish, target, particles, chunk, stochastic=kernel != "ode"
    )


def _sampler(kernel: str, velocity: Velocity) -> Sampler:
    """The sampler of that name along a velocity."""
    if kernel == "ode":
        return Ode(velocity)
    if kernel not in NU:
        raise ValueError(f"expected a kernel in {['exact', 'ode', *NU]}, got {kernel!r}")
    return Sde(velocity, NU[kernel])


def without_prompt(velocity: Velocity) -> Velocity:
    """A velocity that sees the null prompt, whatever it is given."""
    return lambda z_t, t, c: velocity(z_t, t, [NULL] * len(c))
