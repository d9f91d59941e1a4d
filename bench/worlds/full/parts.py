"""What a world of full size is made of, whoever makes it."""

from abc import ABC, abstractmethod
from typing import Any

from diffusers import AutoencoderTiny

from stitchvm.models.clip import ClipTower
from stitchvm.models.pipeline import PipelineBackbone


class Parts(ABC):
    """Makes the networks of a world, each when it is first asked for.

    Attributes:
        rewards: Names of its rewards.
        trained: Whether what they say means anything.
        known: Plain data that tells these weights from others; see also `identity`.
    """

    rewards: tuple[str, ...]
    trained: bool
    known: list[Any]

    @abstractmethod
    def identity(self, name: str) -> str | None:
        """Which weights the reward of that name has; None where `known` says it."""

    @abstractmethod
    def backbone(self, device: str) -> PipelineBackbone:
        """The generator, made on a device."""

    @abstractmethod
    def decoder(self) -> AutoencoderTiny:
        """The generator's distilled decoder."""

    @abstractmethod
    def reward(self, name: str) -> ClipTower:
        """The reward of that name."""
