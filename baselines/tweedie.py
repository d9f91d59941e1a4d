"""Tweedie: the reward of the posterior mean, r(D(E[z_0 | z_t])).

One velocity, one decode, one reward.  Exact for a reward linear in z_0, and otherwise biased by
what the mean of the posterior cannot see (Jensen): -tr(A Cov(z_0 | z_t)) for z_0^T A z_0.

Source: Chung et al., 2022, arXiv:2209.14687.
"""

from typing import Literal

from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.path import denoise
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World


class Tweedie(ValueEstimator):
    """The reward of the posterior mean.

    Args:
        backbone: The generator.
        reward: The reward on clean images.
        posterior: `prompt` gives the velocity the prompt, `data` the null prompt.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        posterior: Literal["data", "prompt"] = "prompt",
    ) -> None:
        super().__init__()
        self.backbone, self.reward, self.latent = backbone, reward, backbone.latent
        self.target = Target(value="mean", posterior=posterior)

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        seen = c if self.target.posterior == "prompt" else [NULL] * len(z_t)
        z_0 = denoise(z_t, t, self.backbone.velocity(z_t, t, seen))
        return self.reward(self.backbone.decode(z_0), c)


def build(
    world: World, reward: Reward, *, posterior: Literal["data", "prompt"] = "prompt"
) -> Tweedie:
    """Tweedie in a world."""
    return Tweedie(world.backbone, reward, posterior)
