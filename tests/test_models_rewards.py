"""CLIP and aesthetic rewards on a tiny random CLIP: against transformers, from any block on."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from bench.contract import reward as contract
from bench.contract.checking import ROWS, check
from stitchvm.models import aesthetic, clip
from stitchvm.models.aesthetic import AestheticReward, collapse
from stitchvm.models.clip import ClipReward, Pixels
from stitchvm.reward import Hidden

DEPTH, SIZE, GRID, WIDTH, EMBEDDING = 5, 32, 4, 24, 16
ENTRIES = range(1, DEPTH + 1)
SPECIAL = ("[BOS]", "[EOS]", "[PAD]", "[UNK]")
WORDS = ("a", "red", "blue", "ring", "square", "and")
PROMPTS = ("a red ring", "a blue square and a red ring", "a red ring")
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
OPENAI = Pixels((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))


def tokenizer(eos="[EOS]"):
    vocabulary = {word: k for k, word in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"[BOS] $A {eos}", special_tokens=[("[BOS]", 0), (eos, vocabulary[eos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=18,
    )


def tiny(dtype=torch.float32, eos_token_id=1, act="quick_gelu"):
    """A random CLIP whose embeddings of different images, and texts, really differ."""
    heads = {"num_attention_heads": 2, "hidden_act": act, "projection_dim": EMBEDDING}
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": DEPTH}
    text = {"hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 2}
    ids = {"bos_token_id": 0, "eos_token_id": eos_token_id, "pad_token_id": 2}
    config = CLIPConfig(
        vision_config=vision | heads | {"image_size": SIZE, "patch_size": SIZE // GRID},
        text_config=text
        | heads
        | ids
        | {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 18},
        projection_dim=EMBEDDING,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def reward(dtype=torch.float32, pixels=Pixels(), scale=1.0):  # noqa: B008 - frozen
    return ClipReward(tiny(dtype), tokenizer(), pixels, scale)


def images(rows=3, size=SIZE, dtype=torch.float32, seed=0, detail=6):
    """Smooth images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(rows, 3, detail, detail, generator=generator)
    x = functional.interpolate(coarse, (size, size), mode="bicubic")
    return (x / x.abs().amax()).to(dtype)


def published(model, x):
    return functional.normalize(model.get_image_features(pixel_values=x).pooler_output, dim=-1)


def affine(seed=0):
    w, b = torch.randn(EMBEDDING + 1, generator=torch.Generator().manual_seed(seed)).split(
        [EMBEDDING, 1]
    )
    return w, b[0]


def beauty(dtype=torch.float32):
    return AestheticReward(tiny(dtype), Pixels(), *affine())


REWARDS = {"clip": reward, "aesthetic": beauty}


def stack(sizes, indices, dtype=torch.float32):
    """Linear layers under LAION's names, and the network they make."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Linear(*pair, dtype=dtype) for pair in zip(sizes, sizes[1:], strict=False)]
    named = {}
    for k, layer in zip(indices, layers, strict=True):
        named |= {f"layers.{k}.weight": layer.weight.data, f"layers.{k}.bias": layer.bias.data}
    return named, nn.Sequential(*layers)


def refused(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# Entered at any block


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("j", ENTRIES)
def test_embedding_and_gradient_are_the_models_at_every_block(j, dtype, tolerance):
    model, whole = tiny(dtype), reward(dtype)
    x, y = (images(dtype=dtype).requires_grad_() for _ in range(2))
    e, expected = whole.tail(whole.head(x, j), j).embedding, published(model, y)
    assert torch.allclose(e, expected, rtol=0, atol=tolerance)
    weights = torch.linspace(-1, 1, e.numel(), dtype=dtype).view_as(e)
    (e * weights).sum().backward()
    (expected * weights).sum().backward()
    assert y.grad.abs().max() > 1e-3
    assert torch.allclose(x.grad, y.grad, rtol=0, atol=tolerance * float(y.grad.abs().max()))


@pytest.mark.parametrize("j", ENTRIES)
def test_hidden_and_tokens_are_the_models(j):
    model, whole, x = tiny(), reward(), images()
    h = whole.head(x, j)
    with torch.no_grad():
        out = model.vision_model(pixel_values=x, output_hidden_states=True)
        patches = model.vision_model.embeddings.patch_embedding(x)
    assert h.map.shape == (3, WIDTH, GRID, GRID)
    if j == 1:
        assert h.cls is None
        assert torch.equal(h.map, patches)
    else:
        assert torch.allclose(h.cls, out.hidden_states[j - 1][:, 0], atol=1e-5)
        tokens = h.map.flatten(2).transpose(1, 2)
        assert torch.allclose(tokens, out.hidden_states[j - 1][:, 1:], atol=1e-5)
    assert torch.allclose(whole.tail(h, j).tokens, out.last_hidden_state[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_keep_the_contract(name):
    whole, x = REWARDS[name](torch.float64), images(ROWS, dtype=torch.float64)
    c = [PROMPTS[k % len(PROMPTS)] for k in range(ROWS)]
    case = contract.Case(x, c, whole)
    assert [why for _, why in check(case, contract.CHECKS) if why is not None] == []
    assert case.value().std() > 0
    assert not whole.training


def test_gradient_is_the_finite_difference():
    whole, x = reward(torch.float64, OPENAI), images(1, 40, torch.float64).requires_grad_()
    whole(x, PROMPTS[:1]).sum().backward()
    direction, step = images(1, 40, torch.float64, seed=1), 1e-5
    with torch.no_grad():
        ends = [whole(x + sign * step * direction, PROMPTS[:1]) for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose((x.grad * direction).sum(), difference, rtol=1e-6, atol=1e-9)


# Scores


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_score_is_the_logit_without_its_scale(scale):
    model, x = tiny(torch.float64), images(dtype=torch.float64)
    ids = tokenizer()(list(PROMPTS), padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(pixel_values=x, input_ids=ids).logits_per_image / model.logit_scale.exp()
    got = reward(torch.float64, scale=scale)(x, PROMPTS)
    assert torch.allclose(got, scale * logits.diagonal(), rtol=0, atol=1e-10 * scale)
    assert (logits[:, 0] - logits[:, 1]).abs().min() > 1e-3


def test_every_prompt_is_embedded_once():
    whole, e, rows = reward(), functional.normalize(torch.randn(3, EMBEDDING), dim=-1), []
    whole.text.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    first, second = whole.score(e, PROMPTS), whole.score(e, PROMPTS)
    whole.score(e[:2], ("a blue ring", PROMPTS[0]))
    assert rows == [1, 1, 1]
    assert torch.equal(first, second)


def test_texts_follow_the_model():
    whole, expected = reward(), reward().double().texts(PROMPTS)
    assert whole.texts(PROMPTS).dtype == torch.float32
    moved = copy.deepcopy(whole).to(torch.float64).texts(PROMPTS)
    assert moved.dtype == torch.float64
    assert torch.allclose(moved, expected, rtol=0, atol=1e-12)


def test_texts_do_not_depend_on_who_asked_first():
    expected = reward().texts(PROMPTS)
    first, x = reward(), images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(first.texts(PROMPTS), expected)
    first(x, PROMPTS).sum().backward()
    assert x.grad.isfinite().all()
    assert not reward().requires_grad_().texts(PROMPTS).requires_grad


def test_long_prompts_are_cut():
    long = " ".join(["a", "red"] * 40)
    assert reward().texts([long]).isfinite().all()


def test_aesthetic_is_affine_in_the_embedding():
    model, x, (w, b) = tiny(), images(), affine()
    expected = published(model, x) @ w + b
    assert torch.allclose(beauty()(x, ["", "", ""]), expected, rtol=0, atol=1e-5)


LAION_SIZES, LAION_INDICES = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)


def test_collapse_is_the_stack():
    layers, network = stack(LAION_SIZES, LAION_INDICES, torch.float64)
    w, b = collapse(layers)
    e = functional.normalize(torch.randn(5, 768, dtype=torch.float64), dim=-1)
    assert w.shape == (768,)
    assert b.shape == ()
    assert torch.allclose(e @ w + b, network(e)[:, 0], rtol=0, atol=1e-12)


# Pixels


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [224, 100])
def test_preprocessing_is_the_processors(size, mode):
    x = (images(1, 384, detail=96)[0] + 1) / 2
    picture = Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy())
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample={mode_: k for k, mode_ in clip.PIL_MODES.items()}[mode],
    )
    pixels = Pixels(tuple(processor.image_mean), tuple(processor.image_std), mode)
    expected = processor(images=picture, return_tensors="pt")["pixel_values"]
    error = (pixels.prepare(2 * x[None] - 1, size) - expected).abs()
    assert (error * torch.tensor(pixels.std)[:, None, None]).max() <= 1.5 / 255


@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("size", [224, 336, 378])
def test_a_photograph_is_prepared_as_pil_does(photograph, size):
    whole = getattr(data, photograph)()
    side = min(whole.shape[:2])
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    picture = whole[top : top + side, left : left + side]
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    exact = np.moveaxis(picture, -1, 0).astype("float32")  # PIL in float: no rounding, no clamping
    for shape in ((size, side), (size, size)):
        resized = [Image.fromarray(c).resize(shape, Image.Resampling.BICUBIC) for c in exact]
        exact = np.stack([np.asarray(c) for c in resized]).clip(0, 255)
    exact = torch.from_numpy(exact) / 255
    mean, std = (torch.tensor(row)[:, None, None] for row in (OPENAI.mean, OPENAI.std))
    got = OPENAI.prepare(x, size)[0]
    assert (got - (exact - mean) / std).abs().max() < 1e-3
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=OPENAI.mean,
        image_std=OPENAI.std,
    )
    eight_bits = processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    error = (got - eight_bits[0]).abs() * std  # it rounds to 1/255 between two passes, and after
    assert error.max() < 1.5 / 255
    assert error.mean() < 1.5e-3
    rounded = (replace(OPENAI, rounded=True).prepare(x, size)[0] - eight_bits[0]).abs()
    assert (rounded < 1e-3).float().mean() > 0.998  # all but what lies between two levels
    assert (rounded * std).max() < 2.5 / 255
    assert (rounded * std).mean() < 1e-5


def test_pictures_of_pil_have_levels_and_gradients_go_through():
    x = images(2, 96, detail=24).mul(1.2).requires_grad_()  # beyond what a picture can show
    plain, rounded = (
        Pixels(rounded=flag).prepare(x, size) for flag, size in ((False, 48), (True, 48))
    )
    levels = (rounded + 1) * 127.5
    assert torch.allclose(levels, levels.round(), rtol=0, atol=1e-3)
    assert levels.detach().unique().numel() > 50
    (gradient,) = torch.autograd.grad(rounded.sum(), x)
    (smooth,) = torch.autograd.grad(plain.clamp(-1, 1).sum(), x)
    assert gradient.abs().sum() > 0
    assert torch.allclose(gradient.sum(), smooth.sum(), rtol=0.2)
    own = Pixels(rounded=True).prepare(x, 96)
    assert torch.allclose(own, ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1, atol=1e-6)
    assert torch.equal(torch.autograd.grad(own.sum(), x)[0], torch.ones_like(x))


def test_own_pixels_stay_as_they_are():
    x = images()
    assert torch.equal(Pixels().prepare(x, SIZE), x)


def test_a_resize_stays_in_range():
    x = torch.where(images(1, 96) > 0, 1.0, -1.0)
    y = Pixels().prepare(x, SIZE)
    assert y.shape[-1] == SIZE
    assert y.abs().max() == 1


# Folders


def saved(folder, dtype=torch.float32, pixels=OPENAI):
    tiny(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=pixels.mean, image_std=pixels.std).save_pretrained(folder)
    return folder


def test_a_folder_keeps_the_reward(tmp_path):
    x = images(size=48)
    got = clip.load(saved(tmp_path), scale=100.0)
    assert got.pixels == OPENAI
    expected = reward(pixels=OPENAI, scale=100.0)(x, PROMPTS)
    assert torch.allclose(got(x, PROMPTS), expected, rtol=0, atol=1e-4)
    own = clip.load(tmp_path, pixels=Pixels())
    assert torch.allclose(own(x, PROMPTS), reward()(x, PROMPTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_precision_files_load_as_asked(tmp_path, dtype):
    got = clip.load(saved(tmp_path, torch.float16), dtype=dtype)
    assert {p.dtype for p in got.parameters()} == {dtype}
    expected = reward(dtype, OPENAI)(images(dtype=dtype), PROMPTS)
    assert torch.allclose(got(images(dtype=dtype), PROMPTS), expected, rtol=0, atol=1e-2)


def test_an_aesthetic_folder_keeps_the_reward(tmp_path):
    layers, network = stack((EMBEDDING, 8, 1), (0, 2))
    save_file(layers, tmp_path / "head.safetensors")
    (tmp_path / "head.json").write_text(json.dumps({"sizes": [EMBEDDING, 8, 1]}))
    got = aesthetic.load(saved(tmp_path), tmp_path / "head.safetensors", pixels=Pixels())
    x = images()
    expected = network(published(tiny(), x))[:, 0]
    assert torch.allclose(got(x, PROMPTS), expected, rtol=0, atol=1e-5)


def test_laions_head_needs_no_sizes(tmp_path):
    layers, _ = stack(LAION_SIZES, LAION_INDICES)
    safe, own = tmp_path / "head.safetensors", tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    save_file(layers, safe)
    torch.save(layers, own)
    for file in (safe, own):
        pairs = zip(aesthetic.load_head(file), collapse(layers), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("j", ENTRIES)
def test_what_enters_a_block_advances_to_any_later_one(j):
    whole, x = reward(), images()
    entering = whole.head(x, j)
    for k in range(j, DEPTH + 1):
        later, expected = whole.advance(entering, j, k), whole.head(x, k)
        assert torch.allclose(later.map, expected.map, rtol=0, atol=1e-6)
        if k > 1:
            assert torch.allclose(later.cls, expected.cls, rtol=0, atol=1e-6)
    if j > 1:
        with refused(f"expected j in {j}..{DEPTH}, got {j - 1}"):
            whole.advance(entering, j, j - 1)


# Errors


@pytest.mark.parametrize("j", [0, DEPTH + 1])
def test_blocks_have_numbers(j):
    whole = reward()
    with refused(f"expected j in 1..{DEPTH}, got {j}"):
        whole.head(images(), j)
    with refused(f"expected j in 1..{DEPTH}, got {j}"):
        whole.tail(whole.head(images(), 1), j)


def test_a_map_brings_cls_from_block_2():
    whole = reward()
    entering = whole.head(images(), 2)
    with refused("expected [CLS] (3, 24) beside the map at j = 2, got None"):
        whole.tail(Hidden(entering.map), 2)
    with refused("expected [CLS] None beside the map at j = 1, got (3, 24)"):
        whole.tail(entering, 1)
    with refused("expected [CLS] (3, 24) beside the map at j = 2, got (1, 24)"):
        whole.tail(Hidden(entering.map, entering.cls[:1]), 2)
    with refused("expected a map (3, 24, 4, 4), got (3, 24, 2, 4)"):
        whole.tail(Hidden(entering.map[:, :, :2], entering.cls), 2)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 16), (3, 32, 32)])
def test_images_have_a_shape(shape):
    with refused(f"expected square images (B, 3, H, H), got {shape}"):
        reward().head(torch.zeros(shape), 1)


def test_images_are_numbers():
    x = images()
    x[1, 2, 3, 4] = torch.nan
    with refused("expected images in [-1, 1], got NaN"):
        reward().head(x, 1)


@pytest.mark.parametrize("name", REWARDS)
def test_every_image_has_a_prompt(name):
    with refused("expected 3 prompts, got 2"):
        REWARDS[name]()(images(), PROMPTS[:2])


@pytest.mark.parametrize("empty", ["", "  "])
def test_a_prompt_has_a_word(empty):
    with refused(f"expected a prompt of at least one word, got {empty!r}"):
        reward()(images(1), [empty])


def test_unknown_words_are_named():
    strange = "a purple ring and heptagon"
    with refused(
        f"expected words of the tokenizer's vocabulary, got purple, heptagon in {strange!r}"
    ):
        reward()(images(2), ["a red ring", strange])


def test_a_tokenizer_whose_unknown_is_eos_knows_all_words():
    words = tokenizer()
    words.unk_token = "[EOS]"
    whole = ClipReward(tiny(), words, Pixels(), 1.0)
    assert whole.texts(["a red ring"]).isfinite().all()


def test_texts_end_where_the_model_pools():
    with refused("expected texts that end in token 1, got [2]"):
        ClipReward(tiny(), tokenizer(eos="[PAD]"), Pixels(), 1.0)
    largest = len(SPECIAL + WORDS) - 1
    with refused(f"expected texts that end in token {largest}, got [1]"):
        ClipReward(tiny(eos_token_id=clip.LEGACY_EOS), tokenizer(), Pixels(), 1.0)


def test_nothing_is_looked_for_on_a_hub():
    name = "openai/clip-vit-large-patch14-336"
    message = f"expected a local folder, got {name!r}: nothing is looked for on a hub"
    with refused(message, FileNotFoundError):
        clip.load(name)


def test_weights_are_not_drawn(tmp_path):
    model = tiny()
    weights = model.state_dict()
    del weights["visual_projection.weight"]
    model.save_pretrained(saved(tmp_path), state_dict=weights)
    with pytest.raises(ValueError, match=r"^expected all weights in .*'?visual_projection"):
        clip.load(tmp_path)


def test_preprocessing_is_not_guessed(tmp_path):
    file = saved(tmp_path) / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"resample": 0}))
    with refused(f"expected resample in {clip.PIL_MODES}, got 0"):
        clip.load(tmp_path)
    del settings["image_std"]
    file.write_text(json.dumps(settings))
    with refused(f"expected image_std in {file}, got none"):
        clip.load(tmp_path)
    file.unlink()
    with refused(f"expected {file}, or pixels=Pixels(...), got neither", FileNotFoundError):
        clip.load(tmp_path)


def test_a_head_is_not_drawn(tmp_path):
    file = tmp_path / "head.safetensors"
    message = f"expected the head in {file}, got no such file"
    with refused(message, FileNotFoundError):
        aesthetic.load(saved(tmp_path), file)


@pytest.mark.parametrize(
    ("sizes", "indices"), [((16, 8, 1), (0, 2)), (LAION_SIZES, (0, 3, 6, 9, 11))]
)
def test_other_heads_say_so(tmp_path, sizes, indices):
    file = tmp_path / "head.safetensors"
    save_file(stack(sizes, indices)[0], file)
    with pytest.raises(ValueError, match=r"^expected linear layers \{0: \(1024, 768\), .* got "):
        aesthetic.load_head(file)
    file.with_suffix(".json").write_text(json.dumps({"sizes": [16, 4, 1]}))
    with pytest.raises(ValueError, match=r"^expected linear layers \{0: \(4, 16\), .* got "):
        aesthetic.load_head(file)


def test_layers_are_linear_and_lead_to_a_number():
    layers, _ = stack((16, 8, 1), (0, 2))
    for bad in ({}, layers | {"layers.1.running_mean": torch.ones(8)}, {"w": torch.ones(2)}):
        with refused(f"expected layers.K.weight and layers.K.bias, got {sorted(bad)}"):
            collapse(bad)
    with refused("expected layers (out, in) that lead to one number, got [(8, 16), (2, 8)]"):
        collapse(stack((16, 8, 2), (0, 2))[0])
    with refused("expected layers (out, in) that lead to one number, got [(1, 8), (8, 16)]"):
        collapse(stack((16, 8, 1), (2, 0))[0])
    short = layers | {"layers.0.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"^expected biases \(out,\) of layers .* got \{0: \(1,"):
        collapse(short)


def test_the_head_fits_the_embedding():
    with refused("expected w (16,) and b (), got (8,) and ()"):
        AestheticReward(tiny(), Pixels(), torch.ones(8), torch.zeros(()))
    with refused("expected w (16,) and b (), got (16,) and (1,)"):
        AestheticReward(tiny(), Pixels(), torch.ones(16), torch.zeros(1))
