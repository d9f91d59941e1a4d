"""An estimator: Tweedie's reward, shrunk towards the prompt's mean as noise grows."""

import torch

from stitchvm.path import denoise
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator


class Shrunk(ValueEstimator):
    def __init__(self, backbone, reward, means, power):
        super().__init__()
        self.backbone, self.reward, self.means, self.power = backbone, reward, means, power
        self.latent, self.target = backbone.latent, Target("mean", "prompt")

    def forward(self, z_t, t, c, rng=None):
        z_0 = denoise(z_t, t, self.backbone.velocity(z_t, t, c))
        mean = torch.stack([self.means[text] for text in c])
        return mean + (1 - t) ** self.power * (self.reward(self.backbone.decode(z_0), c) - mean)


@torch.no_grad()
def build(world, reward, *, power: float = 1.0, draws: int = 16):
    means = {}
    for text in world.prompts:
        z_0 = world.draw([text] * draws, Streams.of(0, "shrunk", text, rows=draws))
        means[text] = reward(world.backbone.decode(z_0), [text] * draws).mean()
    return Shrunk(world.backbone, reward, means, power)
