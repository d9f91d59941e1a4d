"""CLIP in open_clip's layout: against a model written after that layout, and golden scores."""

import math
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from test_models_rewards import EMBEDDING, OPENAI, images, tokenizer
from torch import nn

from stitchvm.models import open_clip, pickled
from stitchvm.models.clip import ClipReward

WIDTH, HEADS, DEPTH, SIDE, PATCH = 24, 2, 3, 32, 8
TEXT, WORDS, LENGTH = 20, 10, 18
EOS = WORDS - 1
ARCHITECTURES = {act: open_clip.Architecture(act, head=12, text_head=10) for act in
                 ("gelu", "quick_gelu")}  # fmt: skip
PROMPTS = ("a red ring", "a blue square a red ring", "a blue ring")


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, act):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu() if act == "quick_gelu" else nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width, heads, depth, act):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads, act) for _ in range(depth)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, act):
        super().__init__()
        tokens = (SIDE // PATCH) ** 2
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty(tokens + 1, WIDTH))
        self.proj = nn.Parameter(torch.empty(WIDTH, EMBEDDING))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Tower(WIDTH, HEADS, DEPTH, act)

    def forward(self, x):
        h = self.conv1(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.class_embedding.expand(len(x), 1, -1), h], 1)
        h = self.transformer(self.ln_pre(h + self.positional_embedding))
        return self.ln_post(h[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """A CLIP model with the names of open_clip, its numbers a rule of their place."""

    def __init__(self, act):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(LENGTH, TEXT))
        self.text_projection = nn.Parameter(torch.empty(TEXT, EMBEDDING))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.visual = Visual(act)
        self.transformer = Tower(TEXT, 2, 2, act)
        self.token_embedding = nn.Embedding(WORDS, TEXT)
        self.ln_final = nn.LayerNorm(TEXT)
        with torch.no_grad():
            for k, (name, weight) in enumerate(sorted(self.named_parameters())):
                count = torch.arange(weight.numel(), dtype=torch.float64)
                drawn = 0.35 * torch.sin(1.7 * count * math.sqrt(2 + k) + k)
                norm = ".ln_" in f".{name}" and name.endswith("weight")
                weight.copy_((drawn + norm).view_as(weight))
            self.logit_scale.fill_(math.log(100))

    def texts(self, ids, eos):
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        h = self.token_embedding(ids) + self.positional_embedding
        h = self.ln_final(self.transformer(h, mask.to(h)))
        return h[torch.arange(len(ids)), (ids == eos).int().argmax(1)] @ self.text_projection


def models(act, dtype=torch.float32):
    theirs = OpenClip(act).to(dtype).eval()
    return theirs, open_clip.build(theirs.state_dict(), ARCHITECTURES[act])


@pytest.mark.parametrize("act", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_embeddings_are_those_of_the_original(act, dtype, tolerance):
    theirs, ours = models(act, dtype)
    x = images(dtype=dtype)
    got = ours.get_image_features(pixel_values=x).pooler_output
    assert torch.allclose(got, theirs.visual(x), rtol=0, atol=tolerance * float(got.abs().max()))
    ids = torch.randint(1, EOS, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 8], ids[:, 9:] = EOS, 0  # open_clip pads with 0, which nothing before it sees
    got, expected = (
        ours.get_text_features(input_ids=ids).pooler_output,
        theirs.texts(ids, WORDS - 1),
    )
    assert torch.allclose(got, expected, rtol=0, atol=tolerance * float(got.abs().max()))


@torch.no_grad()
def test_the_activation_is_not_in_the_weights():
    theirs, _ = models("quick_gelu")
    wrong = open_clip.build(theirs.state_dict(), ARCHITECTURES["gelu"])
    x = images()
    difference = wrong.get_image_features(pixel_values=x).pooler_output - theirs.visual(x)
    assert difference.abs().max() > 1e-2


# Scores of the model above in float64, images resized and normalised as CLIP does: computed by it
# once, so that only a change of ours, or of a library, moves them.
GOLDEN = {
    "gelu": (0.57332, -0.66931, 0.56608),
    "quick_gelu": (0.57919, -0.66930, 0.57642),
}


def rule(rows=3, size=48):
    """Smooth images in [-1, 1] that no generator of random numbers drew."""
    line = torch.linspace(0, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack(
        [
            torch.stack([torch.sin((3 + k + c) * x + (2 - k) * (c + 1) * y + k) for c in range(3)])
            for k in range(rows)
        ]
    )


@pytest.mark.parametrize("act", ARCHITECTURES)
@pytest.mark.parametrize("file", ["HPS_v2_compressed.pt", "open_clip_pytorch_model.bin",
                                  "open_clip_model.safetensors"])  # fmt: skip
@torch.no_grad()
def test_scores_are_golden_in_every_format(tmp_path, act, file):
    weights = OpenClip(act).double().state_dict()
    if file.endswith("safetensors"):
        save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / file)
    else:
        nested = {"epoch": 3, "state_dict": weights} if file.startswith("HPS") else weights
        torch.save(nested, tmp_path / file)
    model = open_clip.load(tmp_path / file, ARCHITECTURES[act])
    reward = ClipReward(model, tokenizer(eos="and"), OPENAI, 1.0)
    got = reward(rule(), PROMPTS)
    assert got.tolist() == pytest.approx(GOLDEN[act], abs=1e-5)


def refused(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}")


def test_weights_are_neither_drawn_nor_dropped(tmp_path):
    weights = OpenClip("gelu").state_dict()
    missing = {name: w for name, w in weights.items() if name != "visual.ln_pre.bias"}
    with refused(
        "expected weights in open_clip's layout, got 1 missing or unknown: visual.ln_pre"
    ):
        open_clip.build(missing, ARCHITECTURES["gelu"])
    with refused("expected weights in open_clip's layout, got 1 missing or unknown: text_bias"):
        open_clip.build(weights | {"text_bias": torch.zeros(1)}, ARCHITECTURES["gelu"])
    with refused("expected weights of one CLIP model, got others: ['text_projection.weight']"):
        cut = weights | {"text_projection": torch.zeros(TEXT, 3)}
        open_clip.build(cut, ARCHITECTURES["gelu"])
    with refused("expected weights in open_clip's layout, got"):
        open_clip.build({}, ARCHITECTURES["gelu"])


class Harm:
    def __reduce__(self):
        return print, ("harm done",)


def test_a_pickle_runs_no_code(tmp_path, capsys):
    file = tmp_path / "HPS_v2_compressed.pt"
    file.write_bytes(pickle.dumps({"state_dict": Harm()}, protocol=2))
    with refused(f"expected tensors alone in {file}, got a pickle that asks for more"):
        pickled.read(file)
    torch.save({"state_dict": {"w": Harm()}}, file)
    with refused(f"expected tensors alone in {file}, got a pickle that asks for more"):
        pickled.read(file)
    assert capsys.readouterr().out == ""


def test_files_are_whole_and_hold_tensors(tmp_path):
    file = tmp_path / "weights.bin"
    with refused(f"expected weights in {file}, got no such file", FileNotFoundError):
        open_clip.load(file, ARCHITECTURES["gelu"])
    torch.save({"w": torch.zeros(5000)}, file)
    whole = file.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:kept])
        with refused(f"expected a whole file {file}, got "):
            pickled.read(file)
    torch.save({"w": torch.zeros(5), "step": 3}, file)
    with refused(f"expected tensors by name in {file}, got a int named 'step'"):
        pickled.read(file)
    torch.save([torch.zeros(5)], file)
    with refused(f"expected tensors by name in {file}, got a list"):
        pickled.read(file)
    cut = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(5000)}, cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with refused(f"expected a whole safetensors file {cut}, got "):
        open_clip.load(cut, ARCHITECTURES["gelu"])
