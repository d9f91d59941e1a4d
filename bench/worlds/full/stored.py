"""The parts of a world of full size from published weights; see `published` for what and `files`.

    clip                 100 <e, text>     ViT-L/14 at 336 px
    dfn                      <e, text>     ViT-H/14 at 378 px, open_clip's layout
    hps-v2.0, hps-v2.1       <e, text>     ViT-H/14 at 224 px, open_clip's layout
    aesthetic                w . e + b     ViT-L/14 at 224 px, whatever the prompt
    pick             scale * <e, text>     ViT-H/14 at 224 px, the model's own scale, about 100

The paper does not say which HPSv2 it used, so nothing here is called `hps`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from transformers import AutoTokenizer

from bench import cache, published
from bench.cell import digest
from bench.worlds.full.drawn import CLIP_PIXELS, config
from bench.worlds.full.files import Files
from bench.worlds.full.parts import Parts
from bench.worlds.quiet import quietly
from stitchvm.backbone import Prompts
from stitchvm.models import aesthetic, clip, flux, open_clip, sd3
from stitchvm.models.clip import ClipReward, ClipTower, Pixels
from stitchvm.models.folder import load_network
from stitchvm.models.pipeline import PipelineBackbone
from stitchvm.models.remembered import RememberedTexts

SCALES = {"clip": 100.0, "dfn": 1.0, "hps-v2.0": 1.0, "hps-v2.1": 1.0}
ARCHITECTURES = {
    "dfn": open_clip.VIT_H_14_QUICKGELU,
    "hps-v2.0": open_clip.VIT_H_14,
    "hps-v2.1": open_clip.VIT_H_14,
}
SCORED = torch.float32  # rewards, whatever the generator computes in


class StoredParts(Parts):
    """Published weights.

    Args:
        model: Which generator.
        files: Where files are.
        side: Of pictures, in pixels.
        dtype: Of the generator's weights; rewards are float32.
        device: Where to.
        expected: Prompts to encode when encoders are read.

    Raises:
        FileNotFoundError: if files are missing and cannot be had.
        ValueError: if access to files is refused, or one is not what it should be.
    """

    rewards = tuple(published.REWARDS)
    trained = True

    def __init__(
        self,
        model: str,
        files: Files,
        *,
        side: int,
        dtype: torch.dtype,
        device: str,
        expected: Callable[[], Prompts],
    ) -> None:
        self.model, self.files, self.side = model, files, side
        self.dtype, self.device, self.expected = dtype, device, expected
        self.generator = files.identity(published.GENERATORS[model])
        self.known = [self.generator, files.identity(published.DECODERS[model])]

    def identity(self, name: str) -> str:
        """Which files the reward of that name is made of."""
        return digest([self.files.identity(one) for one in published.REWARDS[name]])

    def backbone(self, device: str) -> PipelineBackbone:
        """The generator on a device, whose prompts are encoded once for all processes."""
        source = published.GENERATORS[self.model]
        root, shapes = self.files.folder(source), config(self.model)
        latent = _latent(root, self.side)
        length = {"sd3": sd3.T5_TOKENS, "flux": flux.T5_TOKENS}[shapes["kind"]]
        read = {"sd3": sd3.read_texts, "flux": flux.read_texts}[shapes["kind"]]
        texts = RememberedTexts(
            lambda: read(root, length=length, dtype=self.dtype),
            cache.root() / "texts",
            f"{self.generator} {self.dtype}",
            length,
            self.expected,
            None if device == self.device else torch.device(device),
        )
        given: dict[str, Any] = {"device": device, "dtype": self.dtype}
        with quietly():
            if shapes["kind"] == "flux":
                return flux.load(
                    root, guidance=shapes["guidance"], latent=latent, texts=texts, **given
                )
            return sd3.load(root, latent=latent, texts=texts, **given)

    def decoder(self) -> AutoencoderTiny:
        """TAESD3 or TAEF1."""
        folder = self.files.folder(published.DECODERS[self.model])
        with quietly():
            decoder = load_network(AutoencoderTiny, folder, self.dtype)
        return decoder.to(self.device)

    def reward(self, name: str) -> ClipTower:
        """The reward of that name, float32."""
        first, *_ = folders = [self.files.folder(one) for one in published.REWARDS[name]]
        given: dict[str, Any] = {"device": self.device, "dtype": SCORED}
        with quietly():
            if name == "clip":
                return clip.load(first, scale=SCALES[name], pixels=_pixels(first), **given)
            if name == "aesthetic":
                given["pixels"] = _pixels(folders[1])
                return aesthetic.load(folders[1], first / published.AESTHETIC_FILE, **given)
            if name == "pick":
                model = clip.load_model(first, **given)
                scale = float(model.logit_scale.detach().exp())
            else:
                (file,) = published.REWARDS[name][0].files
                model, scale = open_clip.load(first / file, ARCHITECTURES[name]), SCALES[name]
            words = AutoTokenizer.from_pretrained(folders[1], local_files_only=True)
        return ClipReward(model.to(self.device, SCORED), words, CLIP_PIXELS, scale)


def _pixels(folder: Path) -> Pixels:
    """The preprocessing of a folder, of pictures as PIL has them."""
    return replace(clip.load_pixels(folder), rounded=True)


def _latent(root: Path, side: int) -> tuple[int, int, int]:
    """Shape of the latents of pictures, as the VAE's configuration says."""
    vae = json.loads((root / "vae" / "config.json").read_text())
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return vae["latent_channels"], side // scale, side // scale
