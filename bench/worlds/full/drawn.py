"""Networks of true shape with random weights, drawn where they will compute, and texts for them.

No file is read but the shapes, in `configs/`: they are those of the published models.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from bench.worlds.full.parts import Parts
from bench.worlds.quiet import quietly
from stitchvm.backbone import Prompts
from stitchvm.models.aesthetic import AestheticReward
from stitchvm.models.clip import ClipTower, Pixels, expect_prompts
from stitchvm.models.flux import FluxBackbone
from stitchvm.models.pipeline import PipelineBackbone
from stitchvm.models.sd3 import Sd3Backbone
from stitchvm.models.texts import Text, Texts
from stitchvm.streams import derive

CONFIGS = Path(__file__).parent / "configs"
CLIP_PIXELS = Pixels(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), rounded=True
)
SEED = 0
PATCH = 16  # pixels along the side of a token
ALIKE = {"hps-v2.0": "hps", "hps-v2.1": "hps"}  # rewards of one shape
STACKS = ("num_layers", "num_single_layers")


@cache
def config(name: str) -> Any:
    """A file of `configs/`."""
    return json.loads((CONFIGS / f"{name}.json").read_text())


class DrawnParts(Parts):
    """Random weights.

    Args:
        model: Which generator, a file of `configs/`.
        side: Of pictures, in pixels.
        dtype: Of all weights.
        blocks: The first ones of each stack alone; all when None.
        device: Where to.
    """

    rewards = (*config("rewards"), *ALIKE)
    trained = False

    def __init__(
        self, model: str, *, side: int, dtype: torch.dtype, blocks: int | None, device: str
    ) -> None:
        self.model, self.side, self.dtype = model, side, dtype
        self.blocks, self.device = blocks, device
        self.known = [config(model), config("rewards")]

    def identity(self, name: str) -> None:
        """None: all shapes are known."""
        del name

    def backbone(self, device: str) -> PipelineBackbone:
        """The generator, drawn on a device."""
        return backbone(self.model, self.side, self.dtype, self.blocks, device)

    def decoder(self) -> AutoencoderTiny:
        """A decoder of the shape of TAESD3 or TAEF1."""
        return tiny(self.model, self.dtype, self.device)

    def reward(self, name: str) -> ClipTower:
        """A reward of the shape of that name's."""
        return reward(ALIKE.get(name, name), self.dtype, self.blocks, self.device)


class DrawnTexts(Texts):
    """Embeddings that no encoder made: each prompt has its own, the same whenever asked.

    Args:
        length: Tokens of a prompt.
        tokens: Width of each.
        pooled: Width of the pooled embedding.
    """

    def __init__(self, length: int, tokens: int, pooled: int) -> None:
        super().__init__(None, length)
        self.widths = tokens, pooled

    def encode(self, prompt: str, device: torch.device) -> Text:
        """Standard normal numbers of the prompt's own, (1, L, D) and (1, P)."""
        tokens, pooled = self.widths
        drawn = _normal(prompt, self.length * tokens + pooled)
        apart = drawn.split([self.length * tokens, pooled])
        return Text(apart[0].view(1, self.length, tokens).to(device), apart[1][None].to(device))

    def _encode(self, prompt: str) -> Text:
        tokens, pooled = self.encode(prompt, torch.device("cpu"))
        return Text(tokens[0], pooled[0])


class DrawnReward(ClipTower):
    """The cost of a CLIP reward: its image tower whole, and texts that no tower read.

    Args:
        model: The model, which is frozen; its text half is not kept.
        pixels: Its preprocessing.
        scale: Of the cosine.
    """

    def __init__(self, model: CLIPModel, pixels: Pixels, scale: float) -> None:
        super().__init__(model, pixels)
        self.scale = scale

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of unit embeddings (B, D'), (B,).

        Raises:
            ValueError: if there are not B prompts.
        """
        expect_prompts(e, c)
        texts = torch.stack([_normal(text, e.shape[1]) for text in c])
        return self.scale * (e * functional.normalize(texts, dim=1).to(e)).sum(1)


def backbone(
    model: str, side: int, dtype: torch.dtype, blocks: int | None, device: str
) -> PipelineBackbone:
    """The generator of a model, for pictures of a side in pixels.

    Args:
        model: Its file in `configs/`.
        side: Of the pictures.
        dtype: Of all weights.
        blocks: The first ones of each stack alone; all when None.
        device: Where to.

    Raises:
        ValueError: if latents of that side do not fit, or there are not so many blocks.
    """
    shapes = config(model)
    given = dict(shapes["transformer"])
    for entry in STACKS:
        if entry in given:
            given[entry] = first(given[entry], blocks)
    if "dual_attention_layers" in given:
        kept = [k for k in given["dual_attention_layers"] if k < given["num_layers"]]
        given["dual_attention_layers"] = tuple(kept)
    flux = shapes["kind"] == "flux"
    with drawing(device, dtype):
        kind = FluxTransformer2DModel if flux else SD3Transformer2DModel
        parts = kind(**given).to(dtype), AutoencoderKL(**shapes["vae"]).to(dtype)
    texts = DrawnTexts(
        shapes["text_tokens"], given["joint_attention_dim"], given["pooled_projection_dim"]
    )
    latent = (shapes["vae"]["latent_channels"], *[side // _scale(shapes)] * 2)
    if flux:
        return FluxBackbone(*parts, texts, latent=latent, guidance=shapes["guidance"])
    return Sd3Backbone(*parts, texts, latent=latent)


def tiny(model: str, dtype: torch.dtype, device: str) -> AutoencoderTiny:
    """A distilled decoder of the shape of TAESD3 or TAEF1."""
    with drawing(device, dtype):
        return AutoencoderTiny(**config(model)["tiny"]).to(dtype)


def reward(name: str, dtype: torch.dtype, blocks: int | None, device: str) -> ClipTower:
    """A reward of the shape of a published one.

    Raises:
        ValueError: if there are not so many blocks.
    """
    shapes = config("rewards")[name]
    vision = shapes["vision"]
    vision = {**vision, "num_hidden_layers": first(vision["num_hidden_layers"], blocks)}
    unread = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    given = CLIPConfig(
        text_config=unread, vision_config=vision, projection_dim=shapes["projection_dim"]
    )
    with drawing(device, dtype):
        model = CLIPModel(given).to(dtype)
    if shapes["scale"] is not None:
        return DrawnReward(model, CLIP_PIXELS, shapes["scale"])
    w = _normal(name, shapes["projection_dim"]).to(device, dtype)
    return AestheticReward(model, CLIP_PIXELS, w, torch.zeros((), device=device, dtype=dtype))


def first(all_of_them: int, blocks: int | None) -> int:
    """How many blocks of a stack are kept.

    Raises:
        ValueError: if it has fewer.
    """
    if blocks is not None and not 1 <= blocks <= all_of_them:
        raise ValueError(f"expected blocks in 1..{all_of_them}, got {blocks}")
    return all_of_them if blocks is None else blocks


@contextmanager
def drawing(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is made meanwhile is drawn on a device, in a precision, from one seed."""
    before = torch.get_default_dtype()
    devices = [device] if torch.device(device).type == "cuda" else []
    with quietly(), torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(SEED)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _scale(shapes: dict[str, Any]) -> int:
    """Pixels along a side of a latent pixel."""
    return int(2 ** (len(shapes["vae"]["block_out_channels"]) - 1))


@cache
def _normal(label: str, size: int) -> Tensor:
    """Standard normal numbers of a label, (size,), float32."""
    rng = torch.Generator().manual_seed(derive(SEED, "drawn", label, size))
    return torch.randn(size, generator=rng, dtype=torch.float32, device="cpu")
