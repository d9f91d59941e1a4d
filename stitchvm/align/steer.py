r"""Feynman-Kac steering with local proposals: Algorithm 1, after Singhal et al. (2501.06848).

N particles walk down the grid together.  At set steps each is weighted by a potential G_k, and
the weights decide whose copies go on; in an early window each particle first draws M proposals
from ONE transition and keeps the one of highest value.

    difference   G_k = exp(lambda (V(z_k) - V(z_j)))       j: where the value was last asked for
    max          G_k = exp(lambda max over the values so far)
    sum          G_k = exp(lambda sum of the values so far)
    last         G_K = exp(lambda r(z_0)) / product of the earlier ones

With M = 1, weights carried between resamplings, and the last potential from the clean reward, the
weighted particles converge to p* ~ p exp(lambda r) as N grows, whatever V.  Without the last
potential, or with weights of single steps, they converge to something else; M > 1 is a search.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import Prompts
from stitchvm.sample import Sampler, check_finite
from stitchvm.streams import Streams
from stitchvm.value import ValueEstimator

Potential = Literal["difference", "max", "sum"]
Resample = Literal["multinomial", "systematic"]


@dataclass(frozen=True)
class Plan:
    """How to steer.

    Steps are counted from 1: step k leads from times[k - 1] to times[k].

    Attributes:
        lam: Inverse temperature lambda > 0, over the reward's unit.
        particles: N.
        proposals: M.
        resample_at: Steps after which particles are weighted and resampled.
        propose_at: Steps that draw M proposals.
        potential: How values become weights.
        carry: Whether weights add up over all that happened since the last resampling; if not,
            only the step before it counts, as Algorithm 1 reads literally.
        initial: Whether particles are weighted by exp(lambda V(z_1)) at the start.
        last: Whether the last potential comes from the clean reward.
        ess: Resample only where the effective sample size is at most this share of N.
        resample: How copies are drawn.

    Raises:
        ValueError: for numbers out of range.
    """

    lam: float
    particles: int = 4
    proposals: int = 1
    resample_at: frozenset[int] = frozenset()
    propose_at: frozenset[int] = frozenset()
    potential: Potential = "difference"
    carry: bool = True
    initial: bool = False
    last: bool = True
    ess: float = 1.0
    resample: Resample = "systematic"

    def __post_init__(self) -> None:
        if not (self.lam > 0 and math.isfinite(self.lam)):
            raise ValueError(f"expected a finite lambda > 0, got {self.lam:g}")
        for name in ("particles", "proposals"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0 < self.ess <= 1:
            raise ValueError(f"expected ess in (0, 1], got {self.ess:g}")
        for name, known in (("potential", POTENTIALS), ("resample", RESAMPLE)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} in {sorted(known)}, got {getattr(self, name)}")

    def check(self, steps: int, *, stochastic: bool) -> None:
        """Refuse a plan that does not fit a sampler.

        Raises:
            ValueError: for steps outside the grid, or copies that would never differ.
        """
        for name in ("resample_at", "propose_at"):
            outside = sorted(k for k in getattr(self, name) if not 1 <= k <= steps)
            if outside:
                raise ValueError(f"expected {name} within steps 1..{steps}, got {outside}")
        copies = self.proposals > 1 or (self.particles > 1 and self.resample_at)
        if copies and not stochastic:
            raise ValueError(
                "expected a stochastic sampler: with a deterministic one proposals are equal and "
                "copies never part"
            )


class Log(NamedTuple):
    """One step at which particles were weighted or proposed.

    Attributes:
        step: k.
        t: Its time.
        ess: Effective sample size before resampling, (B,).
        ancestors: Distinct particles of the start that are left after it, (B,).
        spread: Standard deviation of the values over particles after it, (B,).
        resampled: Whether copies were drawn, (B,).
    """

    step: int
    t: float
    ess: Tensor
    ancestors: Tensor
    spread: Tensor
    resampled: Tensor


@dataclass
class Steered:
    """Where the particles ended.

    Attributes:
        z_0: (N, B, *latent).
        log_weights: Normalised over particles, (N, B).
        reward: Clean reward, (N, B).
        log: Of the steps that weighted or proposed.
    """

    z_0: Tensor
    log_weights: Tensor
    reward: Tensor
    log: list[Log] = field(default_factory=list)

    def best(self) -> Tensor:
        """The particle of highest clean reward, (B, *latent)."""
        return _take(self.z_0, self.reward.argmax(0))

    def draw(self, rng: Streams) -> Tensor:
        """One particle by weight, (B, *latent): what converges to p*."""
        edges = self.log_weights.exp().cumsum(0)
        u = rng.uniform(edges.dtype).to(edges.device) * edges[-1]
        return _take(self.z_0, (u >= edges).sum(0).clamp(max=len(edges) - 1))


@torch.no_grad()
def steer(  # noqa: PLR0913, PLR0917 - Algorithm 1 takes them all
    sampler: Sampler,
    value: ValueEstimator,
    terminal: ValueEstimator,
    z: Tensor,
    times: Tensor,
    c: Prompts,
    rng: Streams,
    plan: Plan,
) -> Steered:
    """Algorithm 1.

    Args:
        sampler: The transition kernel.
        value: V, at noisy latents.
        terminal: The clean reward, asked at t = 0.
        z: Starting latents, (N, B, *latent).
        times: Descending times, (steps + 1,).
        c: Prompts, B of them.
        rng: One stream per sample (B); particles and proposals have children of it, so neither
            batch size nor other samples change a choice.
        plan: How.

    Raises:
        ValueError: if the plan does not fit the sampler or the latents; before anything is run.
        Diverged: if a step ends in latents that are not finite.
    """
    plan.check(len(times) - 1, stochastic=sampler.stochastic)
    expected = (plan.particles, len(c), *value.latent)
    if tuple(z.shape) != expected:
        raise ValueError(
            f"expected latents of {plan.particles} particles and {len(c)} prompts, {expected}, "
            f"got {tuple(z.shape)}"
        )
    if len(rng) != len(c):
        raise ValueError(f"expected {len(c)} streams, one per prompt, got {len(rng)}")
    times = times.to(z.device)
    herd = _Herd(value, z, times[0], c, rng, plan)
    for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True), start=1):
        kernel = sampler.transition(herd.flat, t, s, herd.prompts)
        searched = k in plan.propose_at and plan.proposals > 1
        draw = kernel.draw if sampler.stochastic else lambda _, kernel=kernel: kernel.mean
        last = herd.flat
        herd.move(k, s, draw, plan.proposals if searched else 1)
        check_finite(herd.flat, last, k, times)
        if k in plan.resample_at:
            herd.weigh(k)
        elif searched:
            herd.note(k, herd.ess(), torch.zeros(len(c), dtype=torch.bool))
    reward = terminal(herd.flat, times[-1], herd.prompts).unflatten(0, herd.z.shape[:2])
    return herd.ended(reward)


class _Herd:
    """The particles, their weights, and what their lineages have been through."""

    def __init__(
        self,
        value: ValueEstimator,
        z: Tensor,
        t: Tensor,
        c: Prompts,
        rng: Streams,
        plan: Plan,
    ) -> None:
        self.value, self.z, self.t, self.c, self.rng, self.plan = value, z, t, c, rng, plan
        self.prompts = list(c) * plan.particles
        self.now: Tensor | None = None  # V at the present latents, (N, B), once asked
        self.log_w = torch.zeros(z.shape[:2], dtype=torch.float64)
        self.paid = torch.zeros_like(self.log_w)  # log potentials of the lineage
        self.seen = _Seen.none(self.log_w)
        self.roots = torch.arange(len(z))[:, None].expand(z.shape[:2]).clone()
        self.log: list[Log] = []
        self.k = 0
        if plan.initial:
            self._weigh(self.plan.lam * self._asked())
        if plan.initial or (plan.carry and plan.resample_at and plan.potential == "difference"):
            self.seen = self.seen.after(self._asked())

    @property
    def flat(self) -> Tensor:
        """All particles as one batch, particle-major, (N B, *latent)."""
        return self.z.flatten(0, 1)

    def _asked(self) -> Tensor:
        """V at the present latents, (N, B)."""
        if self.now is None:
            streams = self.rng.child("value", self.k).split(range(self.plan.particles))
            value = self.value(self.flat, self.t, self.prompts, streams)
            self.now = value.unflatten(0, self.z.shape[:2]).double().cpu()
        return self.now

    def move(self, k: int, s: Tensor, draw: Callable[[Streams], Tensor], proposals: int) -> None:
        """Alg. 1, lines 5-8: propose from one kernel, and keep the best by value."""
        if not self.plan.carry and k in self.plan.resample_at:  # of this step alone
            self.seen = _Seen.none(self.log_w).after(self._asked())
            self.log_w = torch.zeros_like(self.log_w)
        streams = self.rng.child("step", k)
        drawn = torch.stack(
            [
                draw(streams.child("proposal", m).split(range(self.plan.particles)))
                for m in range(proposals)
            ]
        )
        self.k, self.t, self.now = k, s, None
        if proposals == 1:
            self.z = drawn[0].unflatten(0, self.z.shape[:2])
            return
        of_each = self.rng.child("value", k).split(range(proposals * self.plan.particles))
        value = self.value(drawn.flatten(0, 1), s, self.prompts * proposals, of_each)
        value = value.unflatten(0, (proposals, len(self.flat)))
        chosen = value.argmax(0)
        self.z = _take(drawn, chosen).unflatten(0, self.z.shape[:2])
        self.now = _take(value, chosen).unflatten(0, self.z.shape[:2]).double().cpu()

    def weigh(self, k: int) -> None:
        """Alg. 1, lines 9-11: potentials, and copies by weight."""
        self._weigh(POTENTIALS[self.plan.potential](self.seen, self._asked()) * self.plan.lam)
        self.seen = self.seen.after(self._asked())
        ess = self.ess()
        resampled = ess <= self.plan.ess * self.plan.particles * (1 + 1e-9)
        self._copy(k, resampled)
        self.note(k, ess, resampled)

    def _weigh(self, log_potential: Tensor) -> None:
        self.log_w = self.log_w + log_potential
        self.paid = self.paid + log_potential

    def ess(self) -> Tensor:
        """Effective sample size, 1 / sum of squared weights, (B,)."""
        return torch.exp(-(2 * self.log_w.log_softmax(0)).logsumexp(0))

    def note(self, k: int, ess: Tensor, resampled: Tensor) -> None:
        """Log this step: the effective sample size before copies, and who is left after."""
        left = torch.tensor([len(set(column.tolist())) for column in self.roots.T])
        spread = self._asked().std(0, correction=0)
        self.log.append(Log(k, float(self.t), ess, left, spread, resampled))

    def _copy(self, k: int, resampled: Tensor) -> None:
        """Draw copies by weight where asked; weights are equal afterwards."""
        u = self.rng.child("resample", k)
        parents = RESAMPLE[self.plan.resample](self.log_w.softmax(0), u)
        stay = torch.arange(self.plan.particles)[:, None].expand_as(parents)
        parents = torch.where(resampled, parents, stay)
        columns = torch.arange(len(self.c)).expand_as(parents)
        on = self.z.device
        self.z = self.z[parents.to(on), columns.to(on)]
        self.now = None if self.now is None else self.now[parents, columns]
        self.paid, self.roots = self.paid[parents, columns], self.roots[parents, columns]
        self.seen = self.seen.of(parents, columns)
        self.log_w = torch.where(resampled, 0.0, self.log_w)

    def ended(self, reward: Tensor) -> Steered:
        """With the last potential, which makes the product of all exp(lambda r)."""
        r = reward.detach().double().cpu()
        if self.plan.last:
            self._weigh(self.plan.lam * r - self.paid)
        log_w = self.log_w.log_softmax(0).to(self.z.device)
        return Steered(self.z, log_w, reward, self.log)


@dataclass(frozen=True)
class _Seen:
    """The values a lineage has had: its last, highest, and sum of them; (N, B)."""

    previous: Tensor
    highest: Tensor
    total: Tensor

    @classmethod
    def none(cls, like: Tensor) -> "_Seen":
        zero = torch.zeros_like(like)
        return cls(zero, zero - torch.inf, zero)

    def after(self, value: Tensor) -> "_Seen":
        return _Seen(value, self.highest.maximum(value), self.total + value)

    def of(self, rows: Tensor, columns: Tensor) -> "_Seen":
        taken = (x[rows, columns] for x in (self.previous, self.highest, self.total))
        return replace(self, **dict(zip(("previous", "highest", "total"), taken, strict=True)))


def difference(seen: _Seen, value: Tensor) -> Tensor:
    """How much the value has risen."""
    return value - seen.previous


def highest(seen: _Seen, value: Tensor) -> Tensor:
    """The highest value so far."""
    return seen.highest.maximum(value)


def total(seen: _Seen, value: Tensor) -> Tensor:
    """The sum of the values so far."""
    return seen.total + value


POTENTIALS: dict[str, Callable[[_Seen, Tensor], Tensor]] = {
    "difference": difference,
    "max": highest,
    "sum": total,
}


def multinomial(weights: Tensor, rng: Streams) -> Tensor:
    """N independent draws by weight, (N, B), of weights (N, B)."""
    n = len(weights)
    u = torch.stack([rng.child(k).uniform(weights.dtype) for k in range(n)])
    return _inverse(weights, u)


def systematic(weights: Tensor, rng: Streams) -> Tensor:
    """N draws from one uniform number, (k + u) / N: each particle gets N w, rounded either way."""
    n = len(weights)
    u = (torch.arange(n, dtype=weights.dtype)[:, None] + rng.uniform(weights.dtype)) / n
    return _inverse(weights, u)


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """The inverse of the weights' distribution function at u, (N, B)."""
    edges = weights.cumsum(0)
    found = torch.searchsorted(edges.T.contiguous(), (u * edges[-1]).T.contiguous(), right=True)
    return found.T.clamp(max=len(weights) - 1)


RESAMPLE: dict[str, Callable[[Tensor, Streams], Tensor]] = {
    "multinomial": multinomial,
    "systematic": systematic,
}


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """One of the first axis for each of the second: (K, B, ...) by (B,) to (B, ...)."""
    return x[chosen, torch.arange(x.shape[1], device=x.device)]


def steps_at(steps: int, first: int, last: int, every: int) -> frozenset[int]:
    """Every n-th step of a window, both ends counted.

    Raises:
        ValueError: unless 1 <= first <= last <= steps and every >= 1.
    """
    if not (1 <= first <= last <= steps and every >= 1):
        raise ValueError(
            f"expected a window within steps 1..{steps} and every >= 1, got {first} to {last}, "
            f"every {every}"
        )
    return frozenset(range(first, last + 1, every))
