"""LAION's aesthetic predictor: w . e + b, e CLIP's unit image embedding, whatever the prompt.

It was trained as five linear layers.  There is no nonlinearity between them, so they are one
affine map.

Source: `sac+logos+ava1-l14-linearMSE` of christophschuhmann/improved-aesthetic-predictor.
"""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from stitchvm.backbone import Prompts
from stitchvm.models import pickled
from stitchvm.models.clip import ClipTower, Pixels, expect_prompts, load_model, load_pixels

# Linear layers of LAION's head; between them, dropout.  Its heads with ReLUs count otherwise.
LAION: dict[int, tuple[int, ...]] = {
    0: (1024, 768),
    2: (128, 1024),
    4: (64, 128),
    6: (16, 64),
    7: (1, 16),
}


class AestheticReward(ClipTower):
    """r(x) = w . e(x) + b.

    Args:
        model: A CLIP model, which is frozen; its text half is not kept.
        pixels: Its preprocessing.
        w: Weight, (D',).
        b: Bias, ().

    Raises:
        ValueError: if w does not fit the model's embedding, or b is no scalar.
    """

    w: Tensor
    b: Tensor

    def __init__(self, model: CLIPModel, pixels: Pixels, w: Tensor, b: Tensor) -> None:
        super().__init__(model, pixels)
        expected = (self.projection.out_features,)
        if tuple(w.shape) != expected or b.ndim:
            raise ValueError(
                f"expected w {expected} and b (), got {tuple(w.shape)} and {tuple(b.shape)}"
            )
        self.register_buffer("w", w.to(self.projection.weight))
        self.register_buffer("b", b.to(self.projection.weight))

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of unit embeddings (B, D'), (B,).

        Raises:
            ValueError: if there are not B prompts.
        """
        expect_prompts(e, c)
        return (e * self.w).sum(-1) + self.b


def collapse(layers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The affine map w (D,), b () that a stack of linear layers is, in float64.

    Args:
        layers: `layers.K.weight` (out, in) and `layers.K.bias` (out,), applied in order of K.

    Raises:
        ValueError: if there is anything else, or the layers do not lead to one number.
    """
    shapes = list(linear_shapes(layers).values())
    if any(first[0] != then[1] for first, then in pairwise(shapes)) or shapes[-1][0] != 1:
        raise ValueError(f"expected layers (out, in) that lead to one number, got {shapes}")
    w = torch.eye(shapes[0][1], dtype=torch.float64)
    b = torch.zeros(shapes[0][1], dtype=torch.float64)
    for k in linear_shapes(layers):
        weight, bias = (layers[name].double().cpu() for name in _names(k))
        w, b = weight @ w, weight @ b + bias
    return w[0], b[0]


def linear_shapes(layers: Mapping[str, Tensor]) -> dict[int, tuple[int, ...]]:
    """The shape (out, in) of each linear layer K, in order.

    Raises:
        ValueError: if there is anything else than linear layers, or nothing.
    """
    order = sorted({int(k) for k in re.findall(r"\blayers\.(\d+)\.", " ".join(layers))})
    if not order or {name for k in order for name in _names(k)} != set(layers):
        raise ValueError(f"expected layers.K.weight and layers.K.bias, got {sorted(layers)}")
    shapes = {k: tuple(layers[f"layers.{k}.weight"].shape) for k in order}
    biases = {k: tuple(layers[f"layers.{k}.bias"].shape) for k in order}
    if biases != {k: shape[:1] for k, shape in shapes.items()}:
        raise ValueError(f"expected biases (out,) of layers {shapes}, got {biases}")
    return shapes


def load_head(file: Path | str) -> tuple[Tensor, Tensor]:
    """The affine map w (D,), b () of linear layers in a file: safetensors, or pickled tensors.

    LAION's own is pickled; its SHA-256 begins with 21dd590f3ccdc646.

    A stack other than LAION's says so in a JSON file beside it, of the same name: `{"sizes": [D,
    ..., 1]}`.

    Raises:
        FileNotFoundError: if there is no such file; no head is ever drawn at random.
        ValueError: if it holds another stack, or anything but tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected the head in {file}, got no such file")
    layers = load_file(file) if file.suffix == ".safetensors" else pickled.read(file)
    got, expected = linear_shapes(layers), LAION
    described = file.with_suffix(".json")
    if described.is_file():
        sizes = json.loads(described.read_text())["sizes"]
        expected = {k: (sizes[k + 1], sizes[k]) for k in range(len(sizes) - 1)}
        got = dict(enumerate(got.values()))  # dropout, which has no weights, takes numbers too
    if got != expected:
        raise ValueError(f"expected linear layers {expected} in {file}, got {got}")
    return collapse(layers)


def load(
    folder: Path | str,
    head: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pixels: Pixels | None = None,
) -> AestheticReward:
    """An aesthetic reward from a local folder with a CLIP model and a file with the head.

    Raises:
        FileNotFoundError: if the folder, its preprocessing or the head does not exist.
        ValueError: if weights or settings are missing.
    """
    w, b = load_head(head)
    model = load_model(folder, device=device, dtype=dtype)
    return AestheticReward(model, pixels or load_pixels(folder), w, b)


def _names(k: int) -> tuple[str, str]:
    return f"layers.{k}.weight", f"layers.{k}.bias"
