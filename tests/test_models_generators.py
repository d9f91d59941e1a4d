"""SD 3.5 and FLUX adapters against diffusers itself, on tiny random weights in float64."""

import json
import re
import shutil
import socket
from collections import Counter
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from bench.contract import backbone as contract
from bench.contract.checking import ROWS, check
from bench.worlds.gaussian import GaussianWorld
from stitchvm.backbone import NULL
from stitchvm.identity import identity
from stitchvm.models import flux, sd3
from stitchvm.models.flux import FluxBackbone, FluxTexts
from stitchvm.models.sd3 import Sd3Backbone, Sd3Texts
from stitchvm.models.texts import load_null
from stitchvm.path import noise, time_grid
from stitchvm.sample import Ode, sample
from stitchvm.stitch import LinearFit, Stitched, StitchLayer
from stitchvm.value import value_and_gradient

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "red", "blue", "circle", "square"]
PROMPTS = ["a red circle", NULL]
LENGTH, WIDTH = 18, 24  # of the tokenizers' output, of the text's embedding
LATENT = (4, 8, 8)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def tokenizer():
    words = Tokenizer(WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=LENGTH,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def clip(kind, width):
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    return kind(config).double().eval()


def t5():
    config = T5Config(
        vocab_size=len(WORDS), d_model=WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).double().eval()


def vae():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
    ).double()


def tiny_decoder():
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).double()


def sd3_pipeline(third=None, **settings):
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=12,
        **settings,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.double(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=clip(CLIPTextModelWithProjection, 8),
        tokenizer=tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 12),
        tokenizer_2=tokenizer(),
        text_encoder_3=third,
        tokenizer_3=third and tokenizer(),
    )


def flux_pipeline(*, guidance):
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=8,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        transformer=transformer.double(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=clip(CLIPTextModel, 8),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
    )


def plain():
    pipe = sd3_pipeline(patch_size=1, num_layers=3)
    return Sd3Backbone(pipe.transformer, pipe.vae, Sd3Texts(pipe, 0))


def medium():
    dual = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
    pipe = sd3_pipeline(t5(), patch_size=2, num_layers=4, **dual)
    return Sd3Backbone(pipe.transformer, pipe.vae, Sd3Texts(pipe, 6), latent=(4, 8, 12))


def dev():
    pipe = flux_pipeline(guidance=True)
    texts = FluxTexts(pipe, 7)
    return FluxBackbone(pipe.transformer, pipe.vae, texts, guidance=3.5, latent=(4, 8, 12))


def schnell():
    pipe = flux_pipeline(guidance=False)
    texts = FluxTexts(pipe, 7)
    return FluxBackbone(pipe.transformer, pipe.vae, texts, guidance=None, latent=LATENT)


BACKBONES = {"sd3": plain, "sd35_medium": medium, "flux_dev": dev, "flux_schnell": schnell}


@cache
def build(name):
    torch.manual_seed(0)
    return BACKBONES[name]()


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return build(request.param)


def latents(backbone, rows=2, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *backbone.latent, generator=rng, dtype=dtype)


TIMES = torch.tensor([0.3, 0.8], dtype=torch.float64)


def test_backbones_keep_the_contract(backbone):
    z_0, eps = (latents(backbone, ROWS, seed) for seed in (0, 1))
    t = torch.linspace(0.2, 0.9, ROWS, dtype=torch.float64)
    c = [PROMPTS[k % 2] for k in range(ROWS)]
    case = contract.Case(backbone, z_0, noise(z_0, t, eps), t, c)
    # Queries are normalised in float32: differences see that, a hook's gradient (below) does not.
    checks = tuple(one for one in contract.CHECKS if one is not contract.gradient)
    assert [why for _, why in check(case, checks) if why is not None] == []


@contextmanager
def calls(backbone):
    """Calls of every block, and the image tokens each returned."""
    seen, tokens = Counter(), {}
    handles = []
    for k, block in enumerate(backbone.blocks, 1):
        # Counted on the way in: recomputation stops before a block's end.
        handles += [
            block.register_forward_pre_hook(lambda *_, k=k: seen.update([k])),
            block.register_forward_hook(lambda *call, k=k: tokens.update({k: call[-1][1]})),
        ]
    try:
        yield seen, tokens
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("c", [None, PROMPTS], ids=["null", "prompts"])
def test_trunk_runs_i_blocks_and_resumes_to_the_velocity(backbone, c):
    z_t = latents(backbone)
    with torch.no_grad():
        u = backbone.velocity(z_t, TIMES, c or [NULL, NULL])
        for i in range(1, backbone.depth + 1):
            with calls(backbone) as (seen, _):
                state = backbone.trunk(z_t, TIMES, i, c)
                assert seen == dict.fromkeys(range(1, i + 1), 1)
                torch.testing.assert_close(backbone.resume(state), u, **EXACT)
                assert seen == dict.fromkeys(range(1, backbone.depth + 1), 1)
    assert u.std() > 0.01
    assert (u[0] - u[1]).abs().max() > 0.01


def test_a_state_advances_through_the_blocks_that_are_left(backbone):
    z_t = latents(backbone)
    with torch.no_grad():
        for k in range(1, backbone.depth + 1):
            expected = backbone.trunk(z_t, TIMES, k, PROMPTS).features
            with calls(backbone) as (seen, _):
                state = backbone.trunk(z_t, TIMES, 1, PROMPTS)
                state = backbone.advance(state, k)
                assert seen == dict.fromkeys(range(1, k + 1), 1)
            assert state.i == k
            torch.testing.assert_close(state.features, expected, **EXACT)
    for k in (0, backbone.depth + 1):
        with pytest.raises(ValueError, match=rf"expected i in 1\.\.{backbone.depth}, got {k}"):
            backbone.advance(backbone.trunk(z_t, TIMES, 1), k)


@pytest.mark.parametrize("c", [None, PROMPTS], ids=["null", "prompts"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trunk_equals_a_hook_on_the_full_model(backbone, c, checkpointing):
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    try:
        for i in range(1, backbone.depth + 1):
            z_t = latents(backbone).requires_grad_()
            with calls(backbone) as (_, tokens):
                backbone.velocity(z_t, TIMES, c or [NULL, NULL])
            rows, columns = backbone.grid
            full = tokens[i].reshape(2, rows, columns, -1).permute(0, 3, 1, 2)
            w = torch.randn(full.shape, dtype=full.dtype)
            (expected,) = torch.autograd.grad((full * w).sum(), z_t)
            features = backbone.trunk(z_t, TIMES, i, c).features
            (gradient,) = torch.autograd.grad((features * w).sum(), z_t)
            torch.testing.assert_close(features, full, **EXACT)
            torch.testing.assert_close(gradient, expected, **EXACT)
            assert gradient.abs().max() > 0
    finally:
        backbone.transformer.disable_gradient_checkpointing()


def test_checkpointing_recomputes_the_blocks_of_trunk_and_resume(backbone):
    backbone.transformer.enable_gradient_checkpointing()
    try:
        z_t = latents(backbone).requires_grad_()
        with calls(backbone) as (seen, _):
            backbone.resume(backbone.trunk(z_t, TIMES, 2)).sum().backward()
    finally:
        backbone.transformer.disable_gradient_checkpointing()
    assert seen == dict.fromkeys(range(1, backbone.depth + 1), 2)


def test_rows_are_independent_and_one_time_serves_all(backbone):
    z_t, t = latents(backbone), torch.tensor(0.4)
    u = backbone.velocity(z_t, t, PROMPTS)
    one = torch.cat([backbone.velocity(z_t[k : k + 1], t, PROMPTS[k : k + 1]) for k in (0, 1)])
    torch.testing.assert_close(u, one, **EXACT)
    same = backbone.velocity(z_t, t.expand(2), PROMPTS)
    torch.testing.assert_close(u, same, **EXACT)
    assert not torch.allclose(u, backbone.velocity(z_t, t, PROMPTS[::-1]))


@pytest.mark.parametrize("name", ["sd3", "sd35_medium"])
def test_velocity_is_the_transformer_as_the_sd3_pipeline_calls_it(name):
    backbone = build(name)
    z_t, pipe = latents(backbone), backbone.texts.pipeline
    tokens, _, pooled, _ = pipe.encode_prompt(
        PROMPTS,
        None,
        None,
        do_classifier_free_guidance=False,
        max_sequence_length=backbone.texts.length,
    )
    with torch.no_grad():
        expected = backbone.transformer(
            hidden_states=z_t,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=(1000 * TIMES).float(),
        ).sample
        u = backbone.velocity(z_t, TIMES, PROMPTS)
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["flux_dev", "flux_schnell"])
def test_velocity_is_the_transformer_as_the_flux_pipeline_calls_it(name):
    backbone = build(name)
    z_t, pipe = latents(backbone), backbone.texts.pipeline
    rows, columns = backbone.latent[1:]
    tokens, pooled, text_ids = pipe.encode_prompt(PROMPTS, max_sequence_length=7)
    ids = FluxPipeline._prepare_latent_image_ids(2, rows // 2, columns // 2, "cpu", z_t.dtype)
    with torch.no_grad():
        packed = backbone.transformer(
            hidden_states=FluxPipeline._pack_latents(z_t, *z_t.shape),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=(1000 * TIMES).float().to(z_t.dtype) / 1000,
            guidance=backbone.guidance and torch.full((2,), backbone.guidance),
            txt_ids=text_ids,
            img_ids=ids,
        ).sample
        u = backbone.velocity(z_t, TIMES, PROMPTS)
    expected = FluxPipeline._unpack_latents(packed, 8 * rows, 8 * columns, 8)
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sd3", "sd35_medium"])
def test_euler_equals_the_sd3_pipeline(name):
    backbone = build(name)
    pipe, z_1 = backbone.texts.pipeline, latents(backbone)
    text = backbone.texts(PROMPTS, z_1)
    times = time_grid(4, shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=text.tokens,
        pooled_prompt_embeds=text.pooled,
        latents=z_1,
        sigmas=times[:-1].tolist(),
        guidance_scale=1.0,
        output_type="latent",
        height=2 * backbone.latent[1],
        width=2 * backbone.latent[2],
    ).images
    with torch.no_grad():
        z_0 = sample(Ode(backbone.velocity), z_1, times, PROMPTS)
    torch.testing.assert_close(z_0, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux_dev", "flux_schnell"])
def test_euler_equals_the_flux_pipeline(name):
    backbone = build(name)
    pipe, z_1 = backbone.texts.pipeline, latents(backbone)
    text = backbone.texts(PROMPTS, z_1)
    times = time_grid(4, shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    packed = pipe(
        prompt_embeds=text.tokens,
        pooled_prompt_embeds=text.pooled,
        latents=FluxPipeline._pack_latents(z_1, *z_1.shape),
        sigmas=times[:-1].tolist(),
        guidance_scale=backbone.guidance or 1.0,
        output_type="latent",
        height=2 * backbone.latent[1],
        width=2 * backbone.latent[2],
    ).images
    with torch.no_grad():
        z_0 = sample(Ode(backbone.velocity), z_1, times, PROMPTS)
    torch.testing.assert_close(flux.pack(z_0), packed, rtol=1e-4, atol=1e-4)


def test_bfloat16_conditions_on_the_timestep_of_the_flux_pipeline():
    torch.manual_seed(0)
    backbone = dev().to(torch.bfloat16)
    z_t, pipe = latents(backbone, dtype=torch.bfloat16), backbone.texts.pipeline
    seen = []
    embed = backbone.transformer.time_text_embed
    handle = embed.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    t = torch.tensor(0.6022)
    backbone.velocity(z_t, t, PROMPTS)
    backbone.trunk(z_t, t, 1, PROMPTS)
    handle.remove()
    for times, guidance in seen:
        assert times.tolist() == [604.0, 604.0]
        assert guidance.tolist() == [3504.0, 3504.0]
    assert len(seen) == 2
    assert backbone.velocity(z_t.float(), t, PROMPTS).dtype == torch.float32
    assert pipe.transformer is backbone.transformer


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_on_the_meta_device_where_values_cannot_be_checked(name):
    backbone = BACKBONES[name]()
    backbone.texts([NULL], torch.zeros(()))
    backbone.to("meta")
    z_t = latents(backbone).to("meta")
    state = backbone.trunk(z_t, TIMES, 2)
    assert state.features.shape == (2, 16, *backbone.grid)
    assert backbone.resume(state).shape == z_t.shape
    assert backbone.decode(z_t).shape == (2, 3, *(2 * n for n in backbone.latent[1:]))


def test_everything_is_frozen_and_stays_in_evaluation_mode(backbone):
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())


def test_encode_and_decode_scale_as_the_pipelines_do(backbone):
    height, width = (2 * n for n in backbone.latent[1:])
    x = torch.rand(2, 3, height, width, dtype=torch.float64) * 2 - 1
    raw = backbone.vae.encode(x).latent_dist.mean
    z_0 = backbone.encode(x)
    torch.testing.assert_close(z_0, (raw - 0.1) * 1.5, **EXACT)
    torch.testing.assert_close(backbone.decode(z_0), backbone.vae.decode(raw).sample, **EXACT)
    assert backbone.decode(z_0).shape == x.shape
    with pytest.raises(ValueError, match="expected x of shape"):
        backbone.encode(x[:, :, :4])


def test_another_decoder_reads_scaled_latents_and_shares_the_rest(backbone):
    tiny = tiny_decoder()
    other = backbone.with_decoder(tiny)
    z = latents(backbone).requires_grad_()
    torch.testing.assert_close(other.decode(z), tiny.decode(z).sample, **EXACT)
    assert other.transformer is backbone.transformer
    assert other.texts is backbone.texts
    u = backbone.velocity(z, TIMES, PROMPTS)
    torch.testing.assert_close(other.velocity(z, TIMES, PROMPTS), u, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(other.decode(z).sum(), z)
    assert gradient.abs().max() > 0


def test_prompts_are_encoded_once(backbone, monkeypatch):
    encoded = []
    encode = type(backbone.texts).encode

    def counted(self, prompt, device):
        encoded.append(prompt)
        return encode(self, prompt, device)

    monkeypatch.setattr(type(backbone.texts), "encode", counted)
    texts = type(backbone.texts)(backbone.texts.pipeline, backbone.texts.length)
    like = torch.zeros((), dtype=torch.float64)
    first = texts(["a blue square", NULL, "a blue square"], like)
    again = texts(["a blue square"], like)
    assert encoded == ["a blue square", NULL]
    torch.testing.assert_close(first.tokens[2:], again.tokens, rtol=0, atol=0)


def test_text_first_seen_in_inference_mode_serves_gradients(backbone):
    prompt = ["a blue circle"] * 2
    with torch.inference_mode():
        backbone.velocity(latents(backbone), TIMES, prompt)
    z_t = latents(backbone).requires_grad_()
    backbone.velocity(z_t, TIMES, prompt).sum().backward()
    assert z_t.grad.abs().max() > 0


def test_unknown_words_are_named(backbone):
    with pytest.raises(ValueError, match="got green, triangle in 'a green triangle'"):
        backbone.velocity(latents(backbone, 1), torch.tensor(0.5), ["a green triangle"])


def test_bad_inputs_are_refused(backbone):
    z_t, t = latents(backbone), torch.tensor(0.5)
    for i in (0, backbone.depth + 1):
        with pytest.raises(ValueError, match=rf"expected i in 1..{backbone.depth}, got {i}"):
            backbone.trunk(z_t, t, i)
    with pytest.raises(ValueError, match="expected 2 prompts, one per latent, got 1"):
        backbone.velocity(z_t, t, [NULL])
    with pytest.raises(ValueError, match="got one string"):
        backbone.trunk(z_t, t, 1, "aa")
    with pytest.raises(ValueError, match="expected z_t of shape"):
        backbone.velocity(z_t[:, :, 1:], t, PROMPTS)
    with pytest.raises(ValueError, match=r"expected t of shape \(\) or \(2,\), got \(3,\)"):
        backbone.velocity(z_t, t.expand(3), PROMPTS)
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\], got 500 to 500"):
        backbone.velocity(z_t, 1000 * t, PROMPTS)
    z_t[1, 0, 0, 0] = torch.nan
    for broken in (
        lambda: backbone.velocity(z_t, t, PROMPTS),
        lambda: backbone.trunk(z_t, t, 1),
        lambda: backbone.decode(z_t),
    ):
        with pytest.raises(ValueError, match=r"expected finite z_\w, got 1 of"):
            broken()


def test_parts_that_do_not_fit_are_refused():
    a, b = build("sd3"), build("flux_dev")
    with pytest.raises(ValueError, match="expected latents of 4 channels"):
        Sd3Backbone(a.transformer, a.vae, a.texts, latent=(4, 16, 16))
    with pytest.raises(ValueError, match="expected latents of 4 channels"):
        FluxBackbone(b.transformer, b.vae, b.texts, guidance=1.0, latent=(4, 7, 8))
    with pytest.raises(ValueError, match="expected guidance of a number"):
        FluxBackbone(b.transformer, b.vae, b.texts, guidance=None)
    with pytest.raises(ValueError, match="expected AutoencoderTiny with 4 latent channels"):
        a.with_decoder(AutoencoderTiny(latent_channels=3))


LOADERS = {
    "sd3": lambda folder, **kwargs: sd3.load(folder, text_length=0, **kwargs),
    "sd35_medium": lambda folder, **kwargs: sd3.load(
        folder, text_length=6, latent=(4, 8, 12), **kwargs
    ),
    "flux_dev": lambda folder, **kwargs: flux.load(
        folder, text_length=7, guidance=3.5, latent=(4, 8, 12), **kwargs
    ),
}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_a_saved_pipeline_loads_back(name, tmp_path):
    backbone, load = build(name), LOADERS[name]
    backbone.texts.pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.float64)
    z_t = latents(backbone)
    u = backbone.velocity(z_t, TIMES, PROMPTS)
    torch.testing.assert_close(loaded.velocity(z_t, TIMES, PROMPTS), u, **EXACT)
    torch.testing.assert_close(loaded.decode(z_t), backbone.decode(z_t), **EXACT)

    half = type(backbone.transformer).from_pretrained(
        tmp_path / "transformer", torch_dtype=torch.float16
    )
    half.save_pretrained(tmp_path / "half")
    single = load(tmp_path, transformer="half")
    assert {w.dtype for w in single.transformer.state_dict().values()} == {torch.float32}
    low = load(tmp_path, dtype=torch.bfloat16)
    assert {w.dtype for w in low.transformer.state_dict().values()} == {torch.bfloat16}
    u_half = single.velocity(z_t.float(), TIMES, PROMPTS)
    torch.testing.assert_close(u_half.double(), u, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_a_stored_null_prompt_needs_no_text_encoders(name, tmp_path):
    backbone, load = build(name), LOADERS[name]
    backbone.transformer.save_pretrained(tmp_path / "transformer")
    backbone.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match="expected text_encoder/config.json"):
        load(tmp_path, dtype=torch.float64)
    backbone.texts.save_null(tmp_path)
    loaded = load(tmp_path, dtype=torch.float64)
    z_t = latents(backbone)
    expected = backbone.trunk(z_t, TIMES, 2).features
    torch.testing.assert_close(loaded.trunk(z_t, TIMES, 2).features, expected, **EXACT)
    with pytest.raises(ValueError, match="expected the null prompt, .* got 'a red circle'"):
        loaded.velocity(z_t, TIMES, PROMPTS)
    assert not any("encoders" in key for key in loaded.state_dict())
    moved = loaded.to(torch.float32).trunk(z_t.float(), TIMES, 2).features
    torch.testing.assert_close(moved.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_null_prompt_of_another_length_is_refused(tmp_path):
    backbone = build("sd3")
    backbone.texts.save_null(tmp_path)
    null = load_null(tmp_path)
    texts = Sd3Texts(backbone.texts.pipeline, 3, null)
    with pytest.raises(ValueError, match=r"expected \(18, 24\) text tokens"):
        texts(["a red circle"], torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_a_missing_folder_is_reported_at_once(name, tmp_path):
    load = LOADERS[name]
    with pytest.raises(FileNotFoundError, match="nothing is looked for on a hub"):
        load("stabilityai/stable-diffusion-3.5-medium")
    build(name).transformer.save_config(tmp_path / "transformer")
    with pytest.raises(FileNotFoundError, match="got no vae/config.json"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="got no small/config.json"):
        load(tmp_path, transformer="small")


# The first blocks alone

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def refused(message, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def keep(name, folder, shard=None):
    """A whole pipeline in a folder, with the transformer in shards of a size."""
    backbone = build(name)
    backbone.texts.pipeline.save_pretrained(folder)
    if shard is not None:
        shutil.rmtree(folder / "transformer")
        backbone.transformer.save_pretrained(folder / "transformer", max_shard_size=shard)
    assert (folder / "transformer" / INDEX).is_file() == (shard is not None)
    return backbone


def behind(backbone, i):
    """Names of the weights that follow block i."""
    model = backbone.transformer
    parts = (*backbone.blocks[i:], model.norm_out, model.proj_out)
    places = {w.data_ptr() for part in parts for w in part.parameters()}
    return {name for name, w in model.state_dict().items() if w.data_ptr() in places}


def graded(backbone, i, c):
    """Features of block i, and a gradient of theirs."""
    z_t = latents(backbone).requires_grad_()
    features = backbone.trunk(z_t, TIMES, i, c).features
    return features, torch.autograd.grad(features.square().sum(), z_t)[0]


@pytest.mark.parametrize("files", ["transformer", "shards"])
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_first_blocks_are_those_of_the_whole_to_the_bit(name, files, tmp_path):
    """However the files are cut: kernels may round by where a weight lies in memory."""
    model = keep(name, tmp_path).transformer
    model.save_pretrained(tmp_path / "shards", max_shard_size="16KB")
    whole = LOADERS[name](tmp_path, dtype=torch.float64)
    weights = whole.transformer.state_dict()
    for blocks in range(1, whole.depth):
        first = LOADERS[name](tmp_path, transformer=files, blocks=blocks, dtype=torch.float64)
        kept = first.transformer.state_dict()
        assert first.depth == blocks
        assert kept.keys() == weights.keys() - behind(whole, blocks)
        assert all(torch.equal(kept[n], weights[n]) for n in kept)
        sizes = [w.numel() for w in first.transformer.parameters()]
        assert sum(sizes) == sum(w.numel() for w in whole.trunk_weights(blocks).values())
        assert not any(w.requires_grad for w in first.parameters())
        assert not any(m.training for m in first.modules())
        for i in range(1, blocks + 1):
            assert identity(first.trunk_weights(i)) == identity(whole.trunk_weights(i))
            for c in (None, PROMPTS):
                for found, expected in zip(graded(first, i, c), graded(whole, i, c), strict=True):
                    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", LOADERS)
def test_all_blocks_are_the_whole(name, tmp_path):
    depth = keep(name, tmp_path, "16KB").depth
    loaded, whole = (LOADERS[name](tmp_path, blocks=b, dtype=torch.float64) for b in (depth, None))
    z_t = latents(whole)
    u = whole.velocity(z_t, TIMES, PROMPTS)
    assert torch.equal(loaded.velocity(z_t, TIMES, PROMPTS), u)
    torch.testing.assert_close(loaded.resume(loaded.trunk(z_t, TIMES, 1, PROMPTS)), u, **EXACT)


@pytest.mark.parametrize("name", LOADERS)
def test_shards_with_nothing_but_later_blocks_may_be_missing(name, tmp_path):
    folder = keep(name, tmp_path, "16KB") and tmp_path / "transformer"
    shards = json.loads((folder / INDEX).read_text())["weight_map"]
    first = LOADERS[name](tmp_path, blocks=1, dtype=torch.float64)
    needed = {shards[n] for n in first.transformer.state_dict()}
    spared = set(shards.values()) - needed
    assert spared
    for shard in spared:
        (folder / shard).unlink()
    again = LOADERS[name](tmp_path, blocks=1, dtype=torch.float64)
    assert all(map(torch.equal, graded(again, 1, None), graded(first, 1, None)))
    lost = min(needed)
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected .* in {folder}, got no {lost};"):
        LOADERS[name](tmp_path, blocks=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOADERS)
def test_first_blocks_are_cast_and_moved_as_the_whole_is(name, dtype, tmp_path):
    keep(name, tmp_path)
    half = LOADERS[name](tmp_path, dtype=torch.float16).transformer
    half.save_pretrained(tmp_path / "half", max_shard_size="16KB")
    for transformer in ("transformer", "half"):
        settings = {"transformer": transformer, "dtype": dtype}
        first, whole = (LOADERS[name](tmp_path, blocks=b, **settings) for b in (2, None))
        kept, weights = first.transformer.state_dict(), whole.transformer.state_dict()
        assert {w.dtype for w in kept.values()} == {dtype}
        assert all(torch.equal(kept[n], weights[n]) for n in kept)
    moved = LOADERS[name](tmp_path, blocks=2, device="meta")
    assert {w.device.type for w in moved.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", LOADERS)
def test_first_blocks_refuse_what_needs_more(name, tmp_path):
    depth = keep(name, tmp_path).depth
    first = LOADERS[name](tmp_path, blocks=2, dtype=torch.float64)
    z_t = latents(first)
    state = first.trunk(z_t, TIMES, 1, PROMPTS)
    for further in (first, first.with_decoder(tiny_decoder())):
        with refused(f"expected all {depth} blocks for a velocity, got the first 2"):
            further.velocity(z_t, TIMES, PROMPTS)
        with refused(f"expected all {depth} blocks for a velocity, got the first 2"):
            further.resume(state)
    with refused("expected i in 1..2, got 3"):
        first.trunk(z_t, TIMES, 3)
    with refused("expected i in 1..2, got 3"):
        first.advance(state, 3)
    with refused("expected i in 1..2, got 3"):
        first.trunk_weights(3)
    for blocks in (-1, 0, depth + 1):
        with refused(f"expected blocks in 1..{depth}, got {blocks}"):
            LOADERS[name](tmp_path, blocks=blocks)


@pytest.mark.parametrize("name", LOADERS)
def test_first_blocks_of_other_weights_than_configured_are_refused(name, tmp_path):
    keep(name, tmp_path)
    folder = tmp_path / "transformer"
    said = f"expected the weights that {folder / 'config.json'} describes, got"
    whole = load_file(folder / WEIGHTS)
    last = max(key for key in whole if key.startswith("transformer_blocks.2") or "proj_out" in key)
    save_file({key: w for key, w in whole.items() if key != last}, folder / WEIGHTS)
    with refused(f"{said} 1 missing or unknown: {last}"):
        LOADERS[name](tmp_path, blocks=1)
    more = {f"more.{k}": torch.zeros(1) for k in range(7)}
    save_file(whole | more, folder / WEIGHTS)
    with refused(f"{said} 7 missing or unknown: {', '.join(sorted(more)[:5])}"):
        LOADERS[name](tmp_path, blocks=1)
    wrong = whole["context_embedder.bias"][1:].clone()
    save_file(whole | {"context_embedder.bias": wrong}, folder / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"size mismatch for context_embedder\.bias"):
        LOADERS[name](tmp_path, blocks=1)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected {WEIGHTS} in {folder}, got no"):
        LOADERS[name](tmp_path, blocks=1)


# The null prompt of a file


def stitched(backbone, i):
    """A value model of the backbone and a closed-form reward, float64."""
    rng = torch.Generator().manual_seed(5)
    width = backbone.trunk(latents(backbone, 1), TIMES[:1], 1).features.shape[1]
    weight, bias = (torch.randn(s, generator=rng).double() for s in ((16, width), (16,)))
    return Stitched(backbone, i, StitchLayer(LinearFit(weight, bias, 0, 0.0), (2, 2)), REWARD)


WORLD = GaussianWorld(latent=(2, 2, 2), components=3, rank=2, prompts=2)
REWARD = WORLD.reward("sigmoid")


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_a_saved_value_model_needs_its_blocks_and_its_null_prompt(name, tmp_path):
    backbone = keep(name, tmp_path / "whole", "16KB")
    z_t, c = latents(backbone), list(WORLD.prompts)
    for i in range(1, backbone.depth + 1):
        kept, saved = stitched(backbone, i), tmp_path / f"saved-{i}"
        kept.save_pretrained(saved)
        bare = tmp_path / f"bare-{i}"
        for part in ("transformer", "vae"):
            shutil.copytree(tmp_path / "whole" / part, bare / part)
        first = LOADERS[name](bare, blocks=i, null=saved / "null.safetensors", dtype=torch.float64)
        again = Stitched.from_pretrained(saved, first, REWARD)
        expected = value_and_gradient(kept, z_t, TIMES, c)
        for found, known in zip(value_and_gradient(again, z_t, TIMES, c), expected, strict=True):
            assert torch.equal(found, known)
        assert expected[1].abs().max() > 0
        if i > 1:
            less = LOADERS[name](bare, blocks=i - 1, null=saved / "null.safetensors")
            with refused(f"expected i in 1..{i - 1}, got {i}"):
                Stitched.from_pretrained(saved, less, REWARD)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.usefixtures("offline")
def test_a_null_prompt_of_a_file_stands_in_for_the_text_encoders(name, tmp_path, monkeypatch):
    backbone = keep(name, tmp_path)
    file = backbone.texts.save_null(tmp_path)
    file = file.rename(tmp_path / "elsewhere.safetensors")
    monkeypatch.setattr("stitchvm.models.folder.AutoTokenizer", None)  # who reads encoders fails
    loaded = LOADERS[name](tmp_path, blocks=1, null=file, dtype=torch.float64)
    assert not any("encoders" in key for key in loaded.state_dict())
    assert all(map(torch.equal, graded(loaded, 1, None), graded(backbone, 1, None)))
    with refused(
        "expected the null prompt, the only one known without text encoders, got 'a red circle'"
    ):
        loaded.trunk(latents(loaded), TIMES, 1, PROMPTS)


def test_files_without_a_fitting_null_prompt_are_refused(tmp_path):
    backbone = keep("sd3", tmp_path)
    file = tmp_path / "null.safetensors"
    with refused(
        f"expected the null prompt's embedding in {file}, got no such file", FileNotFoundError
    ):
        sd3.load(tmp_path, null=file)
    save_file({"prompt_embeds": torch.zeros(1, 2, WIDTH), "pooled": torch.zeros(1, 20)}, file)
    with refused(
        f"expected prompt_embeds and pooled_prompt_embeds in {file}, "
        "got ['pooled', 'prompt_embeds']"
    ):
        sd3.load(tmp_path, null=file)
    other = build("flux_dev").texts.save_null(tmp_path)
    with refused(
        f"expected text embeddings of width {WIDTH} and 20 pooled, as the transformer takes, "
        f"got {WIDTH} and 8"
    ):
        sd3.load(tmp_path, null=other, latent=backbone.latent)
