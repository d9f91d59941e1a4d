"""Worlds of full size: SD 3.5 Medium and Large, FLUX.1-dev, and the rewards of their size.

With random weights their true shapes cost what the trained ones do - seconds, bytes and operations
are real - and nothing they say of quality means anything: it is absent, never zero.  Published
weights come from the hub or a folder of copies; `stitchbench weights` fetches and compares them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from bench.published import GENERATORS
from bench.worlds.quiet import quietly

if TYPE_CHECKING:
    from bench.worlds.full.world import FullWorld

Precision = Literal["bfloat16", "float16", "float32"]
Fast = Literal["compile", "channels_last", "offload"]


def build_of(model: str) -> Callable[..., "FullWorld"]:
    """The `build` of a model's world."""

    def build(  # noqa: PLR0913 - one for each setting
        *,
        weights: str = "random",
        side: int = 1024,
        precision: Precision = "bfloat16",
        blocks: int | None = None,
        pictures: str | None = None,
        models: str | None = None,
        sets: str | None = None,
        captions: Literal["mscoco", "flickr30k"] = "mscoco",
        preferences: Literal["hpdv2", "imagereward"] = "hpdv2",
        training: str | None = None,
        fast: tuple[Fast, ...] = (),
        device: str = "cpu",
    ) -> "FullWorld":
        """A world of full size, whose networks are made when they are first asked for.

        Args:
            weights: `random`: the true shapes, drawn on the device; `hub`; or a folder of copies,
                ROOT/<owner>/<name>/.
            side: Of the pictures, in pixels.
            precision: Of all weights; latents stay float32.
            blocks: The first ones of each stack alone, of random weights: to rehearse.
            pictures: A folder of clean images, every tenth of them held out.
            models: A folder of value models, as `stitchbench stitch train` leaves it.
            sets: A folder of evaluation sets, each in a folder of its name, laid out as published.
            captions: The set that embeddings of CLIP and DFN-CLIP retrieve from.
            preferences: The set of pairs that HPSv2 and PickScore compare.
            training: A list of prompts to train a generator on, .txt or .jsonl.
            fast: Other ways to the same numbers, see `bench.worlds.full.fast`.
            device: Where to compute.

        Raises:
            FileNotFoundError: for a folder that is none.
            ValueError: for a side or a number of blocks that the model does not have.
        """
        with quietly():
            from bench.worlds.full.world import Data, FullWorld  # noqa: PLC0415 - slow

        return FullWorld(
            model,
            weights=weights,
            side=side,
            precision=precision,
            blocks=blocks,
            data=Data(pictures, models, sets, captions, preferences, training),
            fast=fast,
            device=device,
        )

    return build


BUILDS = {model: build_of(model) for model in GENERATORS}
ABOUT = {  # for lists
    "sd35-medium": "Stable Diffusion 3.5 Medium at full size, random weights or published ones.",
    "sd35-large": "Stable Diffusion 3.5 Large at full size, random weights or published ones.",
    "flux-dev": "FLUX.1-dev at full size, random weights or published ones.",
}
