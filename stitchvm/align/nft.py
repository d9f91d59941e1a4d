r"""DiffusionNFT, with any value estimator: samples that are better than others attract.

Rollouts of the old policy stop at tau, a value V(z_tau) says how good each is, and the forward
process from there on teaches the velocity at t > tau:

    r    = 1/2 + clip((V - mean of the prompt) / spread of all, -m, m) / 2 m       optimality
    u+-  = u_old +- beta (u - u_old)                                              (Eqs. 69, 70)
    L    = m / beta E[ r |z^+ - z_tau|^2 / w^+  +  (1 - r) |z^- - z_tau|^2 / w^- ]
    z^+- = the anchor E[z_tau | z_t] that u+- implies,   w^+- = mean |z^+- - z_tau|

tau = 0 with the clean reward is the published method; there the anchor is Tweedie's z_t - t u.
In velocities, as printed (Eq. 70), the target of the bridge grows without bound as t -> tau.

At u = u_old the gradient is m (2 r - 1) times that of |z - z_tau|^2 / w, whatever beta, and the
loss is the same for all r: it says nothing of progress.  The printed loss's is (2 r - 1) beta
times that of |u - target|^2.

Source: Zheng et al., 2025, arXiv:2509.16117, and its public code; stopped at tau: Eqs. 71-77.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

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
    Stop,
    Training,
    advantages,
    fitting,
    flat,
    grid,
    starts,
    valued,
)
from stitchvm.backbone import Velocity
from stitchvm.path import anchor, bridge
from stitchvm.sample import Ode, Sampler, sample
from stitchvm.value import ValueEstimator

LEAST = 1e-5  # of an adaptive weight
Loss = Literal["anchor", "velocity"]


@dataclass(frozen=True)
class Plan:
    """How DiffusionNFT teaches; defaults are the public multi-reward setup's.

    Attributes:
        times: The sampler's grid, from 1 to 0.
        stop: Steps after which rollouts stop, drawn for each prompt; None: all run to the end.
        beta: How far u+- lie from the old policy.
        most: m: where advantages are clipped.
        kl: Weight of the squared distance from the reference.
        share: Of the times above tau, how many each sample is taught at.
        gap: Least distance of those times from tau.
        old: How the old policy follows: 0 at once, 1 by min(0.001 step, 0.5), 2 as 1 from step 75
            on, by min(0.0075 (step - 75), 0.999).
        loss: In anchors, as public, or in velocities, as printed.

    Raises:
        ValueError: for numbers out of range, or a window that does not fit.
    """

    times: tuple[float, ...]
    stop: Stop | None = None
    beta: float = 0.1
    most: float = 5.0
    kl: float = 1e-4
    share: float = 0.99
    gap: float = 0.0
    old: Literal[0, 1, 2] = 1
    loss: Loss = "anchor"

    def __post_init__(self) -> None:
        if self.stop is not None:
            self.stop.check(self.steps)
        if not self.beta > 0 or not self.most > 0:
            raise ValueError(f"expected beta, most > 0, got {self.beta:g}, {self.most:g}")
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.share:g}")
        if self.old not in OLD:
            raise ValueError(f"expected old in {sorted(OLD)}, got {self.old}")
        first = self.steps if self.stop is None else self.stop.first
        if not self.taught(first):
            raise ValueError(
                f"expected a time at least {self.gap:g} above that of step {first}, "
                f"{self.times[first]:g}, got none"
            )

    @property
    def steps(self) -> int:
        """Of the grid."""
        return len(self.times) - 1

    def count(self, known: int, rng: torch.Generator) -> int:
        """How many of the known times a sample is taught at: on average the share, at least 1."""
        exact = self.share * known
        return max(1, int(exact) + int(torch.rand((), generator=rng) < exact % 1))

    def taught(self, stop: int) -> list[float]:
        """Times at which samples that stopped after a step can be taught."""
        return [t for t in self.times[:stop] if t - self.times[stop] >= self.gap]


OLD: dict[int, Callable[[int], float]] = {
    0: lambda _: 0.0,
    1: lambda step: min(0.001 * step, 0.5),
    2: lambda step: min(max(0.0075 * (step - 75), 0.0), 0.999),
}


class Taught(NamedTuple):
    """One time of each sample: what its velocity is asked, (B, *latent) and (B,)."""

    z_t: Tensor
    t: Tensor
    z_tau: Tensor
    tau: Tensor
    u: Tensor  # of the bridge


def anchors(taught: Taught, u: Tensor, u_old: Tensor, r: Tensor, beta: float) -> Tensor:
    """The loss of the public code over m, (B,): anchors, adaptive weights, over beta.

    Args:
        taught: Where.
        u: Current velocity, with its graph.
        u_old: That of the old policy.
        r: Optimality probabilities, (B,).
        beta: See above.
    """
    plus, minus = (
        _weighted(anchor(taught.z_t, taught.tau, taught.t, v), taught.z_tau)
        for v in branches(u, u_old, beta)
    )
    return (r * plus + (1 - r) * minus) / beta


def velocities(taught: Taught, u: Tensor, u_old: Tensor, r: Tensor, beta: float) -> Tensor:
    """The loss as printed (Eq. 70), (B,): mean squared error in velocities."""
    plus, minus = ((v - taught.u).square().flatten(1).mean(1) for v in branches(u, u_old, beta))
    return r * plus + (1 - r) * minus


LOSSES = {"anchor": anchors, "velocity": velocities}


def branches(u: Tensor, u_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """u+ and u- (Eqs. 69, 70)."""
    return (1 - beta) * u_old + beta * u, (1 + beta) * u_old - beta * u


def _weighted(z: Tensor, z_tau: Tensor) -> Tensor:
    """Mean squared error over the mean absolute one, which is a constant, (B,)."""
    off = z - z_tau
    weight = off.detach().double().abs().flatten(1).mean(1).clamp(min=LEAST)
    return (off.square().flatten(1).mean(1) / weight).to(z.dtype)


def optimality(reward: Tensor, group: int, most: float) -> Tensor:
    """Probabilities in [0, 1] that samples are optimal, (B,); 1/2 where all rewards are equal.

    Raises:
        ValueError: for groups of one sample.
    """
    return 0.5 + advantages(reward, group, most) / (2 * most)


def nft(
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
        value: V, asked where rollouts end; without gradients.
        prompts: To train on.
        plan: How samples teach.
        recipe: How weights are trained.
        solver: Of rollouts, of a velocity.
        keep: Where a checkpoint goes; a run that was stopped goes on from it, bit for bit on a
            CPU.  It knows its plan and recipe; that value and prompts are the same is the
            caller's business.
        clock: Tells the time.

    Raises:
        ValueError: for groups of one sample, latents that do not fit, or a checkpoint of another
            plan or recipe, or a torn one.
    """
    optimality(torch.zeros(recipe.group), recipe.group, plan.most)
    fitting(value, policy)
    run = Training(policy, recipe, {"nft": asdict(plan)}, keep, clock)
    return run.steps(lambda: _step(run, value, prompts, plan, solver))


def _step(
    run: Training,
    value: ValueEstimator,
    prompts: Sequence[str],
    plan: Plan,
    solver: Callable[[Velocity], Sampler],
) -> Record:
    """Collect, value, teach."""
    policy, group = run.policy, run.recipe.group
    samples, stops = run.samples(prompts), _stops(run, plan)
    with run.phase("rollout"):
        made = _rollouts(run, samples, stops, plan, solver(policy.holding(policy.old)))
    with run.phase("value"):
        reward = valued(run, value, made.z_tau, made.tau, samples)
        r = optimality(reward, group, plan.most).to(made.z_tau.dtype)
    with run.phase("update"):
        seen = _teach(run, samples, made, _times(run, stops, plan), r, plan)
        gradient = run.descend()
        policy.follow(policy.old, OLD[plan.old](run.step + 1))
    return run.record(
        reward=float(reward.mean()),
        gradient=gradient,
        norm=float(made.z_tau.flatten(1).norm(dim=1).mean()),
        flat=flat(reward, group),
        **seen,
    )


class _Ends(NamedTuple):
    """Where rollouts ended, (B, *latent), and when, (B,)."""

    z_tau: Tensor
    tau: Tensor


def _stops(run: Training, plan: Plan) -> list[int]:
    """After which step each sample stops: the same for all of a prompt."""
    drawn = [
        plan.steps if plan.stop is None else plan.stop.draw(run.seed("stop", k))
        for k in range(run.recipe.prompts)
    ]
    return [stop for stop in drawn for _ in range(run.recipe.group)]


def _rollouts(
    run: Training, samples: Samples, stops: list[int], plan: Plan, sampler: Sampler
) -> _Ends:
    """All of them, those that stop together as one batch."""
    times, z = grid(run, plan.times), starts(run, samples)
    for stop in sorted(set(stops)):
        for rows in run.parts([row for row, its in enumerate(stops) if its == stop]):
            of = samples.of_rows(rows)
            z[rows] = sample(sampler, z[rows], times[: stop + 1], of.c, of.rng.child("rollout"))
    return _Ends(z, times[stops])


def _times(run: Training, stops: list[int], plan: Plan) -> list[list[float]]:
    """At which times each sample is taught: some of the sampler's own, in random order."""
    found = []
    for row, stop in enumerate(stops):
        known = plan.taught(stop)
        rng = torch.Generator().manual_seed(run.seed("times", row))
        order = torch.randperm(len(known), generator=rng).tolist()
        found.append([known[k] for k in order[: plan.count(len(known), rng)]])
    return found


def _teach(
    run: Training,
    samples: Samples,
    ends: _Ends,
    times: list[list[float]],
    r: Tensor,
    plan: Plan,
) -> dict[str, float]:
    """Gradients of the loss, a mean over samples and over the times of each; what was seen."""
    seen = dict.fromkeys(("loss", "old", "kl"), 0.0)
    weight = torch.tensor([1 / (len(samples) * len(its)) for its in times]).to(r)
    for j in range(max(map(len, times))):  # the j-th time of each sample that has as many
        for rows in run.parts([row for row, its in enumerate(times) if j < len(its)]):
            of = samples.of_rows(rows)
            t = ends.tau.new_tensor([times[row][j] for row in rows])
            z_tau, tau = ends.z_tau[rows], ends.tau[rows]
            made = bridge(z_tau, tau, t, of.rng.child("eps", j).normal(z_tau))
            taught = Taught(made.z_t, t, z_tau, tau, made.u)
            found = _loss(run.policy, taught, of.c, r[rows], plan)
            for name, x in found.items():
                mean = (weight[rows] * x).sum()
                if name == "loss":
                    mean.backward()
                seen[name] += mean.item()
    return seen


def _loss(
    policy: Policy, taught: Taught, c: list[str], r: Tensor, plan: Plan
) -> dict[str, Tensor]:
    """By row: the loss with its graph, and two distances."""
    z_t, t = taught.z_t, taught.t
    with torch.no_grad():
        u_old, u_ref = policy.holding(policy.old)(z_t, t, c), policy.reference(z_t, t, c)
    u = policy.velocity(z_t, t, c)
    kl = (u - u_ref).square().flatten(1).mean(1)
    unit = plan.most if plan.loss == "anchor" else 1.0  # the printed loss has none
    loss = unit * LOSSES[plan.loss](taught, u, u_old, r, plan.beta) + plan.kl * kl
    old = (u.detach() - u_old).square().flatten(1).mean(1)
    return {"loss": loss, "old": old, "kl": kl.detach()}
