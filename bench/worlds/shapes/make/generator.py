"""The generators: SD 3's transformer with two CLIP text encoders of its own, trained together.

loss = E |u(z_t, t | c) - (eps - z_0)|^2,   t logit-normal, c dropped now and then      (Eq. 1)

While it learns, a linear head on a middle block must also tell which shape and colour lie at each
token of the clean picture.  That is representation alignment (REPA: Yu et al., 2025,
arXiv:2410.06940) with the scene itself in place of a pretrained network's features: it stands for
the scale of training that is out of reach here, and no reward has a part in it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModelWithProjection

from bench.worlds.shapes.album import save
from bench.worlds.shapes.make.clip import Told
from bench.worlds.shapes.make.fit import Recipe, fit, keep
from bench.worlds.shapes.make.reader import TEXT, encoder
from bench.worlds.shapes.make.words import tokenizer
from bench.worlds.shapes.scenes import COLOURS, PIXELS, SHAPES, Scenes, draw, render
from stitchvm.align.guide import CFG
from stitchvm.backbone import NULL, Prompts
from stitchvm.identity import identity
from stitchvm.path import noise, time_grid
from stitchvm.sample import Ode, sample

SCENES = 80_000
BATCH, HELD = 64, 1024
DROP = 0.1  # share of captions replaced by the null text
SHOWN, GUIDANCE, STEPS = 36, 3.0, 16  # of the samples drawn at each check
PARTS = ("transformer", "text_encoder", "text_encoder_2")
MIXED, EARLY = 3.0, 0.6  # weight of scenes of several kinds, in that first part of the steps
ALIGN = 0.5  # weight of the alignment at first; it falls to 0
REACH = 2.0  # pixels round an object that still count as it
AGAIN = 100  # added to the seed of a generator that is trained further


@dataclass(frozen=True)
class Size:
    """Sizes of a generator's transformer, blocks and heads of 32, and its training steps."""

    blocks: int
    heads: int
    steps: int


LARGE, SMALL = Size(blocks=8, heads=4, steps=4500), Size(blocks=6, heads=3, steps=1500)


class Generator(nn.Module):
    """A transformer and the two text encoders that feed it.

    Args:
        size: Of the transformer.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=size.blocks,
            attention_head_dim=32,
            num_attention_heads=size.heads,
            joint_attention_dim=2 * TEXT,
            caption_projection_dim=32 * size.heads,
            pooled_projection_dim=2 * TEXT,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
        self.text_encoder, self.text_encoder_2 = encoder("quick_gelu"), encoder("gelu")

    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the transformer is told: tokens (B, L, 2 TEXT) and pooled (B, 2 TEXT)."""
        out = [
            encoder(ids, output_hidden_states=True)
            for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        return (
            torch.cat([o.hidden_states[-2] for o in out], -1),
            torch.cat([o.text_embeds for o in out], -1),
        )

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The velocity, (B, 4, 8, 8)."""
        tokens, pooled = self.text(ids)
        return self.transformer(z_t, tokens, pooled, 1000 * t).sample


class Aligned(nn.Module):
    """A generator whose middle block must tell what lies where.

    Args:
        generator: Which.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        config = generator.transformer.config
        self.tap = config.num_layers // 2
        width = config.num_attention_heads * config.attention_head_dim
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 + len(SHAPES) + len(COLOURS))
        )

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The velocity, and logits of shapes (B, 1 + 5, 64) and colours (B, 1 + 6, 64)."""
        met: list[Tensor] = []
        block = self.generator.transformer.transformer_blocks[self.tap - 1]
        handle = block.register_forward_hook(lambda _block, _args, out: met.append(out[1]))
        try:
            u = self.generator(z_t, t, ids)
        finally:
            handle.remove()
        logits = self.head(met[0]).transpose(1, 2)
        shapes, colours = logits.split([1 + len(SHAPES), 1 + len(COLOURS)], 1)
        return u, shapes, colours


def layout(scenes: Scenes, side: int) -> tuple[Tensor, Tensor]:
    """Shape and colour at each token, 0 for none, else 1 + its index, (B, side^2) each."""
    axis = (torch.arange(side) + 0.5) * PIXELS / side - PIXELS / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centres = scenes.x[..., None, None] - x, scenes.y[..., None, None] - y
    beyond = torch.hypot(*centres).flatten(2) - scenes.radius[..., None] - REACH
    beyond = beyond.masked_fill(~scenes.present[..., None], torch.inf)
    nearest, which = beyond.min(1)
    shape, colour = (
        torch.where(nearest < 0, 1 + of.gather(1, which), 0)
        for of in (scenes.shape, scenes.colour)
    )
    return shape, colour


def load_vae(folder: Path) -> AutoencoderKL:
    """The finished autoencoder, in float32 also where it was exported as float16."""
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def encode(vae: AutoencoderKL, scenes: Scenes) -> Tensor:
    """Latents of scenes, shifted and scaled."""
    parts = []
    for first in range(0, len(scenes), 256):
        z = vae.encode(render(scenes[slice(first, first + 256)])).latent_dist.mean
        parts.append((z - vae.config.shift_factor) * vae.config.scaling_factor)
    return torch.cat(parts)


def latents_of(vae: AutoencoderKL, scenes: Scenes, folder: Path) -> Tensor:
    """Latents of training scenes, kept in a file: encoding takes minutes, stages begin with it."""
    path = folder / f"latents-{len(scenes)}-{identity(vae.state_dict())}.pt"
    if not path.is_file():
        new = path.with_suffix(f".{os.getpid()}.new")
        torch.save(encode(vae, scenes), new)
        os.replace(new, path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Pictures of shifted and scaled latents."""
    return vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample


def _load(model: Generator, folder: Path) -> None:
    """Set the weights of all parts."""
    for name in PARTS:
        part: Any = getattr(model, name)
        part.load_state_dict(type(part).from_pretrained(folder / name).state_dict())


def _samples(model: nn.Module, ids: Tensor, null: Tensor, seed: int) -> Tensor:
    """Latents sampled for captions, to look at while training goes on, (B, 4, 8, 8)."""
    z = torch.randn(len(ids), 4, 8, 8, generator=torch.Generator().manual_seed(seed))

    def velocity(z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        told = torch.stack([null if text == NULL else ids[int(text)] for text in c])
        return model(z_t, t.to(z_t).expand(len(z_t)), told)

    rows = [str(row) for row in range(len(ids))]
    return sample(Ode(CFG(velocity, GUIDANCE)), z, time_grid(STEPS), rows)


def _mixed(scenes: Scenes) -> Tensor:
    """Which scenes have objects of more than one kind, so that words must find theirs, (B,)."""
    kind = scenes.colour * len(SHAPES) + scenes.shape
    return ((kind != kind[:, :1]) & scenes.present).any(1)


class _Held:
    """What a generator is examined on: scenes of the tune split, each noised to a time of its own.

    Args:
        vae: Encodes them, and decodes what is sampled for their captions.
        null: Token ids of the null prompt.
    """

    def __init__(self, vae: AutoencoderKL, null: Tensor) -> None:
        told, rng = Told(draw("tune", HELD)), torch.Generator().manual_seed(0)
        self.vae, self.null = vae, null
        self.shapes, _ = layout(told.scenes, side=8)
        self.ids = told.tokens([told.caption(row, rng) for row in range(HELD)])
        z_0, self.t = encode(vae, told.scenes), (torch.arange(HELD) + 0.5) / HELD
        eps = torch.randn(z_0.shape, generator=rng)
        self.z_t, self.u = noise(z_0, self.t, eps), eps - z_0

    def figures(self, model: Aligned) -> dict[str, float]:
        """Velocity error, and the share of objects' tokens whose shape the head tells."""
        errors, right = [], []
        for r in range(8):
            u, told, _ = model(self.z_t[r::8], self.t[r::8], self.ids[r::8])
            errors.append((u - self.u[r::8]).pow(2).mean())
            there = self.shapes[r::8]
            right.append((told.argmax(1) == there)[there > 0])
        error = torch.stack(errors).mean().item()
        read = torch.cat(right).float().mean().item()
        return {"score": -error, "velocity_mse": error, "shapes_read": read}

    def pictures(self, model: Generator, seed: int) -> Tensor:
        """Samples of the first captions, (SHOWN, 3, 32, 32)."""
        return decode(self.vae, _samples(model, self.ids[:SHOWN], self.null, seed))


def train(
    folder: Path, vae_folder: Path, reader: Path | None, size: Size, seed: int
) -> Iterator[dict[str, Any]]:
    """Train one generator, from nothing or further from the weights in `<folder>/start`.

    From nothing, its first text encoder begins as one that was pretrained, as SD 3's do.

    Args:
        folder: Of the stage.
        vae_folder: The finished autoencoder.
        reader: The pretrained text encoder; None to train further.
        size: Of the transformer.
        seed: Of weights, batches and noise.
    """
    torch.manual_seed(seed)
    model = Generator(size)
    if reader is None:
        seed += AGAIN
        _load(model, folder / "start")
    else:
        read = CLIPTextModelWithProjection.from_pretrained(reader, local_files_only=True)
        model.text_encoder.load_state_dict(read.state_dict())
    vae = load_vae(vae_folder)
    data = Told(draw("train", SCENES))
    latents = latents_of(vae, data.scenes, vae_folder.parent)
    weight = torch.where(_mixed(data.scenes), MIXED, 1.0)
    (null,) = tokenizer()([""], padding="max_length")["input_ids"]
    null = torch.tensor(null)
    shapes, colours = layout(data.scenes, side=8)
    held = _Held(vae, null)

    def loss(model: Any, step: int, rng: torch.Generator) -> Tensor:
        early = step < EARLY * size.steps
        odds = weight if early else torch.ones_like(weight)
        rows = torch.multinomial(odds, BATCH, replacement=True, generator=rng)
        ids = data.tokens([data.caption(row, rng) for row in rows.tolist()])
        ids = torch.where(torch.rand(BATCH, 1, generator=rng) < DROP, null, ids)
        z_0 = latents[rows]
        t, eps = torch.randn(BATCH, generator=rng).sigmoid(), torch.randn(z_0.shape, generator=rng)
        u, *logits = model(noise(z_0, t, eps), t, ids)
        told = sum(map(cross_entropy, logits, (shapes[rows], colours[rows])))
        return (u - (eps - z_0)).pow(2).mean() + ALIGN * (1 - step / size.steps) * told

    @torch.no_grad()
    def check(model: Any, step: int) -> dict[str, float]:
        save(held.pictures(model.generator, seed), folder / f"samples-{step}.png")
        return held.figures(model)

    recipe = Recipe(
        size.steps,
        rate=1.2e-3,
        warmup=200,
        average=250,
        check_every=500,
        bf16=True,
        muon="transformer_blocks",
    )
    yield from fit(Aligned(model), loss, check, recipe, folder, seed)

    def save_all(to: Path) -> None:
        for name in PARTS:
            part: Any = getattr(model, name)
            part.save_pretrained(to / name)

    keep(folder, save_all)
