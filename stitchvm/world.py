"""World: a backbone, rewards, prompts and data, and where known the truth about them.

What a value estimator is built in and judged in: every `build` of `baselines` takes one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from stitchvm.backbone import Backbone, Prompts
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator

Finish = Callable[[Tensor, Tensor, Prompts, Streams | None], Tensor]  # (z_t, t, c, rng) -> z_0


class World(ABC):
    """One setting in which estimators are compared.

    Attributes:
        name: As suites call it.
        backbone: The generator.
        rewards: Names of its rewards.
        prompts: Its prompts, in a fixed order.
        digest: Identity of its weights and data.
    """

    name: str
    backbone: Backbone
    rewards: tuple[str, ...]
    prompts: tuple[str, ...]
    digest: str

    @abstractmethod
    def reward(self, name: str) -> Reward:
        """The reward of that name, on clean images.

        Raises:
            ValueError: if the world has none of that name.
        """

    @abstractmethod
    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Clean latents z_0 ~ p(z_0 | c), one per stream; the null prompt draws from all data."""

    @abstractmethod
    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """The exact value of a target, or None where nobody knows it."""

    @abstractmethod
    def posterior(self, posterior: str) -> Finish | None:
        """Exact draws from the `data` or `prompt` posterior, or None where nobody can."""
