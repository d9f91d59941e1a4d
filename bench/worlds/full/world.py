"""A generator and rewards of full size, without data: what costs are measured in."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from bench.cell import digest
from bench.worlds.full import drawn
from stitchvm.backbone import Backbone, Prompts
from stitchvm.models import lora
from stitchvm.models.pipeline import PipelineBackbone
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import Certainty, Finish, Shown, Split, World

PROMPTS = (
    "a red cube on top of a blue sphere",
    "a photo of a bench under a tree in autumn",
    "two cats playing chess in a library",
    "a lighthouse in a storm, oil painting",
)
AT_ONCE = 8  # images


class FullWorld(World):
    """A generator and rewards of a published model's shapes.

    Nothing is built before it is asked for: to plan costs nothing.

    Args:
        model: Which, a file of `configs/`.
        weights: `random`.
        side: Of pictures, in pixels.
        precision: Name of the weights' dtype.
        blocks: The first ones of each stack alone.
        device: Where to compute.

    Raises:
        ValueError: for a side that the model's latents do not divide, or too many blocks.
    """

    rewards = tuple(drawn.config("rewards"))
    prompts = PROMPTS

    def __init__(
        self,
        model: str,
        *,
        weights: str,
        side: int,
        precision: str,
        blocks: int | None,
        device: str,
    ) -> None:
        shapes = drawn.config(model)
        if side < drawn.PATCH or side % drawn.PATCH:
            raise ValueError(f"expected a side divisible by {drawn.PATCH}, got {side}")
        drawn.first(shapes["transformer"]["num_layers"], blocks)
        self.name, self.side, self.blocks, self.device = model, side, blocks, device
        self.dtype: torch.dtype = getattr(torch, precision)
        self.digest = f"{weights}-{digest([shapes, drawn.config('rewards'), side, precision])}"
        self.digest += "" if blocks is None else f"-{blocks}"
        self._rewards: dict[str, Reward] = {}

    @cached_property
    def generator(self) -> PipelineBackbone:
        """The model's own; `backbone`, what is asked, may be wrapped."""
        return drawn.backbone(self.name, self.side, self.dtype, self.blocks, self.device)

    @cached_property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The generator."""
        return self.generator

    @cached_property
    def tiny(self) -> Backbone:  # type: ignore[override]
        """The same with a decoder of the shape of TAESD3 or TAEF1."""
        return self.generator.with_decoder(drawn.tiny(self.name, self.dtype, self.device))

    def reward(self, name: str) -> Reward:
        """The reward of that name.

        Raises:
            ValueError: for any other.
        """
        if name not in self.rewards:
            raise ValueError(f"expected a reward in {self.rewards}, got {name!r}")
        if name not in self._rewards:
            made = drawn.reward(name, self.dtype, self.blocks, self.device)
            self._rewards[name] = made
        return self._rewards[name]

    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Standard normal latents: of the right shape, and no pictures."""
        like = torch.empty(len(c), *self.generator.latent, device=self.device)
        return rng.normal(like)

    def images(self, split: Split, count: int) -> Iterator[Shown]:
        """Pictures of noise: stages of a search cost by them what they do by others."""
        for start in range(0, count, AT_ONCE):
            rows = min(AT_ONCE, count - start)
            rng = torch.Generator().manual_seed(derive(0, "images", split, start))
            x = torch.rand(rows, 3, self.side, self.side, generator=rng) * 2 - 1
            c = [PROMPTS[k % len(PROMPTS)] for k in range(start, start + rows)]
            yield Shown(x.to(self.device), c)

    def training(self, count: int) -> tuple[str, ...]:
        """Prompts that say which they are."""
        return tuple(f"a photo of thing number {k}" for k in range(count))

    def trainable(self, rank: int, seed: int) -> Backbone:
        """With LoRA on all attention."""
        return lora.adapted(self.generator, rank, seed=seed)

    def pictures(self, z_0: Tensor) -> Tensor | None:
        """None: random weights draw noise."""
        del z_0
        return None

    def seen(self, z_0: Tensor) -> Tensor:
        """The latents themselves, (B, D)."""
        return z_0.flatten(1)

    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """None: nobody knows it."""
        del reward, target
        return None

    def certainty(
        self, reward: Reward, target: Target, z_t: Tensor, t: Tensor, c: Prompts
    ) -> Certainty | None:
        """None: there is no truth."""
        del reward, target, z_t, t, c
        return None

    def posterior(self, posterior: str) -> Finish | None:
        """None: nobody can draw from it."""
        del posterior
        return None
