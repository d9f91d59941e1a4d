"""Reward: a frozen model of clean images that can be entered at block j.

    r(x, c) = score(tail(head(x, j), j).embedding, c)       the same for EVERY j
    head(x, k) == advance(head(x, j), j, k)

`tail` is r^{>=j}, the right half of Eq. 6.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stitchvm.backbone import Prompts


class Hidden(NamedTuple):
    """What enters block j: a map (B, C, H, W), and the [CLS] token (B, C) of a ViT at j >= 2."""

    map: Tensor
    cls: Tensor | None = None


class Features(NamedTuple):
    """What leaves the last block.

    Attributes:
        tokens: (B, L, D).
        embedding: What they pool to, (B, D'), as `score` takes it.
        raw: The embedding before it is made of unit length, (B, D'); None where it never is.
    """

    tokens: Tensor
    embedding: Tensor
    raw: Tensor | None = None

    def lengthened(self, gain: Tensor) -> "Features":
        """With an embedding of any length: the raw one, times a gain."""
        raw = self.embedding if self.raw is None else self.raw
        return self._replace(embedding=gain * raw)


class Reward(nn.Module, ABC):
    """A reward model on clean images.

    Attributes:
        depth: Number of blocks.
    """

    depth: int

    @abstractmethod
    def head(self, x: Tensor, j: int) -> Hidden:
        """What enters block j, r^{<=j-1}(x), for 1 <= j <= depth (j = 1: the patch embedding)."""

    @abstractmethod
    def advance(self, h: Hidden, j: int, k: int) -> Hidden:
        """What enters block k >= j, of what enters block j."""

    @abstractmethod
    def tail(self, h: Hidden, j: int) -> Features:
        """Blocks j to the end, r^{>=j}; at j = 1 it adds [CLS], positions and pre-norm itself."""

    @abstractmethod
    def tail_weights(self, j: int) -> dict[str, Tensor]:
        """The weights that `tail` uses at j, by their names in the state dict."""

    @abstractmethod
    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward (B,) of embeddings (B, D') under their prompts."""

    def scores(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of all B embeddings (B, D') under each of T prompts, (B, T)."""
        return torch.stack([self.score(e, [one] * len(e)) for one in c], 1)

    @abstractmethod
    def head_weights(self) -> dict[str, Tensor]:
        """The weights that `head` uses at j = 1, by their names in the state dict."""

    def features(self, x: Tensor) -> Features:
        """All blocks on clean images."""
        return self.tail(self.head(x, 1), 1)

    def forward(self, x: Tensor, c: Prompts) -> Tensor:
        """The reward r(x, c) of clean images, (B,), differentiable in x."""
        return self.score(self.features(x).embedding, c)
