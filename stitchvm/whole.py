"""Backbones and rewards in one piece: for whoever has a model and nowhere to cut it.

WholeBackbone    write velocity, encode, decode     its one block is the velocity itself
WholeReward      write embed, score                 its one block takes the image
"""

from abc import ABC, abstractmethod

from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts, State
from stitchvm.reward import Features, Hidden, Reward

ONLY = 1  # the only block


def _only(k: int) -> None:
    if k != ONLY:
        raise ValueError(f"expected block {ONLY}, the only one, got {k}")


class WholeBackbone(Backbone, ABC):
    """A generator whose one block is its velocity.

    Needs `velocity`, `encode`, `decode`, the shape `latent`, and a tensor in its state dict, whose
    dtype and device latents are to have, or `empty_latents`.
    """

    depth = ONLY

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """The velocity, as the state after the only block."""
        _only(i)
        u = self.velocity(z_t, t, [NULL] * len(z_t) if c is None else c)
        return State(u, ONLY, z_t, t, c, None)

    def advance(self, state: State, i: int) -> State:
        """The state itself."""
        _only(i)
        return state

    def resume(self, state: State) -> Tensor:
        """The velocity, (B, *latent)."""
        return state.features

    def select(self, state: State, rows: Tensor) -> State:
        """Some rows of a state."""
        return state.of_rows(rows, None)

    def join(self, first: State, second: State) -> State:
        """Two states as one batch."""
        return first.with_rows(second, None)

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """All weights."""
        _only(i)
        return dict(self.state_dict(keep_vars=True))


class WholeReward(Reward, ABC):
    """A reward whose one block takes the image; needs `embed` and `score`."""

    depth = ONLY

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """What is scored of clean images, (B, D)."""

    def head(self, x: Tensor, j: int) -> Hidden:
        """The image."""
        _only(j)
        return Hidden(x)

    def advance(self, h: Hidden, j: int, k: int) -> Hidden:
        """The image itself."""
        _only(j)
        _only(k)
        return h

    def tail(self, h: Hidden, j: int) -> Features:
        """Pixels as tokens, and the embedding."""
        _only(j)
        return Features(h.map.flatten(2).transpose(1, 2), self.embed(h.map))

    def tail_weights(self, j: int) -> dict[str, Tensor]:
        """All weights."""
        _only(j)
        return dict(self.state_dict(keep_vars=True))

    def head_weights(self) -> dict[str, Tensor]:
        """None: the head is the image."""
        return {}
