"""Tweedie: the reward of the posterior mean, r(D(E[z_0 | z_t])).

One velocity, one decode, one reward.  Exact for a reward linear in z_0, and otherwise biased by
what the mean of the posterior cannot see (Jensen): -tr(A Cov(z_0 | z_t)) for z_0^T A z_0.

Two ways to make it cheap: `reuse` the velocity that a sampler has computed at z_t anyway - then
the gradient takes it as a constant (as MPGD does) - and a distilled `tiny` decoder.

Sources: Chung et al., 2022, arXiv:2209.14687; He et al., 2023, arXiv:2311.16424.
"""

from typing import Literal

from torch import Tensor

from stitchvm.backbone import NULL, Backbone, Prompts, Velocity
from stitchvm.memo import Remembered
from stitchvm.path import denoise
from stitchvm.reward import Features, Reward
from stitchvm.value import EmbeddingEstimator, Target
from stitchvm.world import World


class Tweedie(EmbeddingEstimator):
    """The reward of the posterior mean.

    Args:
        backbone: Decodes.
        reward: The reward on clean images.
        posterior: `prompt` gives the velocity the prompt, `data` the null prompt.
        velocity: The backbone's own when None.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        posterior: Literal["data", "prompt"] = "prompt",
        velocity: Velocity | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.reward, self.latent = backbone, reward, backbone.latent
        self.velocity = backbone.velocity if velocity is None else velocity
        self.target = Target(value="mean", posterior=posterior)

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """Those of the decoded posterior mean."""
        seen = c if self.target.posterior == "prompt" else [NULL] * len(z_t)
        x = self.backbone.decode(denoise(z_t, t, self.velocity(z_t, t, seen)))
        return self.reward.features(x)


def build(
    world: World,
    reward: Reward,
    *,
    posterior: Literal["data", "prompt"] = "prompt",
    decoder: Literal["full", "tiny"] = "full",
    reuse: bool = False,
) -> Tweedie:
    """Tweedie in a world.

    Args:
        world: Where.
        reward: Of what.
        posterior: `prompt` gives the velocity the prompt, `data` the null prompt.
        decoder: The backbone's own, or the world's distilled one.
        reuse: Whether the velocity counts as computed already; the gradient then holds it fixed.

    Raises:
        ValueError: for a tiny decoder in a world without one.
    """
    backbone = world.backbone if decoder == "full" else world.tiny
    if backbone is None:
        raise ValueError(f"expected a world with a tiny decoder, got {world.name!r}")
    velocity = Remembered(backbone.velocity) if reuse else None
    return Tweedie(backbone, reward, posterior, velocity)
