"""The tiny autoencoder, distilled from the VAE as TAESD is: it reads and writes scaled latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from bench.worlds.shapes.album import save
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.make.generator import encode, latents_of, load_vae
from bench.worlds.shapes.make.vae import SHOWN, psnr
from bench.worlds.shapes.scenes import draw, render

RECIPE = Recipe(steps=2500, rate=2e-3, check_every=250)
BATCH = 32
SCENES = 80_000


def architecture() -> AutoencoderTiny:
    """Untrained: three resolutions, one block at each."""
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 1, 1),
    )


def train(folder: Path, vae_folder: Path, seed: int = 6) -> Iterator[dict[str, Any]]:
    """Train the decoder from the VAE's latents to the pictures behind them; the encoder back."""
    torch.manual_seed(seed)
    model = architecture()
    vae = load_vae(vae_folder)
    scenes, tune = draw("train", SCENES), draw("tune", 512)
    latents = latents_of(vae, scenes, vae_folder.parent)
    held, held_x = encode(vae, tune), render(tune)

    def loss(tiny: Any, step: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(SCENES, (BATCH,), generator=rng)
        z, x = latents[rows], render(scenes[rows])
        y = tiny.decode(z).sample
        return (
            5 * (y - x).pow(2).mean()
            + (y - x).abs().mean()
            + 0.1 * (tiny.encode(x).latents - z).pow(2).mean()
        )

    @torch.no_grad()
    def check(tiny: Any, step: int) -> dict[str, float]:
        y = tiny.decode(held).sample
        save(torch.cat([held_x[:SHOWN], y[:SHOWN]]), folder / f"samples-{step}.png", SHOWN)
        score = psnr(held_x, y).mean().item()
        return {"score": score, "psnr_db": score}

    yield from fit(model, loss, check, RECIPE, folder, seed)
    keep(folder, model.save_pretrained)
