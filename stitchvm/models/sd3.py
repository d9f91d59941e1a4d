"""Stable Diffusion 3 and 3.5 as a Backbone, and anything else of the same diffusers classes.

u(z_t, t | c) = SD3Transformer2DModel(z_t, 1000 t, text(c)).   Esser et al., 2024, arXiv:2403.03206
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from stitchvm.models.folder import check_folder, load_network, load_texts
from stitchvm.models.pipeline import PipelineBackbone, Stream
from stitchvm.models.texts import Text, Texts
from stitchvm.models.truncated import load_transformer

T5_TOKENS = 256  # max_sequence_length of StableDiffusion3Pipeline

ENCODERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}


class Sd3Texts(Texts):
    """Prompts through two CLIPs and, where there is one, T5.

    Without T5 the pipeline puts `length` zero tokens in its place; length 0 leaves them out.

    Args:
        pipeline: A StableDiffusion3Pipeline; needs its transformer where it has no T5.
        length: T5 tokens.
        null: Stored embedding of the null prompt, (L, D) and (P,).
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline | None,
        length: int = T5_TOKENS,
        null: Text | None = None,
    ) -> None:
        super().__init__(pipeline, length, null)

    def encode(self, prompt: str, device: torch.device) -> Text:
        """The pipeline's embedding of one prompt, (1, L, D) and (1, P)."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompt,
            prompt,
            prompt,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )
        return Text(tokens, pooled)


class Sd3Backbone(PipelineBackbone):
    """SD 3 / 3.5: joint blocks of image and text tokens.

    Args:
        transformer: An SD3Transformer2DModel.
        vae: Its VAE.
        texts: Its prompts.
        latent: Shape of one latent, (C, H, W); the transformer's own sample size when None.
        decoder: Decodes instead of the VAE.

    Raises:
        ValueError: if the latents do not fit the transformer or the VAE.
    """

    stacks: ClassVar = {"transformer_blocks": "num_layers"}
    transformer: SD3Transformer2DModel

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        texts: Texts,
        *,
        latent: tuple[int, ...] | None = None,
        decoder: AutoencoderKL | AutoencoderTiny | None = None,
    ) -> None:
        config = transformer.config
        latent = latent or (config.in_channels, config.sample_size, config.sample_size)
        limit = config.pos_embed_max_size * config.patch_size
        channels, *sides = latent
        fit = [n % config.patch_size == 0 and 0 < n <= limit for n in sides]
        if channels != config.in_channels or fit != [True, True]:
            raise ValueError(
                f"expected latents of {config.in_channels} channels, with sides divisible by "
                f"{config.patch_size} and at most {limit}, got {latent}"
            )
        super().__init__(transformer, vae, texts, latent=latent, decoder=decoder)

    @property
    def grid(self) -> tuple[int, int]:
        """The token grid, (H, W): one token a patch."""
        patch = self.transformer.config.patch_size
        return self.latent[1] // patch, self.latent[2] // patch

    def whole(self, z_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """The transformer's own forward pass, (B, *latent)."""
        return self.transformer(
            hidden_states=z_t,
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=_timestep(z_t, t),
            return_dict=False,
        )[0]

    def enter(self, z_t: Tensor, t: Tensor, text: Text) -> Stream:
        """The tokens before the first block."""
        model = self.transformer
        h = model.pos_embed(z_t).contiguous()
        temb = model.time_text_embed(_timestep(z_t, t), text.pooled)
        return Stream(h, model.context_embedder(text.tokens), (temb,))

    def leave(self, stream: Stream) -> Tensor:
        """The velocity after the last block, (B, *latent)."""
        model, patch = self.transformer, self.transformer.config.patch_size
        h = model.proj_out(model.norm_out(stream.h, stream.conditioning[0]))
        # A token holds its patch as (row, column, channel).
        h = h.unflatten(2, (patch * patch, -1)).permute(0, 3, 2, 1).flatten(1, 2)
        return functional.pixel_shuffle(h.unflatten(2, self.grid), patch)

    def with_decoder(self, decoder: AutoencoderTiny) -> Self:
        """The same generator, sharing all weights, that decodes with another decoder."""
        return type(self)(
            self.transformer, self.vae, self.texts, latent=self.latent, decoder=decoder
        )


def _timestep(z_t: Tensor, t: Tensor) -> Tensor:
    """The timesteps of diffusers, (B,), float32 as in the pipeline: in bfloat16 many are equal."""
    return (1000 * t.float()).expand(len(z_t))


def load(  # noqa: PLR0913 - one for each thing a folder leaves open
    folder: str | Path,
    *,
    transformer: str = "transformer",
    blocks: int | None = None,
    vae: str | Path | None = None,
    latent: tuple[int, ...] | None = None,
    text_length: int = T5_TOKENS,
    texts: Texts | None = None,
    null: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Sd3Backbone:
    """An Sd3Backbone from a local folder laid out as a StableDiffusion3Pipeline.

    Text encoders may be missing altogether where the null prompt is stored; T5 may be missing.
    For a saved StitchVM, its i blocks and its null prompt are enough:

        load(folder, blocks=i, null=saved / "null.safetensors")

    Args:
        folder: The pipeline's folder.
        transformer: Subfolder of the transformer: another generator on the same latents and text.
        blocks: The first ones to read, for a trunk without a velocity; all when None.
        vae: Folder of the VAE, where it is another pipeline's; its own `vae` when None.
        latent: Shape of one latent, (C, H, W); the transformer's own sample size when None.
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
    own = ("vae/config.json",) if vae is None else ()
    root = check_folder(folder, (f"{transformer}/config.json", *own))
    coder = root / "vae" if vae is None else check_folder(vae, ("config.json",))
    if texts is None:
        texts = read_texts(root, length=text_length, null=null, dtype=dtype)
    model = load_transformer(
        SD3Transformer2DModel, root / transformer, dtype, Sd3Backbone.stacks, blocks
    )
    if texts.pipeline is not None:  # whoever asks for the pipeline gets it whole
        texts.pipeline.register_modules(transformer=model)
    autoencoder = load_network(AutoencoderKL, coder, dtype)
    return Sd3Backbone(model, autoencoder, texts, latent=latent).to(device)


def read_texts(
    folder: str | Path,
    *,
    length: int = T5_TOKENS,
    null: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sd3Texts:
    """The prompts of a pipeline's folder; see `load`.

    Raises:
        FileNotFoundError: if a text encoder or tokenizer is missing, and the null prompt is not
            stored in their place.
        ValueError: see `read_null`.
    """
    root = Path(folder)
    parts, stored = load_texts(root, ENCODERS, dtype, null=null, optional=("text_encoder_3",))
    if parts is None:
        return Sd3Texts(None, length, stored)
    with torch.device("meta"):  # encode_prompt asks its configuration for a width, and no more
        config = SD3Transformer2DModel.load_config(root / "transformer", local_files_only=True)
        asked = SD3Transformer2DModel.from_config(config)
    pipeline = StableDiffusion3Pipeline(transformer=asked, scheduler=None, vae=None, **parts)
    return Sd3Texts(pipeline, length, stored)
