"""Trainers that suites can name: what a value estimator teaches a generator by.

    nft         DiffusionNFT          draft       DRaFT-K          flow_grpo   Flow-GRPO-Fast

Each is a loss with a plan; `stop` are the steps after which rollouts stop, where the value is
asked.  Without it they run to the end: the published method.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from baselines import flow_grpo as grpo
from stitchvm.align import draft, nft
from stitchvm.align.policy import Policy
from stitchvm.align.training import NOWHERE, Clock, Keep, Recipe, Record, Stop
from stitchvm.value import ValueEstimator


@dataclass(frozen=True)
class Pupil:
    """What is trained, and by what.

    Attributes:
        policy: Trained in place.
        value: Asked where rollouts end.
        prompts: To train on.
        times: The sampler's grid.
        clock: Tells the time.
    """

    policy: Policy
    value: ValueEstimator
    prompts: Sequence[str]
    times: tuple[float, ...]
    clock: Clock


@dataclass(frozen=True)
class Trainer(ABC):
    """A way to train.

    Attributes:
        stop: First and last step after which rollouts stop; None: the published method.
        settings: Of its plan.
    """

    stop: tuple[int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> "Trainer":
        """The same, its rollouts run to the end."""
        return replace(self, stop=None)

    @property
    def window(self) -> Stop | None:
        """Of stops."""
        return None if self.stop is None else Stop(*self.stop)

    @abstractmethod
    def run(self, pupil: Pupil, recipe: Recipe, keep: Keep = NOWHERE) -> Iterator[Record]:
        """Train, a record a step.

        Raises:
            ValueError: for what does not fit, before anything runs.
        """


class Nft(Trainer):
    """DiffusionNFT."""

    def run(self, pupil: Pupil, recipe: Recipe, keep: Keep = NOWHERE) -> Iterator[Record]:
        """As `stitchvm.align.nft`."""
        plan = nft.Plan(pupil.times, stop=self.window, **self.settings)
        given = (pupil.policy, pupil.value, pupil.prompts, plan, recipe)
        return nft.nft(*given, keep=keep, clock=pupil.clock)


class Draft(Trainer):
    """DRaFT-K."""

    def run(self, pupil: Pupil, recipe: Recipe, keep: Keep = NOWHERE) -> Iterator[Record]:
        """As `stitchvm.align.draft`."""
        plan = draft.Plan(pupil.times, stop=self.window, **self.settings)
        given = (pupil.policy, pupil.value, pupil.prompts, plan, recipe)
        return draft.draft(*given, keep=keep, clock=pupil.clock)


class Grpo(Trainer):
    """Flow-GRPO-Fast, whose rollouts always run to the end."""

    def run(self, pupil: Pupil, recipe: Recipe, keep: Keep = NOWHERE) -> Iterator[Record]:
        """As `baselines.flow_grpo`."""
        plan = grpo.Plan(pupil.times, **self.settings)
        given = (pupil.policy, pupil.value, pupil.prompts, plan, recipe)
        return grpo.flow_grpo(*given, keep=keep, clock=pupil.clock)


def diffusion_nft(  # noqa: PLR0913 - the public configuration has as many
    *,
    stop: tuple[int, int] | None = None,
    beta: float = 0.1,
    most: float = 5.0,
    kl: float = 1e-4,
    share: float = 0.99,
    gap: float = 0.0,
    old: Literal[0, 1, 2] = 1,
    loss: nft.Loss = "anchor",
) -> Nft:
    """DiffusionNFT: samples that are better than others attract.

    Args:
        stop: First and last step after which rollouts stop; None: the published method.
        beta: Distance of the two branches from the old policy.
        most: Where advantages are clipped, in spreads.
        kl: Weight of the squared distance from the reference.
        share: Of the times above tau, how many each sample is taught at.
        gap: Least distance of those from tau.
        old: Schedule by which the old policy follows.
        loss: In anchors, as public, or in velocities, as printed.
    """
    settings = {"beta": beta, "most": most, "kl": kl, "share": share, "gap": gap, "old": old}
    return Nft(stop, settings | {"loss": loss})


def draft_k(
    *,
    stop: tuple[int, int] | None = None,
    last: int = 1,
    regulariser: float = 0.01,
    recompute: bool = False,
) -> Draft:
    """DRaFT-K: gradients of the value through the last K steps.

    Args:
        stop: First and last step after which rollouts stop; None: the published method.
        last: K.
        regulariser: Weight of the squared distance from the reference.
        recompute: Whether velocities and values are computed again in the backward pass.
    """
    settings = {"last": last, "regulariser": regulariser, "recompute": recompute}
    return Draft(stop, settings)


def flow_grpo(
    *,
    window: int = 3,
    before: float = 0.5,
    clip: float = 1e-4,
    most: float = 5.0,
    kl: float = 0.0,
    updates: int = 2,
) -> Grpo:
    """Flow-GRPO-Fast: policy gradients of a few stochastic steps.

    Args:
        window: Stochastic steps.
        before: They lie within this share of the steps.
        clip: Of ratios, as PPO.
        most: Where advantages are clipped, in spreads.
        kl: Weight of the distance from the reference.
        updates: Parts that the prompts of a step are gone through in.
    """
    settings = {"window": window, "before": before, "clip": clip, "most": most, "kl": kl}
    return Grpo(None, settings | {"updates": updates})


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "nft": diffusion_nft,
    "draft": draft_k,
    "flow_grpo": flow_grpo,
}
