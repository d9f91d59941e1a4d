"""StitchVM after stage 1 alone: the closed-form stitching layer, nothing finetuned.

What the least-squares fit of Eq. 62 is worth by itself; the finetuned tail comes on top.

Source: arXiv:2605.19804, Eqs. 6-7, 59-62.
"""

import torch

from stitchvm.backbone import NULL
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.search import tokens_of
from stitchvm.stitch import Stitched, StitchLayer, fit_linear, resize
from stitchvm.streams import Streams, derive
from stitchvm.world import World

PROBES = 200  # clean images of the probe set (section 4.1)


@torch.no_grad()
def build(
    world: World, reward: Reward, *, i: int = 3, j: int = 1, probes: int = PROBES
) -> Stitched:
    """Fit the layer on noised probe latents, t ~ U[0, 1] each, null prompt.

    Args:
        world: Where.
        reward: Of what.
        i: Backbone blocks to run.
        j: First block of the reward's tail.
        probes: Clean images in the probe set.
    """
    rng = Streams.of(derive(0, "linear_stitch"), rows=probes)
    c = [NULL] * probes
    z_0 = world.draw(c, rng.child("z_0"))
    t = rng.child("t").uniform(z_0.dtype).to(z_0.device)
    z_t = noise(z_0, t, rng.child("eps").normal(z_0))
    entering = reward.head(world.backbone.decode(z_0), j)
    targets, cls = entering.map, None if entering.cls is None else entering.cls.mean(0)
    size = (targets.shape[-2], targets.shape[-1])
    features = resize(world.backbone.trunk(z_t, t, i).features, size)
    fit = fit_linear(tokens_of(features), tokens_of(targets))
    layer = StitchLayer(fit, size, cls).to(z_0)
    return Stitched(world.backbone, i, layer.requires_grad_(requires_grad=False), reward, j)
