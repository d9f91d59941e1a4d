"""What the trainers share: prompts of a step, an optimiser that skips, averages, checkpoints.

Everything random at a step follows from seed and step, so a checkpoint needs no state of any
generator, and a run that was killed goes on bit for bit on a CPU.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stitchvm import checkpoint
from stitchvm.align.policy import Policy
from stitchvm.streams import Streams, derive
from stitchvm.value import ValueEstimator

CHECKPOINT = "checkpoint.pt"
PHASES = ("rollout", "value", "update")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Recipe:
    """How weights are trained, whatever the loss.

    Attributes:
        steps: Steps: rollouts, and what is learnt from them.
        prompts: Prompts a step.
        group: Samples of each.
        rate: Of AdamW.
        decay: Its weight decay.
        clip: Largest norm of a gradient.
        average: Of what is evaluated: kept share a step, less during the first ones.
        batch: Latents at once.
        seed: Of prompts, noise and stops.

    Raises:
        ValueError: for numbers out of range.
    """

    steps: int
    prompts: int = 48
    group: int = 24
    rate: float = 3e-4
    decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.9
    batch: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "group", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not self.rate > 0 or not self.clip > 0:
            raise ValueError(f"expected rate and clip > 0, got {self.rate:g} and {self.clip:g}")

    def continues(self, earlier: "Recipe") -> bool:
        """Whether the steps of an earlier recipe are the first ones of this."""
        return self.steps >= earlier.steps and replace(self, steps=earlier.steps) == earlier


class Keep(NamedTuple):
    """Where a run's checkpoint goes, and how many steps apart; nowhere: a folder of None."""

    folder: Path | None = None
    every: int = 10


NOWHERE = Keep()


@dataclass(frozen=True)
class Stop:
    """Which steps of the sampler rollouts stop after: any of first to last, counted from 1."""

    first: int
    last: int

    def check(self, steps: int) -> None:
        """Refuse a window that does not fit.

        Raises:
            ValueError: if it is not within the sampler's steps.
        """
        if not 1 <= self.first <= self.last <= steps:
            raise ValueError(
                f"expected a window of stops within steps 1..{steps}, got {self.first} to "
                f"{self.last}"
            )

    def draw(self, seed: int) -> int:
        """One of them."""
        rng = torch.Generator().manual_seed(seed)
        return int(torch.randint(self.first, self.last + 1, (), generator=rng))


class Record(NamedTuple):
    """One step; NaN where a trainer has no such figure.

    Attributes:
        step: Steps made, this one included.
        reward: Mean value of the samples, as the estimator has it.
        loss: The loss, whose size says nothing of progress.
        gradient: Norm of the gradient before clipping.
        skipped: Updates so far that changed nothing, for their gradient was not finite.
        old: Mean squared distance of the velocity from that of the old policy.
        kl: And from that of the reference.
        norm: Mean norm of the latents that rollouts ended in.
        flat: Share of prompts whose samples all have the same value: they teach nothing.
        samples: Rollouts so far.
        seconds: Of this step, by phase: rollout, value, update.
    """

    step: int
    reward: float
    loss: float
    gradient: float
    skipped: int
    old: float
    kl: float
    norm: float
    flat: float
    samples: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Samples:
    """Rollouts of a step: the prompt and the stream of each, B of them."""

    c: list[str]
    rng: Streams

    def __len__(self) -> int:
        return len(self.c)

    def of_rows(self, rows: Sequence[int]) -> "Samples":
        """Some of them."""
        return Samples([self.c[row] for row in rows], self.rng.of_rows(rows))


class Training:
    """Weights under training, as far as they have come.

    Args:
        policy: Whose weights.
        recipe: How.
        plan: What else the run depends on, as plain data; a checkpoint of another is refused.
        keep: Where a checkpoint goes.
        clock: Tells the time, once queued work is done.

    Attributes:
        step: Steps made.
        skipped: Updates that changed nothing.
    """

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        plan: dict[str, Any],
        keep: Keep,
        clock: Clock,
    ) -> None:
        self.policy, self.recipe, self.plan = policy, recipe, plan
        self.keep, self.clock = keep, clock
        self.step = self.skipped = 0
        self._changed = False
        self._spent: defaultdict[str, float] = defaultdict(float)
        self.optimiser = torch.optim.AdamW(
            policy.weights.values(), lr=recipe.rate, weight_decay=recipe.decay, fused=True
        )
        if keep.folder is not None and (keep.folder / CHECKPOINT).exists():
            self._resume(keep.folder / CHECKPOINT)

    def steps(self, step: Callable[[], Record]) -> Iterator[Record]:
        """What is left of the run; a checkpoint is written once the caller is done with a record.

        So what a caller keeps of records is never behind the checkpoint.
        """
        while self.step < self.recipe.steps:
            yield step()
            self.save()

    def seed(self, *labels: object) -> int:
        """A seed of this step."""
        return derive(self.recipe.seed, "train", self.step, *labels)

    def samples(self, prompts: Sequence[str]) -> Samples:
        """The prompts of this step, each `group` times in a row, and a stream of each sample.

        Prompts come in rounds: all of them in a random order, before any comes again.
        """
        chosen = [self._prompt(prompts, k) for k in range(self.recipe.prompts)]
        c = [text for text in chosen for _ in range(self.recipe.group)]
        return Samples(c, Streams.of(self.seed("samples"), rows=len(c)))

    def _prompt(self, prompts: Sequence[str], k: int) -> str:
        """The k-th prompt of this step."""
        at_round, place = divmod(self.step * self.recipe.prompts + k, len(prompts))
        rng = torch.Generator().manual_seed(derive(self.recipe.seed, "round", at_round))
        return prompts[int(torch.randperm(len(prompts), generator=rng)[place])]

    def parts(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """Rows, a batch at a time."""
        for first in range(0, len(rows), self.recipe.batch):
            yield rows[first : first + self.recipe.batch]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a block of code towards a phase."""
        start = self.clock()
        yield
        self._spent[name] += self.clock() - start

    def descend(self) -> float:
        """Change the weights by the gradients that are there; returns their norm.

        A gradient that is not finite changes nothing and is counted.
        """
        weights = list(self.policy.weights.values())
        norm = nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        finite = bool(norm.isfinite())
        if finite:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.skipped += not finite
        self._changed |= finite
        return norm.item()

    def record(self, **figures: Any) -> Record:
        """End the step: the average follows, if anything has changed."""
        self.step += 1
        if self._changed:
            keep = min((1 + self.step) / (10 + self.step), self.recipe.average)
            self.policy.follow(self.policy.averaged, keep)
        self._changed = False
        seconds = {name: self._spent[name] for name in PHASES}
        self._spent.clear()
        samples = self.step * self.recipe.prompts * self.recipe.group
        return Record(
            step=self.step, skipped=self.skipped, samples=samples, seconds=seconds, **figures
        )

    def save(self) -> None:
        """Write the checkpoint where one is due."""
        due = self.step % self.keep.every == 0 or self.step == self.recipe.steps
        if self.keep.folder is not None and due:
            self._save(self.keep.folder / CHECKPOINT)

    def _save(self, path: Path) -> None:
        state = {
            "weights": {name: w.detach() for name, w in self.policy.weights.items()},
            "old": self.policy.old,
            "averaged": self.policy.averaged,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
            "recipe": asdict(self.recipe),
            "plan": self.plan,
        }
        checkpoint.write(path, state)

    def _resume(self, path: Path) -> None:
        state = checkpoint.read(path)
        asked, theirs = (asdict(self.recipe), self.plan), (state["recipe"], state["plan"])
        if self.plan != state["plan"] or not self.recipe.continues(Recipe(**state["recipe"])):
            raise ValueError(f"expected a checkpoint of {asked} at {path}, got one of {theirs}")
        if {n: w.shape for n, w in self.policy.weights.items()} != {
            n: w.shape for n, w in state["weights"].items()
        }:
            raise ValueError(f"expected a checkpoint of these weights at {path}, got others")
        self.policy.become(state["weights"])
        for kind in ("old", "averaged"):
            for name, value in getattr(self.policy, kind).items():
                value.copy_(state[kind][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.skipped = state["step"], state["skipped"]


def by_group(x: Tensor, group: int) -> Tensor:
    """Samples as (prompts, group)."""
    return x.unflatten(0, (-1, group))


def advantages(reward: Tensor, group: int, most: float) -> Tensor:
    """Rewards less their prompt's mean, over the standard deviation of all, within +-most; (B,).

    Rewards that are all equal have none: 0.

    Args:
        reward: (B,), the samples of a prompt in a row.
        group: Samples of each prompt.
        most: Where they are clipped.

    Raises:
        ValueError: for groups of one sample, which say nothing of each other.
    """
    if group < 2:  # noqa: PLR2004
        raise ValueError(f"expected at least 2 samples a prompt to compare, got {group}")
    r = by_group(reward.double(), group)
    apart = (r - r.mean(1, keepdim=True)).flatten()
    return (apart / (r.std(correction=0) + 1e-4)).clamp(-most, most)


def flat(reward: Tensor, group: int) -> float:
    """Share of prompts whose samples all have the same reward; NaN for one sample each."""
    if group == 1:
        return float("nan")
    r = by_group(reward, group)
    return float((r.amax(1) == r.amin(1)).double().mean())


def starts(run: Training, samples: Samples) -> Tensor:
    """Noise that rollouts start from, (B, *latent)."""
    return samples.rng.child("z_1").normal(run.policy.network.empty_latents(len(samples)))


def grid(run: Training, times: Sequence[float]) -> Tensor:
    """Times on the policy's device, (steps + 1,)."""
    return torch.tensor(
        times, dtype=torch.float64, device=run.policy.network.empty_latents(0).device
    )


@torch.no_grad()
def valued(run: Training, value: ValueEstimator, z: Tensor, t: Tensor, samples: Samples) -> Tensor:
    """The value of latents at times (B,), a batch at a time, (B,), float64."""
    parts = []
    for rows in run.parts(range(len(samples))):
        of = samples.of_rows(rows)
        part = list(rows)
        parts.append(value(z[part], t[part], of.c, of.rng.child("value")))
    return torch.cat(parts).double()


def fitting(value: ValueEstimator, policy: Policy) -> None:
    """Refuse a value of other latents.

    Raises:
        ValueError: if it is one.
    """
    if tuple(value.latent) != tuple(policy.latent):
        raise ValueError(f"expected a value of latents {policy.latent}, got {value.latent}")
