"""Terminal: the reward of z_t taken as if it were clean, r(D(z_t)).

Exact at t = 0, where it is the clean reward that DRaFT, DiffusionNFT and Best-of-N use; at t > 0
it is the cheapest guess that looks at the latent at all: no denoiser.
"""

from torch import Tensor

from stitchvm.backbone import Backbone, Prompts
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World


class Terminal(ValueEstimator):
    """The reward of the latent as it is.

    Args:
        backbone: Decodes.
        reward: The reward on clean images.
    """

    def __init__(self, backbone: Backbone, reward: Reward) -> None:
        super().__init__()
        self.backbone, self.reward, self.latent = backbone, reward, backbone.latent
        self.target = Target(value="mean", posterior="data")

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        return self.reward(self.backbone.decode(z_t), c)


def build(world: World, reward: Reward) -> Terminal:
    """Terminal in a world."""
    return Terminal(world.backbone, reward)
