"""Constant: the mean clean reward of the prompt, whatever the latent looks like.

The bar that every estimator has to clear: skill = 1 - MSE / MSE(constant).
"""

import torch
from torch import Tensor

from stitchvm.backbone import Prompts
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World


class Constant(ValueEstimator):
    """E[r(z_0) | c] over clean latents of the prompt; it has no gradient.

    Args:
        world: Draws and decodes clean latents.
        reward: The reward on clean images.
        draws: Clean latents per prompt.

    Raises:
        ValueError: if draws < 1.
    """

    differentiable = False

    def __init__(self, world: World, reward: Reward, draws: int = 1024) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"expected draws >= 1, got {draws}")
        self.world, self.reward, self.draws = world, reward, draws
        self.latent = world.backbone.latent
        self.target = Target(value="mean", posterior="prompt")
        self._means: dict[str, Tensor] = {}

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        for prompt in set(c) - set(self._means):
            self._means[prompt] = self._prior_mean(prompt)
        return torch.stack([self._means[prompt] for prompt in c])

    @torch.no_grad()
    def _prior_mean(self, prompt: str) -> Tensor:
        """The mean reward of fresh clean latents of a prompt, ()."""
        c = [prompt] * self.draws
        rng = Streams.of(derive(0, "constant"), prompt, rows=self.draws)
        return self.reward(self.world.backbone.decode(self.world.draw(c, rng)), c).mean()


def build(world: World, reward: Reward, *, draws: int = 1024) -> Constant:
    """Constant in a world."""
    return Constant(world, reward, draws)
