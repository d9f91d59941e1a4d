"""Constant: the prior value of the prompt, whatever the latent looks like.

The value of pure noise: exact where the world knows its truth, else from clean draws.

The bar that every estimator has to clear: skill = 1 - MSE / MSE(constant).
"""

from typing import Literal

import torch
from torch import Tensor

from baselines.monte_carlo import aggregate
from stitchvm.backbone import NULL, Prompts
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World

DRAWS = 1024


class Constant(ValueEstimator):
    """The mean or soft value over clean latents, E[r(z_0)] at its simplest; it has no gradient.

    Args:
        world: Draws and decodes clean latents.
        reward: The reward on clean images.
        target: The mean or soft value; over clean latents of the prompt, or of all `data`.
        draws: Clean latents per prompt; None for the truth at t = 1, or where the world has none
            for DRAWS of them.

    Raises:
        ValueError: if draws < 1.
    """

    differentiable = False

    def __init__(
        self, world: World, reward: Reward, target: Target, draws: int | None = None
    ) -> None:
        super().__init__()
        if draws is not None and draws < 1:
            raise ValueError(f"expected draws >= 1, got {draws}")
        self.world, self.reward = world, reward
        self.truth = world.truth(reward, target) if draws is None else None
        self.draws = DRAWS if draws is None else draws
        self.latent = world.backbone.latent
        self.target = target
        self._values: dict[str, Tensor] = {}

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,)."""
        for prompt in set(c) - set(self._values):
            self._values[prompt] = self._prior(prompt)
        return torch.stack([self._values[prompt] for prompt in c])

    @torch.no_grad()
    def _prior(self, prompt: str) -> Tensor:
        """The value of a prompt, ()."""
        if self.truth is not None:
            z_1 = self.world.backbone.empty_latents(1).zero_()
            return self.truth(z_1, z_1.new_ones(()), [prompt])[0]
        seen = prompt if self.target.posterior == "prompt" else NULL
        rng = Streams.of(derive(0, "constant"), prompt, rows=self.draws)
        z_0 = self.world.draw([seen] * self.draws, rng)
        rewards = self.reward(self.world.backbone.decode(z_0), [prompt] * self.draws)
        return aggregate(rewards, self.target.lam)


def build(
    world: World,
    reward: Reward,
    *,
    value: Literal["mean", "soft"] = "mean",
    posterior: Literal["data", "prompt"] = "prompt",
    lam: float | None = None,
    draws: int | None = None,
) -> Constant:
    """Constant in a world."""
    return Constant(world, reward, Target(value, posterior, lam), draws)
