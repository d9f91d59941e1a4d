r"""DRaFT-K, with any value estimator: gradients of the value through the last K steps.

    z_k      of the sampler without a graph for the first steps, with one for the last K
    loss     -E[V(z_tau)] + regulariser E |u - u_ref|^2                              (Eqs. 63, 64)

The published method runs to tau = 0 and asks the clean reward; stopped at a random tau it asks
V(z_tau), and needs neither the last steps nor the decoder.  The regulariser is that of DRaFT+: the
squared distance of the velocity from the reference's at the K steps.

Source: Clark et al., 2023, arXiv:2309.17400; Prabhudesai et al., 2023, arXiv:2310.03739.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stitchvm.align.policy import Policy
from stitchvm.align.training import (
    NOWHERE,
    Clock,
    Keep,
    Recipe,
    Record,
    Samples,
    Stop,
    Training,
    fitting,
    flat,
    grid,
    starts,
)
from stitchvm.backbone import Prompts, Velocity
from stitchvm.sample import Ode, Sampler, sample, trajectory
from stitchvm.value import ValueEstimator


@dataclass(frozen=True)
class Plan:
    """How DRaFT-K teaches; defaults are the paper's.

    Attributes:
        times: The sampler's grid, from 1 to 0.
        last: K.
        stop: Steps after which rollouts stop, drawn for each step; None: they run to the end.
        regulariser: Weight of the squared distance from the reference.
        recompute: Whether velocities and values are computed again in the backward pass: less
            memory, more time, the same gradient.

    Raises:
        ValueError: for numbers out of range, a window that does not fit, or more steps with a
            graph than there are.
    """

    times: tuple[float, ...]
    last: int = 1
    stop: Stop | None = None
    regulariser: float = 0.01
    recompute: bool = False

    def __post_init__(self) -> None:
        steps = len(self.times) - 1
        if self.stop is not None:
            self.stop.check(steps)
        fewest = steps if self.stop is None else self.stop.first
        if not 1 <= self.last <= fewest:
            raise ValueError(
                f"expected K in 1..{fewest}, the steps that all rollouts have, got {self.last}"
            )
        if self.regulariser < 0:
            raise ValueError(f"expected a regulariser >= 0, got {self.regulariser:g}")


def draft(
    policy: Policy,
    value: ValueEstimator,
    prompts: Sequence[str],
    plan: Plan,
    recipe: Recipe,
    *,
    solver: Callable[[Velocity], Sampler] = Ode,
    keep: Keep = NOWHERE,
    clock: Clock = time.perf_counter,
) -> Iterator[Record]:
    """Train a policy, a record a step; at the end `policy.averaged` is what to keep.

    Args:
        policy: Trained in place.
        value: V, asked where rollouts end, with gradients in the latents.
        prompts: To train on.
        plan: How samples teach.
        recipe: How weights are trained.
        solver: Of rollouts, of a velocity.
        keep: Where a checkpoint goes; a run that was stopped goes on from it, bit for bit on a
            CPU.  It knows its plan and recipe; that value and prompts are the same is the
            caller's business.
        clock: Tells the time.

    Raises:
        ValueError: for a value without a gradient, latents that do not fit, or a checkpoint of
            another run, or a torn one.
    """
    if not value.differentiable:
        raise ValueError(f"expected a differentiable value, got {type(value).__name__}")
    fitting(value, policy)
    run = Training(policy, recipe, {"draft": asdict(plan)}, keep, clock)
    return run.steps(lambda: _step(run, value, prompts, plan, solver))


def _step(
    run: Training,
    value: ValueEstimator,
    prompts: Sequence[str],
    plan: Plan,
    solver: Callable[[Velocity], Sampler],
) -> Record:
    """Roll out, value, go back, a batch at a time."""
    samples, times = run.samples(prompts), grid(run, plan.times)
    stop = len(times) - 1 if plan.stop is None else plan.stop.draw(run.seed("stop"))
    z, total = starts(run, samples), len(samples)
    rewards, seen = [], {"loss": 0.0, "kl": 0.0, "norm": 0.0}
    for part in run.parts(range(total)):
        rows, of = list(part), samples.of_rows(part)
        with run.phase("rollout"):
            end = _rolled(run.policy, z[rows], times[: stop + 1], of, plan, solver)
        with run.phase("value"):
            ask = _kept(value, plan)
            reward = ask(end.z, times[stop], of.c, of.rng.child("value"))
        with run.phase("update"):
            loss = plan.regulariser * end.kl.sum() - reward.sum()
            (loss / total).backward()
        rewards.append(reward.detach().double())
        seen["loss"] += loss.item() / total
        seen["kl"] += float(end.kl.detach().sum()) / total
        seen["norm"] += float(end.z.detach().flatten(1).norm(dim=1).sum()) / total
    with run.phase("update"):
        gradient = run.descend()
    reward = torch.cat(rewards)
    return run.record(
        reward=float(reward.mean()),
        gradient=gradient,
        old=float("nan"),
        flat=flat(reward, run.recipe.group),
        **seen,
    )


@dataclass(frozen=True)
class _End:
    """Where rollouts ended, (B, *latent), and their mean squared distance on the way, (B,)."""

    z: Tensor
    kl: Tensor


def _rolled(
    policy: Policy,
    z: Tensor,
    times: Tensor,
    of: Samples,
    plan: Plan,
    solver: Callable[[Velocity], Sampler],
) -> _End:
    """Rollouts whose last K steps have a graph."""
    turn, off = len(times) - 1 - plan.last, []
    if turn > 0:
        before = solver(policy.holding(policy.weights))
        z = sample(before, z, times[: turn + 1], of.c, of.rng.child("rollout"))
    ask, ask_reference = _kept(policy.velocity, plan), _kept(policy.reference, plan)

    def watched(z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        u, u_ref = ask(z_t, t, c), ask_reference(z_t, t, c)  # both depend on where z_t was led
        off.append((u - u_ref).square().flatten(1).mean(1))
        return u

    for step in trajectory(solver(watched), z, times[turn:], of.c, of.rng.child("last")):
        z = step.z_t
    return _End(z, torch.stack(off).mean(0))


def _kept(function: Callable[..., Tensor], plan: Plan) -> Callable[..., Tensor]:
    """A function, computed again in the backward pass where asked."""
    if not plan.recompute:
        return function

    def again(*args: object) -> Tensor:
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    return again
