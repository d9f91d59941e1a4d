"""Backbone: a frozen latent generator that can stop after i blocks and go on from there.

trunk(z_t, t, i, c).features = u^{<=i}(z_t)         the left half of Eq. 6
advance(trunk(z_t, t, i, c), k) == trunk(z_t, t, k, c)
resume(trunk(z_t, t, i, c)) == velocity(z_t, t, c)
select(join(a, b), rows of b) == b
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Prompts = Sequence[str]
Velocity = Callable[[Tensor, Tensor, Prompts], Tensor]

NULL = ""  # the null prompt: no text, the data distribution as a whole


@dataclass(frozen=True)
class State:
    """A velocity computed as far as block i.

    Attributes:
        features: Output of block i as a map, (B, C, H, W).
        i: Blocks run so far.
        z_t: The latents it came from, (B, *latent).
        t: Their times, () or (B,).
        c: Their prompts, or None for the null prompt.
        hidden: Whatever the backbone needs to go on; nobody else's business.
    """

    features: Tensor
    i: int
    z_t: Tensor
    t: Tensor
    c: Prompts | None
    hidden: Any

    def of_rows(self, rows: Tensor, hidden: Any) -> "State":
        """The state of some rows (n,), whose hidden part the backbone has selected."""
        t = self.t if self.t.ndim == 0 else self.t[rows]
        c = None if self.c is None else [self.c[row] for row in rows.tolist()]
        return State(self.features[rows], self.i, self.z_t[rows], t, c, hidden)

    def meets(self, other: "State") -> None:
        """Refuse to be joined with a state after another block.

        Raises:
            ValueError: if it is one.
        """
        if self.i != other.i:
            raise ValueError(f"expected states after one block, got {self.i} and {other.i}")

    def with_rows(self, other: "State", hidden: Any) -> "State":
        """This state and another as one batch, whose hidden part the backbone has joined.

        Raises:
            ValueError: if they are not after the same block.
        """
        self.meets(other)
        times = torch.cat([s.t.expand(len(s.z_t)) for s in (self, other)])
        c = [text for s in (self, other) for text in ([NULL] * len(s.z_t) if s.c is None else s.c)]
        features, z_t = (
            torch.cat([getattr(s, name) for s in (self, other)]) for name in ("features", "z_t")
        )
        return State(features, self.i, z_t, times, c, hidden)


def _own(part: nn.Module) -> Iterator[Tensor]:
    """A module's tensors but for its parts', in the order of a state dict."""
    yield from part.parameters(recurse=False)
    yield from part.buffers(recurse=False)


class Backbone(nn.Module, ABC):
    """A latent generator: its velocity, its first blocks, and its decoder.

    Attributes:
        latent: Shape of one latent, (C, H, W).
        depth: Number of blocks that are there: of a truncated backbone, which has no velocity,
            fewer than the generator was trained with.
    """

    latent: tuple[int, ...]
    depth: int

    @abstractmethod
    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity u(z_t, t | c), (B, *latent)."""

    @abstractmethod
    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """The state after i blocks, 1 <= i <= depth, and no more; differentiable in z_t."""

    @abstractmethod
    def advance(self, state: State, i: int) -> State:
        """The state after i blocks, state.i <= i <= depth, running only those that are left."""

    @abstractmethod
    def resume(self, state: State) -> Tensor:
        """The rest of the velocity from a state, (B, *latent)."""

    @abstractmethod
    def select(self, state: State, rows: Tensor) -> State:
        """Some rows (n,) of a state, in that order; a row may come more than once."""

    @abstractmethod
    def join(self, first: State, second: State) -> State:
        """Two states after the same block as one batch, the rows of the first first.

        Raises:
            ValueError: if they are not after the same block.
        """

    @abstractmethod
    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """The weights that `trunk` uses up to block i, by name."""

    def empty_latents(self, rows: int) -> Tensor:
        """Latents to fill, (rows, *latent): where its first tensor is, of 32 bits at least.

        Raises:
            ValueError: if it has no tensor, and so should say itself where latents are.
        """
        like = next((x for part in self.modules() for x in _own(part)), None)
        if like is None:
            raise ValueError(
                "expected a weight or a buffer, which tells where latents are, got none: register "
                "one, or define `empty_latents`"
            )
        precision = torch.promote_types(like.dtype, torch.float32)
        return torch.empty(rows, *self.latent, dtype=precision, device=like.device)

    def recomputing(self) -> AbstractContextManager[None]:
        """Meanwhile, let the graph keep what enters blocks alone; the rest is computed again."""
        return nullcontext()

    def null_text(self) -> dict[str, Tensor]:
        """The null prompt's embedding, without which `trunk` needs a text encoder; none: {}."""
        return {}

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents z_0 of images x."""

    @abstractmethod
    def decode(self, z_0: Tensor) -> Tensor:
        """Images of clean latents, differentiable."""
