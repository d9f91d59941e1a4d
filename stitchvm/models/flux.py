"""FLUX.1 as a Backbone, and anything else of the same diffusers classes.

u(z_t, t | c) = unpack(FluxTransformer2DModel(pack(z_t), t, text(c), guidance))
pack: each 2 x 2 of latent pixels is one token, row by row.      Black Forest Labs, 2024, FLUX.1
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from stitchvm.models.folder import check_folder, load_network, load_texts
from stitchvm.models.pipeline import PipelineBackbone, Stream
from stitchvm.models.texts import Text, Texts
from stitchvm.models.truncated import load_transformer

T5_TOKENS = 512  # max_sequence_length of FluxPipeline
SIDE = 128  # default_sample_size of FluxPipeline: 1024 px
PACK = 2  # latent pixels along a token's side

ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}


class FluxTexts(Texts):
    """Prompts through CLIP, pooled, and T5, token by token.

    Args:
        pipeline: A FluxPipeline; its transformer and VAE may be None.
        length: T5 tokens.
        null: Stored embedding of the null prompt, (L, D) and (P,).
    """

    def __init__(
        self, pipeline: FluxPipeline | None, length: int = T5_TOKENS, null: Text | None = None
    ) -> None:
        super().__init__(pipeline, length, null)

    def encode(self, prompt: str, device: torch.device) -> Text:
        """The pipeline's embedding of one prompt, (1, L, D) and (1, P)."""
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompt, prompt, device=device, max_sequence_length=self.length
        )
        return Text(tokens, pooled)


class FluxBackbone(PipelineBackbone):
    """FLUX.1: blocks that keep image and text apart, then blocks that join them.

    Args:
        transformer: A FluxTransformer2DModel.
        vae: Its VAE.
        texts: Its prompts.
        latent: Shape of one latent before packing, (C, H, W); 128 x 128 (1024 px) when None.
        decoder: Decodes instead of the VAE.
        guidance: The distilled guidance FLUX.1-dev is conditioned on, which changes its features
            too; None for a transformer without (FLUX.1-schnell).

    Raises:
        ValueError: if the latents do not fit the transformer or the VAE, or guidance is missing
            or has no place.
    """

    stacks: ClassVar = {
        "transformer_blocks": "num_layers",
        "single_transformer_blocks": "num_single_layers",
    }
    transformer: FluxTransformer2DModel

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        texts: Texts,
        *,
        guidance: float | None,
        latent: tuple[int, ...] | None = None,
        decoder: AutoencoderKL | AutoencoderTiny | None = None,
    ) -> None:
        channels, rest = divmod(transformer.config.in_channels, PACK**2)
        latent = latent or (channels, SIDE, SIDE)
        fit = [n % PACK == 0 and n > 0 for n in latent[1:]]
        if rest or latent[0] != channels or fit != [True, True]:
            raise ValueError(
                f"expected latents of {channels} channels with even sides, for a transformer of "
                f"{transformer.config.in_channels} channels, got {latent}"
            )
        if transformer.config.guidance_embeds != (guidance is not None):
            wanted = "a number" if transformer.config.guidance_embeds else "None"
            raise ValueError(f"expected guidance of {wanted} for this transformer, got {guidance}")
        super().__init__(transformer, vae, texts, latent=latent, decoder=decoder)
        self.guidance = guidance

    @property
    def grid(self) -> tuple[int, int]:
        """The token grid, (H, W)."""
        return self.latent[1] // PACK, self.latent[2] // PACK

    def whole(self, z_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """The transformer's own forward pass, (B, *latent)."""
        text_ids, image_ids = self._ids(text)
        tokens = self.transformer(
            hidden_states=pack(z_t),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=_time(z_t, t),
            guidance=self._guidance(z_t),
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return unpack(tokens, self.grid)

    def enter(self, z_t: Tensor, t: Tensor, text: Text) -> Stream:
        """The tokens before the first block."""
        model, guidance = self.transformer, self._guidance(z_t)
        h = model.x_embedder(pack(z_t))
        times = [_time(z_t, t)] if guidance is None else [_time(z_t, t), guidance]
        # In the working dtype, as the transformer does: elsewhere the embedding would differ.
        temb = model.time_text_embed(*(x.to(h.dtype) * 1000 for x in times), text.pooled)
        rotary = model.pos_embed(torch.cat(self._ids(text)))
        return Stream(h, model.context_embedder(text.tokens), (temb, rotary))

    def leave(self, stream: Stream) -> Tensor:
        """The velocity after the last block, (B, *latent)."""
        h = self.transformer.norm_out(stream.h, stream.conditioning[0])
        return unpack(self.transformer.proj_out(h), self.grid)

    def with_decoder(self, decoder: AutoencoderTiny) -> Self:
        """The same generator, sharing all weights, that decodes with another decoder."""
        return type(self)(
            self.transformer,
            self.vae,
            self.texts,
            guidance=self.guidance,
            latent=self.latent,
            decoder=decoder,
        )

    def _guidance(self, z_t: Tensor) -> Tensor | None:
        if self.guidance is None:
            return None
        return torch.full((len(z_t),), self.guidance, device=z_t.device, dtype=torch.float32)

    def _ids(self, text: Text) -> tuple[Tensor, Tensor]:
        """Positions of text tokens (L, 3), all zero, and image tokens (H W, 3): 0, row, column."""
        device, (rows, columns) = text.tokens.device, self.grid
        image = torch.cartesian_prod(
            torch.zeros(1, device=device),
            torch.arange(rows, device=device, dtype=torch.float32),
            torch.arange(columns, device=device, dtype=torch.float32),
        )
        return image.new_zeros(text.tokens.shape[1], 3), image


def pack(z: Tensor) -> Tensor:
    """Tokens (B, H W / 4, 4 C) of latents (B, C, H, W)."""
    return functional.pixel_unshuffle(z, PACK).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents (B, C, H, W) of tokens (B, H W / 4, 4 C)."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), PACK)


def _time(z_t: Tensor, t: Tensor) -> Tensor:
    """Times (B,) as the pipeline passes them: rounded to the working dtype as timesteps."""
    return (1000 * t.float()).expand(len(z_t)).to(z_t.dtype) / 1000


def load(  # noqa: PLR0913 - one for each thing a folder leaves open
    folder: str | Path,
    *,
    guidance: float | None,
    transformer: str = "transformer",
    blocks: int | None = None,
    latent: tuple[int, ...] | None = None,
    text_length: int = T5_TOKENS,
    texts: Texts | None = None,
    null: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FluxBackbone:
    """A FluxBackbone from a local folder laid out as a FluxPipeline.

    Text encoders may be missing where the null prompt is stored.  For a saved StitchVM, its i
    blocks and its null prompt are enough:

        load(folder, guidance=guidance, blocks=i, null=saved / "null.safetensors")

    Args:
        folder: The pipeline's folder.
        guidance: The distilled guidance; None for a transformer without.
        transformer: Subfolder of the transformer: another generator on the same latents and text.
        blocks: The first ones to read, for a trunk without a velocity; all when None.
        latent: Shape of one latent, (C, H, W); 128 x 128 when None.
        text_length: T5 tokens.
        texts: Prompts, in place of the folder's text encoders.
        null: File of the null prompt's embedding, read in place of the text encoders; the folder's
            own encoders and null prompt when None.
        device: Where to.
        dtype: Of all weights, whatever the files have.

    Raises:
        FileNotFoundError: if the folder or a part of it is missing; no hub is asked.
        ValueError: if there are not so many blocks, or parts do not fit; see also
            `load_transformer` and `read_null`.
    """
    root = check_folder(folder, (f"{transformer}/config.json", "vae/config.json"))
    if texts is None:
        texts = read_texts(root, length=text_length, null=null, dtype=dtype)
    model = load_transformer(
        FluxTransformer2DModel, root / transformer, dtype, FluxBackbone.stacks, blocks
    )
    vae = load_network(AutoencoderKL, root / "vae", dtype)
    return FluxBackbone(model, vae, texts, guidance=guidance, latent=latent).to(device)


def read_texts(
    folder: str | Path,
    *,
    length: int = T5_TOKENS,
    null: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> FluxTexts:
    """The prompts of a pipeline's folder; see `load`.

    Raises:
        FileNotFoundError: if a text encoder or tokenizer is missing, and the null prompt is not
            stored in their place.
        ValueError: see `read_null`.
    """
    parts, stored = load_texts(Path(folder), ENCODERS, dtype, null=null)
    if parts is None:
        return FluxTexts(None, length, stored)
    pipeline = FluxPipeline(transformer=None, scheduler=None, vae=None, **parts)
    return FluxTexts(pipeline, length, stored)
