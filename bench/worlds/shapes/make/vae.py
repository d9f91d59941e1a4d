"""The autoencoder: 32 x 32 pictures to latents (4, 8, 8), as SD 3.5's 12 numbers to one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bench.worlds.shapes.album import save
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.scenes import Scenes, draw, render

RECIPE = Recipe(steps=2800, rate=2e-3, check_every=250, bf16=True)
BATCH = 32
SHOWN = 12  # pictures above their reconstructions, at each check
KL = 2e-4  # weight of the divergence per latent number


def architecture() -> AutoencoderKL:
    """Untrained."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in [-1, 1], in dB, (B,)."""
    return 10 * (4 / (x - y).pow(2).flatten(1).mean(1)).log10()


def batch(scenes: Scenes, size: int, rng: torch.Generator) -> Tensor:
    """Pictures of random scenes."""
    return render(scenes[torch.randint(len(scenes), (size,), generator=rng)])


def train(folder: Path, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Train; ends with latents of mean 0 and variance 1 by shift and scaling factor."""
    torch.manual_seed(seed)
    model = architecture()
    scenes, held = draw("train", 60_000), render(draw("tune", 512))

    def loss(vae: Any, step: int, rng: torch.Generator) -> Tensor:
        x = batch(scenes, BATCH, rng)
        code = vae.encode(x).latent_dist
        eps = torch.randn(code.mean.shape, generator=rng)
        y = vae.decode(code.mean + code.std * eps).sample.float()
        divergence = code.kl().float().mean() / code.mean[0].numel()
        return 5 * (y - x).pow(2).mean() + (y - x).abs().mean() + KL * divergence

    @torch.no_grad()
    def check(vae: Any, step: int) -> dict[str, float]:
        y = torch.cat([vae.decode(vae.encode(x).latent_dist.mean).sample for x in held.split(128)])
        save(torch.cat([held[:SHOWN], y[:SHOWN]]), folder / f"samples-{step}.png", SHOWN)
        score = psnr(held, y).mean().item()
        return {"score": score, "psnr_db": score}

    yield from fit(model, loss, check, RECIPE, folder, seed)
    with torch.no_grad():
        firsts = range(0, 8192, 256)
        codes = [model.encode(render(scenes[slice(i, i + 256)])).latent_dist for i in firsts]
        z = torch.cat([code.mean for code in codes])
    model.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
    keep(folder, model.save_pretrained)
