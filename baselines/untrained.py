"""A StitchVM before any training: what one costs, where there is nothing to train it on.

The layer is drawn at random, the reward's tail as it is: its values mean nothing.
"""

import copy

import torch

from stitchvm.reward import Reward
from stitchvm.stitch import Condition, LinearFit, Stitched, StitchLayer
from stitchvm.world import World


def build(
    world: World, reward: Reward, *, i: int = 4, j: int = 1, condition: Condition = "null"
) -> Stitched:
    """A stitched model of blocks i and j.

    Args:
        world: Where.
        reward: Of what.
        i: Backbone blocks to run.
        j: First block of the reward's tail.
        condition: What the trunk sees.

    Raises:
        ValueError: if backbone or reward has no such block.
    """
    z = world.backbone.empty_latents(1).zero_()
    with torch.no_grad():
        features = world.backbone.trunk(z, z.new_tensor(0.5), i).features
        entering = reward.head(world.backbone.decode(z), j)
    rng = torch.Generator().manual_seed(0)
    out, inner = entering.map.shape[1], features.shape[1]
    weight = torch.randn(out, inner, generator=rng) / inner**0.5
    weight = weight.to(entering.map.dtype)
    fit = LinearFit(weight, weight.new_zeros(out), inner, 0.0)
    cls = None if entering.cls is None else entering.cls[0]
    height, width = entering.map.shape[-2:]
    layer = StitchLayer(fit, (height, width), cls).to(entering.map)
    return Stitched(world.backbone, i, layer, copy.deepcopy(reward), j, condition=condition)
