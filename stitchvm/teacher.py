"""The teacher of stage 2: latents of clean images, and what the frozen reward makes of the images.

tokens(x_0), e(x_0)     the targets of Eqs. 78 and 79, computed once
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.reward import Reward
from stitchvm.search import Source


class Prepared(NamedTuple):
    """What the clean images are to stage 2; all on the CPU.

    Attributes:
        z_0: Latents, (n, *latent).
        tokens: What the frozen reward's last block makes of each image, (n, L, D).
        embedding: And its embedding, (n, D').
        c: A prompt for each image; the null prompt where there is none.
    """

    z_0: Tensor
    tokens: Tensor
    embedding: Tensor
    c: Prompts


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
    shown = list(images)
    z_0 = encoded(backbone, shown)
    if source == "latents":
        shown = list(decoded(backbone, z_0, len(shown[0])))
    tokens, embedding = targets(reward, shown)
    c = [NULL] * len(z_0) if c is None else c
    if len(c) != len(z_0):
        raise ValueError(f"expected {len(z_0)} prompts, one per image, got {len(c)}")
    return Prepared(z_0, tokens, embedding, c)


@torch.no_grad()
def encoded(backbone: Backbone, images: Iterable[Tensor]) -> Tensor:
    """Latents of clean images, (n, *latent), on the CPU.

    Raises:
        ValueError: if there are no images.
    """
    parts = [backbone.encode(x_0).cpu() for x_0 in images]
    if not parts:
        raise ValueError("expected at least one image, got none")
    return torch.cat(parts)


@torch.no_grad()
def targets(reward: Reward, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """What a frozen reward makes of clean images: tokens (n, L, D) and embeddings (n, D')."""
    parts = [reward.features(x) for x in images]
    tokens, embedding = ([x.cpu() for x in kind] for kind in list(zip(*parts, strict=True))[:2])
    return torch.cat(tokens), torch.cat(embedding)


def decoded(backbone: Backbone, z_0: Tensor, batch: int) -> Iterator[Tensor]:
    """Images of latents, in batches, where the backbone is."""
    device = next(iter(backbone.state_dict().values())).device
    return (backbone.decode(z.to(device)) for z in z_0.split(batch))
