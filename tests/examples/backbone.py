"""A backbone: the exact flow of data that are one Gaussian, N(0, variance I)."""

from stitchvm.path import expand_time
from stitchvm.whole import WholeBackbone


class Plain(WholeBackbone):
    def __init__(self, like, variance):
        super().__init__()
        self.like, self.latent = like, like.latent
        self.register_buffer("variance", like.empty_latents(0).new_tensor(variance))

    def velocity(self, z_t, t, c):
        t = expand_time(t, z_t)
        a, v = 1 - t, self.variance
        return (t - a * v) / (a**2 * v + t**2) * z_t

    def encode(self, x):
        return self.like.encode(x)

    def decode(self, z_0):
        return self.like.decode(z_0)


def build(world, *, variance: float = 0.15):
    return Plain(world.backbone, variance)
