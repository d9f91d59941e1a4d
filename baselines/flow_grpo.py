r"""Flow-GRPO-Fast: policy gradients of a few stochastic steps, with the clean reward.

    rollouts   the ODE, but for a window of `window` steps of an SDE, early, random each step
    A          (r - mean of the prompt) / spread of all, clipped
    ratio      p(z_s | z_t) / p_rollout(z_s | z_t), its logarithm a MEAN over a latent's numbers
    L          -E min(A ratio, A clip(ratio, 1 - eps, 1 + eps))
               + kl E |mean - mean_ref|^2 / 2 std^2

The samples of a step are gone through in `updates` parts, one update each: in the first the ratio
is 1, from then on the clipping acts.

Source: Liu et al., 2025, arXiv:2505.05470, and its public code: the window of its fast variant
without guidance, with the SDE and the clipping of its plain one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from stitchvm.align.policy import Policy
from stitchvm.align.training import (
    NOWHERE,
    Clock,
    Keep,
    Recipe,
    Record,
    Samples,
    Training,
    advantages,
    fitting,
    flat,
    grid,
    starts,
    valued,
)
from stitchvm.backbone import Velocity
from stitchvm.sample import NU, Normal, Ode, Sampler, Sde, check_finite
from stitchvm.value import ValueEstimator


@dataclass(frozen=True)
class Plan:
    """How Flow-GRPO-Fast teaches.

    Attributes:
        times: The sampler's grid, from 1 to 0.
        window: Stochastic steps.
        before: The window lies within this share of the steps, from the first on.
        clip: eps.
        most: Where advantages are clipped.
        kl: Weight of the distance of kernels from the reference's; 0 does without that velocity.
        updates: Parts that the prompts of a step are gone through in.

    Raises:
        ValueError: for numbers out of range, or a window that does not fit.
    """

    times: tuple[float, ...]
    window: int = 3
    before: float = 0.5
    clip: float = 1e-4
    most: float = 5.0
    kl: float = 0.0
    updates: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.room:
            raise ValueError(
                f"expected a window of 1..{self.room} steps, those that may be stochastic, got "
                f"{self.window}"
            )
        if not self.clip > 0 or not self.most > 0 or self.kl < 0:
            raise ValueError(
                f"expected clip, most > 0 and kl >= 0, got {self.clip:g}, {self.most:g} and "
                f"{self.kl:g}"
            )
        if self.updates < 1:
            raise ValueError(f"expected updates >= 1, got {self.updates}")

    @property
    def room(self) -> int:
        """Steps among which the window lies; never the last one, whose kernel is a spike."""
        steps = len(self.times) - 1
        return min(int(self.before * steps), steps - 1)


class Move(NamedTuple):
    """A stochastic step of all rollouts: from z_t at t to z_s at s, and its log-probability."""

    z_t: Tensor
    t: Tensor
    s: Tensor
    z_s: Tensor
    log_p: Tensor


def sde(velocity: Velocity) -> Sampler:
    """Flow-GRPO's, nu = 0.7 sqrt(t / (1 - t))."""
    return Sde(velocity, NU["flow_grpo"])


def log_p(kernel: Normal, z_s: Tensor) -> Tensor:
    """Log-probability of latents but for constants, a mean over their numbers, (B,)."""
    return -((z_s - kernel.mean).square() / (2 * kernel.std**2)).flatten(1).mean(1)


def clipped(ratio: Tensor, advantage: Tensor, eps: float) -> Tensor:
    """PPO's loss, (B,)."""
    return -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - eps, 1 + eps))


def flow_grpo(
    policy: Policy,
    value: ValueEstimator,
    prompts: Sequence[str],
    plan: Plan,
    recipe: Recipe,
    *,
    solver: Callable[[Velocity], Sampler] = sde,
    keep: Keep = NOWHERE,
    clock: Clock = time.perf_counter,
) -> Iterator[Record]:
    """Train a policy, a record a step; at the end `policy.averaged` is what to keep.

    Args:
        policy: Trained in place.
        value: Asked at the end of the grid: the clean reward.
        prompts: To train on.
        plan: How samples teach.
        recipe: How weights are trained.
        solver: Of the stochastic steps, of a velocity.
        keep: Where a checkpoint goes; a run that was stopped goes on from it, bit for bit on a
            CPU.  It knows its plan and recipe; that value and prompts are the same is the
            caller's business.
        clock: Tells the time.

    Raises:
        ValueError: for groups of one sample, a deterministic solver, latents that do not fit, or
            a checkpoint of another plan or recipe, or a torn one.
    """
    advantages(torch.zeros(recipe.group), recipe.group, plan.most)
    fitting(value, policy)
    if not solver(policy.velocity).stochastic:
        raise ValueError("expected a stochastic solver, whose kernels have probabilities")
    if plan.updates > recipe.prompts:
        raise ValueError(
            f"expected at most {recipe.prompts} updates, one a prompt, got {plan.updates}"
        )
    run = Training(policy, recipe, {"flow_grpo": asdict(plan)}, keep, clock)
    return run.steps(lambda: _step(run, value, prompts, plan, solver))


def _step(
    run: Training,
    value: ValueEstimator,
    prompts: Sequence[str],
    plan: Plan,
    solver: Callable[[Velocity], Sampler],
) -> Record:
    """Roll out, value, update in parts."""
    group = run.recipe.group
    samples = run.samples(prompts)
    with run.phase("rollout"):
        z, moves = _rollouts(run, samples, plan, solver)
    with run.phase("value"):
        tau = grid(run, plan.times)[-1].expand(len(samples))
        reward = valued(run, value, z, tau, samples)
        advantage = advantages(reward, group, plan.most).to(z.dtype)
    with run.phase("update"):
        seen, norms = dict.fromkeys(("loss", "kl"), 0.0), []
        for chosen in torch.arange(run.recipe.prompts).tensor_split(plan.updates):
            rows = [p * group + k for p in chosen.tolist() for k in range(group)]
            for name, x in _teach(run, samples, moves, rows, advantage, plan, solver).items():
                seen[name] += x * len(rows) / len(samples)
            norms.append(run.descend())
    if not plan.kl:
        seen["kl"] = float("nan")
    return run.record(
        reward=float(reward.mean()),
        gradient=max(norms),
        old=float("nan"),
        norm=float(z.flatten(1).norm(dim=1).mean()),
        flat=flat(reward, group),
        **seen,
    )


@torch.no_grad()
def _rollouts(
    run: Training, samples: Samples, plan: Plan, solver: Callable[[Velocity], Sampler]
) -> tuple[Tensor, list[Move]]:
    """Clean latents, and the stochastic steps on the way to them."""
    policy, times, z = run.policy, grid(run, plan.times), starts(run, samples)
    rng = torch.Generator().manual_seed(run.seed("window"))
    first = int(torch.randint(plan.room - plan.window + 1, (), generator=rng))
    now = policy.holding(policy.weights)
    moves = []
    for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        inside = first <= k < first + plan.window
        transition = (solver if inside else Ode)(now).transition
        parts = []
        for part in run.parts(range(len(samples))):
            rows, of = list(part), samples.of_rows(part)
            kernel = transition(z[rows], t, s, of.c)
            z_s = kernel.draw(of.rng.child("step", k)) if inside else kernel.mean
            parts.append((z_s, log_p(kernel, z_s) if inside else z_s))
        z_s = torch.cat([part[0] for part in parts])
        check_finite(z_s, z, k + 1, times)
        if inside:
            moves.append(Move(z, t, s, z_s, torch.cat([part[1] for part in parts])))
        z = z_s
    return z, moves


def _teach(  # noqa: PLR0917 - all of a step's state
    run: Training,
    samples: Samples,
    moves: list[Move],
    rows: list[int],
    advantage: Tensor,
    plan: Plan,
    solver: Callable[[Velocity], Sampler],
) -> dict[str, float]:
    """Gradients over some samples and all stochastic steps; what was seen on the way."""
    total, seen = len(rows) * len(moves), dict.fromkeys(("loss", "kl"), 0.0)
    for move in moves:
        for part in run.parts(rows):
            of = samples.of_rows(part)
            ask = partial(_kernel, move=move, rows=part, c=of.c)
            kernel = ask(solver(run.policy.velocity))
            ratio = (log_p(kernel, move.z_s[part]) - move.log_p[part]).exp()
            loss = clipped(ratio, advantage[part], plan.clip).sum()
            if plan.kl:
                with torch.no_grad():
                    reference = ask(solver(run.policy.reference))
                kl = -log_p(kernel, reference.mean).sum()
                loss = loss + plan.kl * kl
                seen["kl"] += kl.item() / total
            (loss / total).backward()
            seen["loss"] += loss.item() / total
    return seen


def _kernel(sampler: Sampler, move: Move, rows: Sequence[int], c: list[str]) -> Normal:
    return sampler.transition(move.z_t[rows], move.t, move.s, c)
