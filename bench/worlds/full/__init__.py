"""Worlds of full size: SD 3.5 Medium and Large, FLUX.1-dev, and the rewards of their size.

With random weights their true shapes cost what the trained ones do - seconds, bytes and operations
are real - and nothing they say of quality means anything: it is absent, never zero.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from bench.worlds.quiet import quietly

if TYPE_CHECKING:
    from bench.worlds.full.world import FullWorld

Precision = Literal["bfloat16", "float16", "float32"]
Weights = Literal["random"]


def build_of(model: str) -> Callable[..., "FullWorld"]:
    """The `build` of a model's world."""

    def build(
        *,
        weights: Weights = "random",
        side: int = 1024,
        precision: Precision = "bfloat16",
        blocks: int | None = None,
        device: str = "cpu",
    ) -> "FullWorld":
        """A world of full size, whose networks are made when they are first asked for.

        Args:
            weights: `random`: the true shapes, drawn on the device.
            side: Of the pictures, in pixels.
            precision: Of all weights; latents stay float32.
            blocks: The first ones of each stack alone, of generator and rewards: to rehearse.
            device: Where to compute.

        Raises:
            ValueError: for a side or a number of blocks that the model does not have.
        """
        with quietly():
            from bench.worlds.full.world import FullWorld  # noqa: PLC0415 - slow: diffusers

        return FullWorld(
            model, weights=weights, side=side, precision=precision, blocks=blocks, device=device
        )

    return build


BUILDS = {model: build_of(model) for model in ("sd35-medium", "sd35-large", "flux-dev")}
