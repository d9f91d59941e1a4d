"""What is not computed twice at the same latents: a velocity, or the first blocks of a backbone.

`Remembered` says what a value costs a sampler that has called the velocity at z_t anyway; with
`Shared`, several estimators on one backbone run its blocks, and its decoder, once; with
`SharedTrunk`, an estimator and the sampler that it steers do.
"""

from collections import deque
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts, State, Velocity

KEEP = 64  # calls remembered
HINT = 16  # numbers of a latent by which it is looked up
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


class Memory(Backbone):
    """A backbone that asks another, and remembers what a kind of it says.

    Args:
        inner: The backbone.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner, self.latent, self.depth = inner, inner.latent, inner.depth

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """As inside."""
        return self.inner.velocity(z_t, t, c)

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """As inside."""
        return self.inner.trunk(z_t, t, i, c)

    def advance(self, state: State, i: int) -> State:
        """As inside."""
        return self.inner.advance(state, i)

    def resume(self, state: State) -> Tensor:
        """As inside."""
        return self.inner.resume(state)

    def select(self, state: State, rows: Tensor) -> State:
        """As inside."""
        return self.inner.select(state, rows)

    def join(self, first: State, second: State) -> State:
        """As inside."""
        return self.inner.join(first, second)

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """As inside."""
        return self.inner.trunk_weights(i)

    def empty_latents(self, rows: int) -> Tensor:
        """As inside."""
        return self.inner.empty_latents(rows)

    def recomputing(self) -> AbstractContextManager[None]:
        """As inside."""
        return self.inner.recomputing()

    def null_text(self) -> dict[str, Tensor]:
        """As inside."""
        return self.inner.null_text()

    def encode(self, x: Tensor) -> Tensor:
        """As inside."""
        return self.inner.encode(x)

    def decode(self, z_0: Tensor) -> Tensor:
        """As inside."""
        return self.inner.decode(z_0)


class Shared(Memory):
    """A frozen backbone that remembers its last trunks and decoded images.

    Where a gradient in the latents is asked for, it remembers nothing.

    Args:
        inner: The backbone.
        keep: States, and decoded batches, remembered.
    """

    def __init__(self, inner: Backbone, keep: int = STATES) -> None:
        super().__init__(inner)
        self._states: deque[State] = deque(maxlen=keep)
        self._decoded: deque[tuple[Tensor, Tensor]] = deque(maxlen=keep)

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


class SharedTrunk(Memory):
    """A frozen backbone whose velocity goes on from what was last computed at the same latents.

    An estimator and the sampler that it steers hold the same one, and neither knows:

        one branch     of classifier-free guidance, as a rule the null one: resumed from the block
                       at which the last trunk at these rows stopped; the other branch runs up to
                       there without a graph, and both go on as one batch
        velocity       taken over whole where it was called at these rows, as Tweedie does

    Latents, times and prompts are compared row by row, so the rows may be a selection of those
    that were asked about: the proposals that FK steering keeps.  What is taken over is a constant
    to autograd; what is asked for with a gradient in the latents is computed.

    Exact only where the unconditional branch uses the trunk's own null prompt: never a negative
    prompt, nor a distilled generator without that branch (FLUX.1-dev).

    Args:
        inner: The backbone.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self._state: State | None = None
        self._call: _Call | None = None

    def forget(self) -> None:
        """Go on from nothing that was asked before."""
        self._state = self._call = None

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity, (B, *latent), with as few blocks as are left to run."""
        if z_t.requires_grad and torch.is_grad_enabled():
            return self._called(z_t, t, c, self.inner.velocity(z_t, t, c))
        if (rows := _found(self._call, z_t, t, c)) is not None:
            return self._call.u[rows]  # type: ignore[union-attr]
        u = self._continued(z_t, t.expand(len(z_t)), c)
        return self._called(z_t, t, c, self.inner.velocity(z_t, t, c) if u is None else u)

    @torch.no_grad()
    def _continued(self, z_t: Tensor, times: Tensor, c: Prompts) -> Tensor | None:
        """The velocity where the trunk of all null rows, or of all others, is known."""
        branches = [
            [row for row, text in enumerate(c) if (text == NULL) is null] for null in (True, False)
        ]
        for mine, others in (branches, reversed(branches)):
            rows = _found(self._state, z_t[mine], times[mine], [c[row] for row in mine])
            if mine and rows is not None:
                state = self._joined(rows, z_t[others], times[others], [c[row] for row in others])
                out = torch.empty_like(z_t)
                out[mine + others] = self.inner.resume(state)
                return out
        return None

    def _joined(self, rows: Tensor, z_t: Tensor, times: Tensor, c: Prompts) -> State:
        """Rows of the known state, and others brought up to it."""
        state = cast(State, self._state)
        if not torch.equal(rows, torch.arange(len(state.z_t), device=rows.device)):
            state = self.inner.select(state, rows)
        if not c:
            return state
        return self.inner.join(state, self.inner.trunk(z_t, times, state.i, c))

    def _called(self, z_t: Tensor, t: Tensor, c: Prompts, u: Tensor) -> Tensor:
        self._call = _Call(z_t.detach().clone(), t.clone(), tuple(c), u.detach().clone())
        return u

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """As inside, and remembered."""
        return self._kept(self.inner.trunk(z_t, t, i, c))

    def advance(self, state: State, i: int) -> State:
        """As inside, and remembered."""
        return self._kept(self.inner.advance(state, i))

    def _kept(self, state: State) -> State:
        """Remember a state; its latents are the caller's, who may change them."""
        self._state = replace(state, z_t=state.z_t.detach().clone(), t=state.t.clone())
        return state


def _found(known: State | _Call | None, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor | None:
    """Which of the known rows each latent is, (B,); None unless all are among them."""
    if known is None or known.z_t.dtype != z_t.dtype:
        return None
    times, asked = known.t.expand(len(known.z_t)), t.expand(len(z_t))
    if len(known.z_t) == len(z_t) and _alike(known, list(c)) and torch.equal(times, asked):
        if torch.equal(known.z_t, z_t):  # as a rule
            return torch.arange(len(z_t), device=z_t.device)
    texts = [NULL] * len(known.z_t) if known.c is None else list(known.c)
    at = {text: k for k, text in enumerate(dict.fromkeys([*texts, *c]))}
    mine, theirs = (torch.tensor([at[x] for x in of], device=z_t.device) for of in (texts, c))
    same = (theirs[:, None] == mine) & (asked[:, None] == times)
    some = slice(HINT)  # of a latent: enough to find it by; then all of it must agree
    same &= (z_t.flatten(1)[:, None, some] == known.z_t.flatten(1)[:, some]).all(2)
    rows = same.int().argmax(1)
    found = bool(same.any(1).all()) and torch.equal(known.z_t[rows], z_t)
    return rows if found else None


def _alike(known: State | _Call, c: list[str]) -> bool:
    return all(text == NULL for text in c) if known.c is None else list(known.c) == c


def _same(state: State, z_t: Tensor, t: Tensor, c: Prompts | None) -> bool:
    prompts = None if state.c is None else list(state.c)
    given = None if c is None else list(c)
    return prompts == given and _equal(state.t, t) and _equal(state.z_t, z_t)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))
