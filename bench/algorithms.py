"""Algorithms that suites can name: what a value estimator is plugged into.

    sample       none: the unsteered baseline          best_of_n   the clean reward alone
    guide        the value's gradient (Eqs. 4, 39)     steer       the value (Algorithm 1)

Strengths are in units of one over the reward's spread, so that they mean the same for any reward.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from baselines.best_of_n import best_of_n
from stitchvm.align.guide import NORMALISE, PROFILES, Guided, every, within
from stitchvm.align.steer import Plan, Potential, Resample, steer, steps_at
from stitchvm.backbone import Prompts, Velocity
from stitchvm.sample import Sampler, sample
from stitchvm.streams import Streams
from stitchvm.value import ValueEstimator


@dataclass(frozen=True)
class Setting:
    """What an algorithm works with.

    Attributes:
        velocity: As the sampler uses it, with its classifier-free guidance.
        kernel: Makes a sampler of a velocity.
        times: The grid, (steps + 1,).
        value: The estimator, or None.
        terminal: The clean reward, asked at t = 0.
        spread: Standard deviation of the reward within a prompt, of unsteered samples.
    """

    velocity: Velocity
    kernel: Callable[[Velocity], Sampler]
    times: Tensor
    value: ValueEstimator | None
    terminal: ValueEstimator
    spread: float = 1.0

    @property
    def steps(self) -> int:
        """Of the grid."""
        return len(self.times) - 1

    @property
    def estimator(self) -> ValueEstimator:
        """The estimator.

        Raises:
            ValueError: if there is none.
        """
        if self.value is None:
            raise ValueError("expected a value estimator for this algorithm, got none")
        return self.value

    @property
    def sampler(self) -> Sampler:
        """Unsteered."""
        return self.kernel(self.velocity)


class Made(NamedTuple):
    """Clean latents (B, *latent), and what steering logged, one mapping a step."""

    z_0: Tensor
    log: list[dict[str, Any]] = []  # noqa: RUF012 - never changed


class Algorithm(ABC):
    """A way from noise to aligned clean latents.

    Attributes:
        particles: Starting latents per sample.
        proposals: Draws from one transition, of which one is kept.
        tuned: Whether it has a strength.
    """

    particles: int = 1
    proposals: int = 1
    tuned: bool = True

    @abstractmethod
    def check(self, setting: Setting) -> None:
        """Refuse what will not work.

        Raises:
            ValueError: saying what was expected.
        """

    @abstractmethod
    def run(self, setting: Setting, strength: float, z: Tensor, c: Prompts, rng: Streams) -> Made:
        """Clean latents of prompts.

        Args:
            setting: What to work with.
            strength: In units of one over the reward's spread.
            z: Starting latents, (particles, B, *latent).
            c: Prompts, B of them.
            rng: One stream per sample.
        """

    def lam(self, setting: Setting, strength: float) -> float | None:
        """Inverse temperature of the tilted target it aims at; None if it aims at none."""
        del setting, strength
        return None

    def kinds(self, steps: int) -> dict[str, int]:
        """How many steps of each kind of `bench.tasks.walks` a sample has; none where none is.

        Args:
            steps: Of the sampler.
        """
        del steps
        return {}


@dataclass(frozen=True)
class Unsteered(Algorithm):
    """The sampler alone."""

    tuned = False

    def check(self, setting: Setting) -> None:
        """Nothing to refuse."""

    def run(self, setting: Setting, strength: float, z: Tensor, c: Prompts, rng: Streams) -> Made:
        """One sample of each prompt."""
        return Made(sample(setting.sampler, z[0], setting.times, c, rng.split([0])))


@dataclass(frozen=True)
class Guide(Algorithm):
    """Guidance by the value's gradient; see `guide`."""

    profile: str = "exact"
    normalise: str = "none"
    first: float = 0.95
    last: float = 0.0
    every: int = 1

    def check(self, setting: Setting) -> None:
        """Refuse estimators without a gradient, and windows outside the grid."""
        self._guided(setting, 1.0)

    def _guided(self, setting: Setting, strength: float) -> Guided:
        profile = every(
            within(PROFILES[self.profile], self.first, self.last), setting.times, self.every
        )
        if not bool((profile(setting.times[:-1]) > 0).any()):
            raise ValueError(
                f"expected a window that holds a step, got {self.first:g} to {self.last:g}"
            )
        return Guided(
            setting.velocity,
            setting.estimator,
            self._scaled(setting, strength),
            profile=profile,
            normalise=NORMALISE[self.normalise],
        )

    def _scaled(self, setting: Setting, strength: float) -> float:
        return strength / setting.spread if self.normalise == "none" else strength

    def lam(self, setting: Setting, strength: float) -> float | None:
        """That of Eq. 39; other profiles and normalised gradients aim at no tilted target."""
        if self.profile != "exact" or self.normalise != "none":
            return None
        return self._scaled(setting, strength)

    def step(
        self, setting: Setting, strength: float
    ) -> Callable[[Tensor, Tensor, Tensor, Prompts], Any]:
        """One transition of the guided sampler, for timing."""
        return setting.kernel(self._guided(setting, strength)).transition

    def middle(self, setting: Setting) -> int:
        """The guided step nearest t = 1/2, counted from 0."""
        times = setting.times[:-1]
        guided = self._guided(setting, 1.0).profile(times) > 0
        away = torch.where(guided, (times - 0.5).abs(), torch.inf)
        return int(away.argmin())

    def run(self, setting: Setting, strength: float, z: Tensor, c: Prompts, rng: Streams) -> Made:
        """One sample of each prompt."""
        sampler = setting.kernel(self._guided(setting, strength))
        return Made(sample(sampler, z[0], setting.times, c, rng.split([0])))


@dataclass(frozen=True)
class Steer(Algorithm):
    """Feynman-Kac steering; see `steer_by`."""

    particles: int = 4
    proposals: int = 1
    at: tuple[int, int, int] | None = None
    propose: int = 0
    select: Literal["best", "draw"] = "best"
    options: dict[str, Any] = field(default_factory=dict)

    def plan(self, setting: Setting, strength: float) -> Plan:
        """Of some strength."""
        window = () if self.at is None else steps_at(setting.steps, *self.at)
        return Plan(
            lam=strength / setting.spread,
            particles=self.particles,
            proposals=self.proposals,
            resample_at=frozenset(window),
            propose_at=frozenset(range(1, self.propose + 1)),
            **self.options,
        )

    def check(self, setting: Setting) -> None:
        """Refuse a plan that does not fit the sampler."""
        _ = setting.estimator
        self.plan(setting, 1.0).check(setting.steps, stochastic=setting.sampler.stochastic)

    def lam(self, setting: Setting, strength: float) -> float | None:
        """That of the potentials."""
        return strength / setting.spread

    def kinds(self, steps: int) -> dict[str, int]:
        """Steps from latents whose value was asked, or that were proposals, and all others."""
        weighed = set() if self.at is None else set(steps_at(steps, *self.at))
        literal = set() if self.options["carry"] else {k - 1 for k in weighed}
        begun = self.options["carry"] and weighed and self.options["potential"] == "difference"
        start = {0} if begun or self.options["initial"] else set()
        proposed = set(range(1, self.propose + 1)) if self.proposals > 1 else set()
        asked = (weighed | literal | start) - proposed
        plain = steps - len(asked) - len(proposed)
        return {"step": plain, "asked": len(asked), "proposed": len(proposed), "end": 1}

    def run(self, setting: Setting, strength: float, z: Tensor, c: Prompts, rng: Streams) -> Made:
        """The particle of highest clean reward, or one drawn by weight, of each prompt."""
        plan = self.plan(setting, strength)
        made = steer(
            setting.sampler, setting.estimator, setting.terminal, z, setting.times, c, rng, plan
        )
        log = [
            {name: x.tolist() if isinstance(x, Tensor) else x for name, x in e._asdict().items()}
            for e in made.log
        ]
        return Made(made.best() if self.select == "best" else made.draw(rng.child("pick")), log)


@dataclass(frozen=True)
class Best(Algorithm):
    """Best-of-N; see `best`."""

    particles: int = 4
    tuned = False

    def check(self, setting: Setting) -> None:
        """Nothing to refuse."""

    def kinds(self, steps: int) -> dict[str, int]:
        """Plain steps, and the clean reward of all."""
        return {"step": steps, "end": 1}

    def run(self, setting: Setting, strength: float, z: Tensor, c: Prompts, rng: Streams) -> Made:
        """The best of N of each prompt."""
        return Made(best_of_n(setting.sampler, setting.terminal, z, setting.times, c, rng))


def unsteered() -> Unsteered:
    """The sampler alone."""
    return Unsteered()


def guide(
    *,
    profile: Literal["exact", "constant", "clipped"] = "exact",
    normalise: Literal["none", "rms", "value"] = "none",
    first: float = 0.95,
    last: float = 0.0,
    every: int = 1,
) -> Guide:
    """Guidance by the value's gradient: DPS, with any estimator.

    Args:
        profile: How strength depends on time.
        normalise: Of the gradient, per sample.
        first: Time from which it guides: the exact profile is infinite at t = 1.
        last: Time until which.
        every: Steps from one gradient to the next.

    Raises:
        ValueError: if the window is none.
    """
    within(PROFILES[profile], first, last)
    return Guide(profile, normalise, first, last, every)


def steer_by(  # noqa: PLR0913 - Algorithm 1 has as many
    *,
    particles: int = 4,
    proposals: int = 1,
    resample_first: int = 4,
    resample_last: int = 16,
    resample_every: int = 2,
    propose_until: int = 0,
    potential: Potential = "difference",
    carry: bool = True,
    initial: bool = False,
    last: bool = True,
    ess: float = 1.0,
    resample: Resample = "systematic",
    select: Literal["best", "draw"] = "best",
) -> Steer:
    """Feynman-Kac steering with local proposals.

    Args:
        particles: N.
        proposals: M.
        resample_first: First step after which particles are resampled; 0: never.
        resample_last: Last one.
        resample_every: Steps from one resampling to the next.
        propose_until: Last step that draws M proposals, from the first on.
        potential: How values become weights.
        carry: Whether weights add up between resamplings.
        initial: Whether the value at the start weights too.
        last: Whether the last potential comes from the clean reward.
        ess: Resample where the effective sample size is at most this share of N.
        resample: How copies are drawn.
        select: What of the particles is kept: the one of highest clean reward, or one by weight.

    Raises:
        ValueError: for numbers out of range.
    """
    options = {
        "potential": potential,
        "carry": carry,
        "initial": initial,
        "last": last,
        "ess": ess,
        "resample": resample,
    }
    at = None if resample_first == 0 else (resample_first, resample_last, resample_every)
    Plan(1.0, particles, proposals, **options)  # type: ignore[arg-type]
    return Steer(particles, proposals, at, propose_until, select, options)


def best(*, particles: int = 4) -> Best:
    """Best-of-N: the highest clean reward of N independent samples.

    Args:
        particles: N.

    Raises:
        ValueError: if N < 1.
    """
    if particles < 1:
        raise ValueError(f"expected particles >= 1, got {particles}")
    return Best(particles)


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "sample": unsteered,
    "guide": guide,
    "steer": steer_by,
    "best_of_n": best,
}
