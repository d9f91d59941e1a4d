"""World: a backbone, rewards, prompts and data, and where known the truth about them.

What a value estimator is built in and judged in: every `build` of `baselines` takes one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from stitchvm.backbone import Backbone, Prompts
from stitchvm.evaluation import Evaluation
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import EmbeddingEstimator, Target, ValueEstimator

Split = Literal["train", "held"]
Finish = Callable[[Tensor, Tensor, Prompts, Streams | None], Tensor]  # (z_t, t, c, rng) -> z_0


class Certainty(NamedTuple):
    """How well a truth that is itself an average is known.

    Attributes:
        members: Effective number of members in each average, (B,).
        variance: Of each average round the value it estimates, (B,): a constant that it adds to
            every estimator's mean squared error.
    """

    members: Tensor
    variance: Tensor


class Shown(NamedTuple):
    """Clean images x_0, (B, 3, H, W) in [-1, 1], and a prompt that is true of each."""

    x_0: Tensor
    c: Prompts


class Drawn(NamedTuple):
    """Draws of clean latents: as `World.seen` sees them, (B, D), and their rewards, (B,)."""

    seen: Tensor
    reward: Tensor


class Batch(NamedTuple):
    """Clean images that are read when they are asked for.

    Attributes:
        rows: Their number.
        read: Reads them.
    """

    rows: int
    read: Callable[[], Shown]


def _itself(shown: Shown) -> Shown:
    return shown


class World(ABC):
    """One setting in which estimators are compared.

    Attributes:
        name: As suites call it.
        backbone: The generator.
        tiny: The same generator with a distilled decoder, or None where there is none.
        rewards: Names of its rewards.
        prompts: Its prompts, in a fixed order.
        digest: Identity of its weights and data.
        judges: Names of rewards that nothing is trained on or steered by.
        tuning: Prompts to choose settings on, none of which is among `prompts`.
        meaningful: Whether what its networks say means anything: of random weights costs alone do.
    """

    name: str
    backbone: Backbone
    tiny: Backbone | None
    rewards: tuple[str, ...]
    prompts: tuple[str, ...]
    digest: str
    judges: tuple[str, ...] = ()
    tuning: tuple[str, ...] = ()
    meaningful: bool = True

    @abstractmethod
    def reward(self, name: str) -> Reward:
        """The reward of that name, on clean images.

        Raises:
            ValueError: if the world has none of that name.
        """

    def identity(self, reward: str) -> str | None:
        """Which weights the reward of that name has, where `digest` does not say."""
        del reward
        return None

    @abstractmethod
    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Clean latents z_0 ~ p(z_0 | c), one per stream; the null prompt draws from all data."""

    @abstractmethod
    def images(self, split: Split, count: int) -> Iterator[Shown]:
        """Clean images to learn from or to choose by, the same whenever asked; never tested ones.

        Args:
            split: `train`, or `held` for what nothing is trained on.
            count: How many; they come in batches.
        """

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """The same, for those who do not need them all; arguments as in `images`."""
        for shown in self.images(split, count):
            yield Batch(len(shown.c), partial(_itself, shown))

    def admit(self, c: Prompts) -> None:
        """Refuse prompts that the world has no data of.

        Raises:
            ValueError: naming one.
        """
        del c

    def other(self, generator: str) -> Backbone:
        """Another generator on the same latents, for value models that are made of it.

        Raises:
            ValueError: if the world has none of that name.
        """
        raise ValueError(f"expected a world with other generators, got {self.name!r}")

    def training(self, count: int) -> tuple[str, ...]:
        """Prompts to train a generator on, none of which is judged or chosen by.

        Raises:
            ValueError: if the world has none.
        """
        raise ValueError(f"expected a world with {count} prompts to train on, got {self.name!r}")

    @property
    def lessons(self) -> str | None:
        """Which prompts `training` gives, where `digest` does not say."""
        return None

    def trainable(self, rank: int, seed: int) -> Backbone:
        """Its generator with weights of its own to train; `backbone` stays as it is.

        Args:
            rank: Of the updates, where weights are LoRA's.
            seed: Of what they begin with.

        Raises:
            ValueError: if nothing of the generator can be trained.
        """
        raise ValueError(f"expected a world whose generator can be trained, got {self.name!r}")

    def called(self, reward: Reward) -> str | None:
        """The name of a reward that it gave before; None for one that is not its own.

        A world that makes a reward anew whenever asked knows none of them.
        """
        return next((name for name in self.rewards if self.reward(name) is reward), None)

    def trained(self, reward: str) -> dict[str, Path]:
        """Folders of the value models that ship with it, of the reward of that name, by name.

        None of a name that is not among its rewards.
        """
        del reward
        return {}

    def evaluation(self, reward: Reward, items: int) -> Evaluation | None:
        """Whether a reward's job is done, on images that nothing was trained on.

        Args:
            reward: Whose job.
            items: Images of a retrieval, pairs, or rated images.

        Returns:
            The set, or None where the world has none for the reward.
        """
        del reward, items
        return None

    def ceiling(self, reward: Reward, tested: Tensor) -> EmbeddingEstimator | None:
        """The posterior mean embedding E[e(z_0) | z_t] of data, or None where nobody knows it.

        Args:
            reward: Whose embedding.
            tested: Clean latents that will be noised, (B, *latent): possible ones as any others.
        """
        del reward, tested
        return None

    @abstractmethod
    def pictures(self, z_0: Tensor) -> Tensor | None:
        """Clean latents as people see them, (B, 3, H, W) in [-1, 1]; None where that is noise."""

    @abstractmethod
    def seen(self, z_0: Tensor) -> Tensor:
        """What distances between clean latents are measured on, (B, D)."""

    def correct(self, z_0: Tensor, c: Prompts) -> Tensor | None:
        """Whether each clean latent shows its prompt, (B,); None where nobody can tell."""
        del z_0, c
        return None

    def kinds(self, c: Prompts) -> list[str]:
        """What kind of prompt each is."""
        return [""] * len(c)

    def tilted_draws(self, reward: Reward, c: str, lam: float, rng: Streams) -> Drawn | None:
        """Draws from p*(z_0 | c) ~ p(z_0 | c) exp(lambda r), one per stream.

        None where nobody can draw.

        Raises:
            ValueError: if no such target exists.
        """
        del reward, c, lam, rng
        return None

    @abstractmethod
    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """The exact value of a target, or None where nobody knows it."""

    @abstractmethod
    def certainty(
        self, reward: Reward, target: Target, z_t: Tensor, t: Tensor, c: Prompts
    ) -> Certainty | None:
        """How well the truth is known at some latents, or None where it is exact or unknown."""

    @abstractmethod
    def posterior(self, posterior: str) -> Finish | None:
        """Exact draws from the `data` or `prompt` posterior, or None where nobody can."""
