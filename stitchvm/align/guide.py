r"""Guidance: a velocity that holds a velocity, so every sampler works with every guidance.

CFG      u = u(z_t | 0) + w (u(z_t | c) - u(z_t | 0))     Ho & Salimans, 2022, arXiv:2207.12598
"""

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Prompts, Velocity


class CFG:
    """Classifier-free guidance, both branches in one call of twice the batch.

    Args:
        velocity: What is guided.
        scale: w; 1 is the velocity itself, 0 the null prompt's.
    """

    def __init__(self, velocity: Velocity, scale: float) -> None:
        self.velocity, self.scale = velocity, scale

    def __call__(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The guided velocity, (B, *latent)."""
        if self.scale == 1:
            return self.velocity(z_t, t, c)
        twice = t if t.ndim == 0 else torch.cat([t, t])
        both = self.velocity(torch.cat([z_t, z_t]), twice, [NULL] * len(z_t) + list(c))
        null, prompted = both.chunk(2)
        return null + self.scale * (prompted - null)
