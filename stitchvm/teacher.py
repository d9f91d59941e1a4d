"""The teacher of stage 2: noisy latents, and what the frozen reward makes of the clean images.

tokens(x_0), e(x_0)     the targets of Eqs. 78 and 79, computed once

A noisy latent comes from a clean one by noise, or, for the value under a sampler, from one of its
rollouts, which ended in a clean one.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.sample import Sampler, trajectory
from stitchvm.search import Source
from stitchvm.streams import Streams

Times = Callable[[int, torch.Generator], Tensor]  # a distribution: so many draws


class Noisy(NamedTuple):
    """Noisy latents z_t, (B, *latent), at times t, (B,)."""

    z_t: Tensor
    t: Tensor


class Rows(Protocol):
    """Rows of a tensor on the CPU, which need not be in memory."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Some of them, by a tensor of indices or a slice."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...


class Lessons(Protocol):
    """What stage 2 learns from."""

    @property
    def tokens(self) -> Rows:
        """What the frozen reward's last block makes of each clean image, (n, L, D)."""
        ...

    @property
    def embedding(self) -> Rows:
        """And its embedding, (n, D')."""
        ...

    @property
    def c(self) -> Prompts:
        """A prompt for each."""
        ...

    def noisy(self, rows: Tensor, times: Times, rng: torch.Generator) -> Noisy:
        """Noisy latents of some of them.

        Args:
            rows: Which, (B,) indices.
            times: Of forward noise.
            rng: Draws times and noise.
        """
        ...


class Prepared(NamedTuple):
    """What the clean images are to stage 2.

    Attributes:
        z_0: Latents, (n, *latent).
        tokens: What the frozen reward's last block makes of each image, (n, L, D).
        embedding: And its embedding, (n, D').
        c: A prompt for each image; the null prompt where there is none.
    """

    z_0: Rows
    tokens: Rows
    embedding: Rows
    c: Prompts

    def noisy(self, rows: Tensor, times: Times, rng: torch.Generator) -> Noisy:
        """Their latents with noise."""
        z_0 = self.z_0[rows]
        t = times(len(rows), rng).to(z_0)
        eps = torch.randn(z_0.shape, generator=rng, dtype=z_0.dtype)
        return Noisy(noise(z_0, t, eps), t)


class Rolled(NamedTuple):
    """Rollouts of a sampler, and what their ends are to stage 2.

    Attributes:
        z_t: Where each was on its way, (n k, *latent): k points of a rollout, then of the next.
        t: When, the same for all, (k,).
        tokens: What the frozen reward's last block makes of the image each ended in, (n, L, D).
        embedding: And its embedding, (n, D').
        c: The prompt of each.
    """

    z_t: Rows
    t: Tensor
    tokens: Rows
    embedding: Rows
    c: Prompts

    def noisy(self, rows: Tensor, times: Times, rng: torch.Generator) -> Noisy:
        """A point of each rollout, all of its times alike: the sampler's, not the given ones."""
        del times
        at = torch.randint(len(self.t), (len(rows),), generator=rng)
        z_t = self.z_t[rows * len(self.t) + at]
        return Noisy(z_t, self.t[at].to(z_t))


@torch.no_grad()
def prepare(
    backbone: Backbone,
    reward: Reward,
    images: Iterable[Tensor],
    *,
    c: Prompts | None = None,
    source: Source = "pixels",
) -> Prepared:
    """Latents and the frozen reward's targets of clean images, computed once.

    Args:
        backbone: Whose latents.
        reward: The teacher, as it was pretrained.
        images: x_0 in batches, (B, 3, H, W) in [-1, 1].
        c: Their prompts, for a trunk that sees them.
        source: What the teacher sees, pixels (published) or decoded latents.

    Raises:
        ValueError: if there are no images, or not a prompt for each.
    """
    z_0, tokens, embedding = [], [], []
    for x_0 in images:
        z_0.append(backbone.encode(x_0))
        seen = reward.features(backbone.decode(z_0[-1]) if source == "latents" else x_0)
        tokens.append(seen.tokens)
        embedding.append(seen.embedding)
    if not z_0:
        raise ValueError("expected at least one image, got none")
    latents, *of = (torch.cat(parts).cpu() for parts in (z_0, tokens, embedding))
    c = [NULL] * len(latents) if c is None else c
    if len(c) != len(latents):
        raise ValueError(f"expected {len(latents)} prompts, one per image, got {len(c)}")
    return Prepared(latents, of[0], of[1], c)


@torch.no_grad()
def rolled(
    sampler: Sampler, z: Tensor, times: Tensor, c: Prompts, rng: Streams | None = None
) -> Tensor:
    """Every point of a trajectory, the last one clean, (B, steps + 1, *latent), on the CPU.

    Arguments as in `stitchvm.sample.trajectory`.
    """
    return torch.stack([at.z_t.cpu() for at in trajectory(sampler, z, times, c, rng)], dim=1)
