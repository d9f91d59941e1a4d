"""CLIP rewards: scale * <e, text(c)>, e the unit image embedding.

    h_0 = Patch(x)                    a map: what j = 1 takes
    h_1 = Norm([CLS; h_0] + P)        [CLS] and positions are the tail's own at j = 1
    h_(k+1) = Block_k(h_k)            j = k >= 2 takes h_k: a map, and [CLS] with it
    e   = W Norm(h_(depth+1)[CLS]), of unit length

One class for whatever has the form of a `CLIPModel`.  The conventions of the published ones:

                      scale   image_size   hidden_act
    CLIP ViT-L/14       100          336   quick_gelu
    PickScore           100          224   gelu
    DFN-CLIP              1          378   quick_gelu
    HPSv2                 1          224   gelu

Sources: Radford et al., 2021, arXiv:2103.00020; Kirstain et al., 2023, arXiv:2305.01569; Fang et
al., 2023, arXiv:2309.17425; Wu et al., 2023, arXiv:2306.09341.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from stitchvm.backbone import Prompts
from stitchvm.models.texts import check_words
from stitchvm.reward import Features, Hidden, Reward

CHANNELS, WHITE = 3, 255
PIL_MODES = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
LEGACY_EOS = 2  # with this id in its config, transformers pools at the vocabulary's largest id


@dataclass(frozen=True)
class Pixels:
    """How images become the input of a vision tower; by default they stay as they are.

    Attributes:
        mean: Of each channel, for images in [0, 1] (as in preprocessor_config.json).
        std: Likewise.
        mode: Of the resize, `bicubic` or `bilinear`.
        rounded: Whether images have 256 levels, before a resize and after each of its passes, as
            pictures of PIL have; gradients go through as if they had all.
    """

    mean: tuple[float, ...] = (0.5,) * CHANNELS
    std: tuple[float, ...] = (0.5,) * CHANNELS
    mode: str = "bicubic"
    rounded: bool = False

    def prepare(self, x: Tensor, size: int) -> Tensor:
        """Images (B, 3, H, H) in [-1, 1], resized to (B, 3, size, size) and normalised.

        The resize is the one of PIL: antialiased, along rows and then along columns, and clamped
        after each, because bicubic overshoots.

        Raises:
            ValueError: if x has another shape, or holds NaN.
        """
        if x.ndim != 4 or x.shape[1] != CHANNELS or x.shape[2] != x.shape[3]:  # noqa: PLR2004
            raise ValueError(f"expected square images (B, 3, H, H), got {tuple(x.shape)}")
        if not x.is_meta and x.isnan().any():
            raise ValueError("expected images in [-1, 1], got NaN")
        x = self._levels(x)
        if x.shape[-1] != size:
            for shape in ((x.shape[-2], size), (size, size)):
                x = functional.interpolate(x, shape, mode=self.mode, antialias=True).clamp(-1, 1)
                x = self._levels(x)
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        return (x - (2 * mean - 1)[:, None, None]) / (2 * std)[:, None, None]

    def _levels(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] on their nearest levels, where they are rounded."""
        if not self.rounded:
            return x
        with torch.no_grad():
            off = ((x.clamp(-1, 1) + 1) * WHITE / 2).round() * 2 / WHITE - 1 - x
        return x + off


class ClipTower(Reward):
    """A reward on the image embedding of a CLIP model; its kinds differ in `score`.

    Args:
        model: The model, which is frozen.
        pixels: Its preprocessing.
    """

    def __init__(self, model: CLIPModel, pixels: Pixels) -> None:
        super().__init__()
        model.eval().requires_grad_(requires_grad=False)
        self.vision, self.projection = model.vision_model, model.visual_projection
        self.pixels = pixels
        self.depth = len(self.vision.encoder.layers)
        self.image_size = self.vision.embeddings.image_size
        self.grid = self.image_size // self.vision.embeddings.patch_size
        self.eval()

    def head(self, x: Tensor, j: int) -> Hidden:
        """What enters block j, of images (B, 3, H, H) in [-1, 1] of any size H.

        Raises:
            ValueError: if j is not in 1..depth, x has another shape, or x holds NaN.
        """
        patch = self.vision.embeddings.patch_embedding
        h = patch(self.pixels.prepare(x, self.image_size).to(patch.weight.dtype))
        return self.advance(Hidden(h), 1, j)

    def advance(self, h: Hidden, j: int, k: int) -> Hidden:
        """What enters block k, of what enters block j.

        Raises:
            ValueError: unless 1 <= j <= k <= depth, or if h is not what enters block j.
        """
        self._expect_block(j)
        self._expect_block(k, least=j)
        self._expect_hidden(h, j)
        if j == k:
            return h
        tokens = self._blocks(self._tokens(h), j, k)
        return Hidden(tokens[:, 1:].transpose(1, 2).reshape(h.map.shape), tokens[:, 0])

    def tail(self, h: Hidden, j: int) -> Features:
        """Blocks j to the end: patch tokens (B, L, D) as they leave it, unit embedding (B, D').

        [CLS] is not among the tokens: it is what the embedding is made of.

        Raises:
            ValueError: if j is not in 1..depth, or h is not what enters block j.
        """
        self._expect_block(j)
        self._expect_hidden(h, j)
        tokens = self._blocks(self._tokens(h), j, self.depth + 1)
        e = self.projection(self.vision.post_layernorm(tokens[:, 0]))
        return Features(tokens[:, 1:], functional.normalize(e, dim=-1), e)

    def tail_weights(self, j: int) -> dict[str, Tensor]:
        """Blocks j to the end, what comes after them and, at j = 1, [CLS], positions, pre-norm.

        Raises:
            ValueError: if j is not in 1..depth.
        """
        self._expect_block(j)
        before = tuple(f"vision.encoder.layers.{k}." for k in range(j - 1))
        entry = ("vision.embeddings.", "vision.pre_layrnorm.")
        left_out = (*before, "vision.embeddings.patch_embedding.", *(entry if j > 1 else ()))
        used = ("vision.", "projection.")
        return {
            name: weight
            for name, weight in self.named_parameters()
            if name.startswith(used) and not name.startswith(left_out)
        }

    def head_weights(self) -> dict[str, Tensor]:
        """The patch embedding, without positions."""
        inside = "vision.embeddings.patch_embedding."
        return {name: w for name, w in self.named_parameters() if name.startswith(inside)}

    def _tokens(self, h: Hidden) -> Tensor:
        """What enters a block, as tokens (B, 1 + L, D)."""
        return self._enter(h.map) if h.cls is None else _sequence(h.cls, h.map)

    def _enter(self, patches: Tensor) -> Tensor:
        """What enters block 1, (B, 1 + L, D), of the patch embedding (B, D, H, W)."""
        embeddings = self.vision.embeddings
        cls = embeddings.class_embedding.expand(len(patches), -1)
        positions = embeddings.position_embedding.weight
        return self.vision.pre_layrnorm(_sequence(cls, patches) + positions)

    def _blocks(self, tokens: Tensor, first: int, end: int) -> Tensor:
        """Blocks first..end - 1 on tokens (B, 1 + L, D)."""
        for block in self.vision.encoder.layers[first - 1 : end - 1]:
            tokens = block(tokens, None)
        return tokens

    def _expect_block(self, j: int, least: int = 1) -> None:
        if not least <= j <= self.depth:
            raise ValueError(f"expected j in {least}..{self.depth}, got {j}")

    def _expect_hidden(self, h: Hidden, j: int) -> None:
        batch, width = len(h.map), self.vision.embeddings.embed_dim
        expected = (batch, width, self.grid, self.grid)
        if tuple(h.map.shape) != expected:
            raise ValueError(f"expected a map {expected}, got {tuple(h.map.shape)}")
        got = None if h.cls is None else tuple(h.cls.shape)
        needed = None if j == 1 else (batch, width)
        if got != needed:
            raise ValueError(f"expected [CLS] {needed} beside the map at j = {j}, got {got}")


class ClipReward(ClipTower):
    """r(x, c) = scale * <e(x), text(c)>.

    Args:
        model: The CLIP model, which is frozen.
        tokenizer: Its tokenizer.
        pixels: Its preprocessing.
        scale: 1 for the plain cosine.

    Raises:
        ValueError: if the tokenizer does not end a text where the text model pools.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        pixels: Pixels,
        scale: float,
    ) -> None:
        super().__init__(model, pixels)
        self.text, self.text_projection = model.text_model, model.text_projection
        self.tokenizer, self.scale = tokenizer, scale
        self.remembered: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
        self._expect_eos()

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of unit embeddings (B, D') under their prompts, (B,).

        Raises:
            ValueError: if there are not B prompts, or one is empty or has an unknown word.
        """
        expect_prompts(e, c)
        return self.scale * (e * self.texts(c)).sum(-1)

    def scores(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of all unit embeddings (B, D') under each of T prompts, (B, T)."""
        return self.scale * e @ self.texts(c).T

    def texts(self, c: Prompts) -> Tensor:
        """Unit text embeddings of prompts, (B, D'); each prompt is embedded once, by itself."""
        weight = self.text_projection.weight
        remembered = self.remembered.setdefault((weight.dtype, weight.device), {})
        for prompt in c:
            if prompt not in remembered:
                remembered[prompt] = self._embed(prompt)
        return torch.stack([remembered[prompt] for prompt in c])

    @torch.no_grad()
    def _embed(self, prompt: str) -> Tensor:
        """Unit text embedding of a prompt, (D',), whatever autocast the caller is in."""
        self._expect_words(prompt)
        device = self.text_projection.weight.device
        plainly = torch.autocast(device.type, enabled=False) if device.type != "meta" else None
        with plainly or nullcontext():
            pooled = self.text(self._ids(prompt).to(device)).pooler_output
            return functional.normalize(self.text_projection(pooled), dim=-1)[0]

    def _ids(self, prompt: str) -> Tensor:
        """Token numbers (1, length); what follows EOS cannot reach it, so there is no mask."""
        length = min(self.tokenizer.model_max_length, self.text.config.max_position_embeddings)
        return self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    def _expect_words(self, prompt: str) -> None:
        if not prompt.strip():
            raise ValueError(f"expected a prompt of at least one word, got {prompt!r}")
        check_words(self.tokenizer, prompt)

    def _expect_eos(self) -> None:
        pools = self.text.config.eos_token_id
        if pools == LEGACY_EOS:
            pools = max(self.tokenizer.get_vocab().values())
        last = self.tokenizer("").input_ids[-1:]
        if last != [pools]:
            raise ValueError(f"expected texts that end in token {pools}, got {last}")


def load(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    pixels: Pixels | None = None,
) -> ClipReward:
    """A CLIP reward from a local folder: model, tokenizer and, unless given, preprocessing.

    Raises:
        FileNotFoundError: if the folder, or its preprocessing, does not exist.
        ValueError: if weights or settings are missing.
    """
    model = load_model(folder, device=device, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return ClipReward(model, tokenizer, pixels or load_pixels(folder), scale)


def load_model(folder: Path | str, *, device: torch.device | str, dtype: torch.dtype) -> CLIPModel:
    """The model in a local folder, as `CLIPModel.save_pretrained` left it.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it lacks weights, which transformers would draw at random.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"expected a local folder, got {str(folder)!r}: nothing is looked for on a hub"
        )
    model, info = CLIPModel.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"expected all weights in {folder}, got none for {info['missing_keys']}")
    return model.to(device)


def load_pixels(folder: Path | str) -> Pixels:
    """The preprocessing in a folder's preprocessor_config.json.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it lacks a setting, or its resize is neither bilinear nor bicubic.
    """
    file = Path(folder) / "preprocessor_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"expected {file}, or pixels=Pixels(...), got neither")
    settings = json.loads(file.read_text())
    missing = {"image_mean", "image_std", "resample"} - settings.keys()
    if missing:
        raise ValueError(f"expected {', '.join(sorted(missing))} in {file}, got none")
    if settings["resample"] not in PIL_MODES:
        raise ValueError(f"expected resample in {PIL_MODES}, got {settings['resample']}")
    mode = PIL_MODES[settings["resample"]]
    return Pixels(tuple(settings["image_mean"]), tuple(settings["image_std"]), mode)


def expect_prompts(e: Tensor, c: Prompts) -> None:
    """Raise ValueError unless embeddings (B, D') have B prompts."""
    if len(c) != len(e):
        raise ValueError(f"expected {len(e)} prompts, got {len(c)}")


def _sequence(cls: Tensor, h: Tensor) -> Tensor:
    """Tokens (B, 1 + H W, D) of [CLS] (B, D) and a map (B, D, H, W)."""
    return torch.cat([cls[:, None], h.flatten(2).transpose(1, 2)], dim=1)
