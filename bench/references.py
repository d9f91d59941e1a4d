"""What a `robustness` table has beside estimators: the clean reward, and what is possible at all.

    clean      e(z_0): the reward on what was noised, whatever the noise
    ceiling    E[e(z_0) | z_t]: Bayes, under data of which the tested latents are part

Neither is an estimator: both are told which latents are tested.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stitchvm.backbone import NULL
from stitchvm.evaluation import Images
from stitchvm.reward import Reward
from stitchvm.value import EmbeddingEstimator
from stitchvm.world import World

Ask = Callable[[Tensor, Tensor, slice], Tensor]  # (z_t, t, their rows) -> embeddings


class Tested(NamedTuple):
    """What is tested: clean images, and their latents z_0 (B, *latent)."""

    images: Images
    z_0: Tensor


def asking(estimator: EmbeddingEstimator) -> Ask:
    """What an estimator says of noisy latents, whatever image they are of."""
    return lambda z_t, t, _: estimator.features(z_t, t, [NULL] * len(z_t)).embedding


@torch.no_grad()
def clean(
    world: World,
    reward: Reward,
    tested: Tested,
    *,
    source: Literal["pixels", "latents"] = "pixels",
) -> Ask:
    """The clean reward of the images themselves, or of their decoded latents."""
    shown = tested.images()
    if source == "latents":
        shown = (world.backbone.decode(z_0) for z_0 in tested.z_0.split(128))
    e = torch.cat([reward.features(x).embedding for x in shown])
    return lambda z_t, t, rows: e[rows]  # noqa: ARG005


def ceiling(world: World, reward: Reward, tested: Tested) -> Ask:
    """The posterior mean embedding.

    Raises:
        ValueError: if the world does not know it.
    """
    found = world.ceiling(reward, tested.z_0)
    if found is None:
        raise ValueError(f"expected a world with a bank of data, got {world.name!r}")
    return asking(found)


REFERENCES: dict[str, Callable[..., Ask]] = {"clean": clean, "ceiling": ceiling}
