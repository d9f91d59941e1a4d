"""What a world of full size is made of, whoever makes it."""

from abc import ABC, abstractmethod
from typing import Any

from stitchvm.models.pipeline import PipelineBackbone
from stitchvm.reward import Reward


class Parts(ABC):
    """Makes the networks of a world, each when it is first asked for.

    Attributes:
        rewards: Names of its rewards.
        trained: Whether what they say means anything.
        known: Plain data that tells all weights from others.
    """

    rewards: tuple[str, ...]
    trained: bool
    known: list[Any]

    @abstractmethod
    def backbone(self) -> PipelineBackbone:
        """The generator."""

    @abstractmethod
    def tiny(self, generator: PipelineBackbone) -> PipelineBackbone:
        """The generator with its distilled decoder."""

    @abstractmethod
    def reward(self, name: str) -> Reward:
        """The reward of that name."""
