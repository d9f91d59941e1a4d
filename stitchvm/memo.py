"""What is not computed twice at the same latents: a velocity, or the first blocks of a backbone.

`Remembered` says what a value costs a sampler that has called the velocity at z_t anyway; with
`Shared`, several estimators on one backbone run its blocks, and its decoder, once.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import Backbone, Prompts, State, Velocity

KEEP = 64  # calls remembered
STATES = 8  # states of a backbone remembered: they are large


class _Call(NamedTuple):
    z_t: Tensor
    t: Tensor
    c: tuple[str, ...]
    u: Tensor


class Remembered:
    """A velocity with a memory of its last calls; what it remembers is a constant to autograd.

    Args:
        velocity: What to call, without gradients.
        keep: Calls remembered.
    """

    def __init__(self, velocity: Velocity, keep: int = KEEP) -> None:
        self.velocity = velocity
        self._calls: deque[_Call] = deque(maxlen=keep)

    def __call__(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity, (B, *latent)."""
        z, prompts = z_t.detach(), tuple(c)
        for call in self._calls:
            same = call.c == prompts and call.z_t.dtype == z.dtype
            if same and torch.equal(call.t, t) and torch.equal(call.z_t, z):
                return call.u
        with torch.no_grad():
            u = self.velocity(z, t, c)
        self._calls.append(_Call(z.clone(), t.clone(), prompts, u))
        return u


class Shared(Backbone):
    """A frozen backbone that remembers its last trunks and decoded images.

    Where a gradient in the latents is asked for, it remembers nothing.

    Args:
        inner: The backbone.
        keep: States, and decoded batches, remembered.
    """

    def __init__(self, inner: Backbone, keep: int = STATES) -> None:
        super().__init__()
        self.inner, self.latent, self.depth = inner, inner.latent, inner.depth
        self._states: deque[State] = deque(maxlen=keep)
        self._decoded: deque[tuple[Tensor, Tensor]] = deque(maxlen=keep)

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """As inside."""
        return self.inner.velocity(z_t, t, c)

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """As inside; from the deepest state known at the same latents, times and prompts."""
        if z_t.requires_grad:
            return self.inner.trunk(z_t, t, i, c)
        known = [s for s in self._states if s.i <= i and _same(s, z_t, t, c)]
        if not known:
            return self._keep(self.inner.trunk(z_t, t, i, c))
        return self.advance(max(known, key=lambda s: s.i), i)

    def advance(self, state: State, i: int) -> State:
        """As inside."""
        if state.z_t.requires_grad:
            return self.inner.advance(state, i)
        for known in self._states:
            if known.i == i and _same(known, state.z_t, state.t, state.c):
                return known
        return self._keep(self.inner.advance(state, i))

    def _keep(self, state: State) -> State:
        self._states.append(state)
        return state

    def resume(self, state: State) -> Tensor:
        """As inside."""
        return self.inner.resume(state)

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """As inside."""
        return self.inner.trunk_weights(i)

    def null_text(self) -> dict[str, Tensor]:
        """As inside."""
        return self.inner.null_text()

    def encode(self, x: Tensor) -> Tensor:
        """As inside."""
        return self.inner.encode(x)

    def decode(self, z_0: Tensor) -> Tensor:
        """As inside."""
        if z_0.requires_grad:
            return self.inner.decode(z_0)
        for known, x in self._decoded:
            if _equal(known, z_0):
                return x
        x = self.inner.decode(z_0)
        self._decoded.append((z_0.clone(), x))
        return x


def _same(state: State, z_t: Tensor, t: Tensor, c: Prompts | None) -> bool:
    prompts = None if state.c is None else list(state.c)
    given = None if c is None else list(c)
    return prompts == given and _equal(state.t, t) and _equal(state.z_t, z_t)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))
