"""CLIP models in open_clip's layout as a transformers CLIPModel: HPSv2, DFN-CLIP, LAION's.

The two differ in names, in queries, keys and values being one matrix there, and in projections
being stored transposed there.  The weights tell all shapes but the number of heads; nothing tells
the activation, which must be known: HPSv2 and DFN-CLIP have one architecture, and differ in it.

Source: github.com/mlfoundations/open_clip.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from stitchvm.models import pickled

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
SINGLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
TOWERS = {"visual.transformer.resblocks": "vision_model", "transformer.resblocks": "text_model"}
NAMED = 5  # of the weights that are wrong, in an error


@dataclass(frozen=True)
class Architecture:
    """What the weights do not tell.

    Attributes:
        act: `gelu` or `quick_gelu`.
        head: Width of a head of the image tower.
        text_head: Width of a head of the text tower.
    """

    act: str
    head: int = 80  # ViT-H/14
    text_head: int = 64


VIT_H_14 = Architecture("gelu")  # HPSv2, LAION-2B
VIT_H_14_QUICKGELU = Architecture("quick_gelu")  # DFN-CLIP


def load(file: Path | str, architecture: Architecture) -> CLIPModel:
    """The model in a file of open_clip: safetensors, or pickled tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, would run code, or holds other weights.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        return build(pickled.read(file), architecture)
    if not file.is_file():
        raise FileNotFoundError(f"expected weights in {file}, got no such file")
    try:
        return build(load_file(file), architecture)
    except SafetensorError as error:
        raise ValueError(f"expected a whole safetensors file {file}, got {error}") from None


def build(weights: Mapping[str, Tensor], architecture: Architecture) -> CLIPModel:
    """The model that weights in open_clip's layout are of, in their dtype.

    Raises:
        ValueError: if some are missing, unknown or of shapes that do not fit.
    """
    renamed = dict(renaming(weights))
    if wrong := sorted(weights.keys() ^ {old for old, _ in _pairs(weights)}):
        raise ValueError(
            f"expected weights in open_clip's layout, got {len(wrong)} missing or unknown: "
            f"{', '.join(wrong[:NAMED])}"
        )
    with init_empty_weights(include_buffers=False):
        model = CLIPModel(_config(renamed, architecture))
    shapes = [
        {name: tuple(w.shape) for name, w in named.items()}
        for named in (model.state_dict(), renamed)
    ]
    if wrong := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        raise ValueError(f"expected weights of one CLIP model, got others: {wrong[:NAMED]}")
    model.load_state_dict(renamed, assign=True)
    return model.eval()


def renaming(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of transformers, as they are stored there; missing ones left out."""
    for old, new in _pairs(weights):
        if old not in weights:
            continue
        weight = weights[old].T if old in PROJECTIONS else weights[old]
        if "in_proj" not in old:
            yield new, weight.contiguous()
            continue
        for name, part in zip("qkv", weight.chunk(3), strict=True):
            yield new.format(name), part.contiguous()


def _pairs(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names there and here of all weights of a model with as many blocks as there are weights of.

    Here, a matrix of queries, keys and values has a place for one of these letters.
    """
    yield from SINGLE.items()
    yield from PROJECTIONS.items()
    for old, new in NORMS.items():
        yield from ((f"{old}.{kind}", f"{new}.{kind}") for kind in ("weight", "bias"))
    for tower, ours in TOWERS.items():
        for k in range(_depth(weights, tower)):
            before, after = f"{tower}.{k}", f"{ours}.encoder.layers.{k}"
            for kind in ("weight", "bias"):
                yield f"{before}.attn.in_proj_{kind}", f"{after}.self_attn.{{}}_proj.{kind}"
                for old, new in BLOCK.items():
                    yield f"{before}.{old}.{kind}", f"{after}.{new}.{kind}"


def _depth(weights: Mapping[str, Tensor], tower: str) -> int:
    found = re.compile(rf"{re.escape(tower)}\.(\d+)\.")
    numbers = [int(match[1]) for name in weights if (match := found.match(name))]
    return max(numbers, default=-1) + 1


def _config(renamed: Mapping[str, Tensor], architecture: Architecture) -> CLIPConfig:
    """The configuration that weights of transformers' names and shapes are of.

    Raises:
        ValueError: if a weight that tells a shape is missing.
    """
    try:
        patch = renamed[SINGLE["visual.conv1.weight"]]
        places = len(renamed[SINGLE["visual.positional_embedding"]]) - 1
        words = renamed[SINGLE["token_embedding.weight"]]
        length = len(renamed[SINGLE["positional_embedding"]])
        projected = len(renamed[PROJECTIONS["visual.proj"]])
        inner = [len(renamed[f"{t}.encoder.layers.0.mlp.fc1.weight"]) for t in TOWERS.values()]
    except KeyError as error:
        raise ValueError(f"expected weights of a CLIP model, got none for {error}") from None
    layers = [_depth(renamed, f"{tower}.encoder.layers") for tower in TOWERS.values()]
    vision, text = (
        {
            "hidden_size": width,
            "intermediate_size": inside,
            "num_hidden_layers": depth,
            "num_attention_heads": width // head,
            "hidden_act": architecture.act,
            "projection_dim": projected,
        }
        for width, inside, depth, head in zip(
            (len(patch), words.shape[1]),
            inner,
            layers,
            (architecture.head, architecture.text_head),
            strict=True,
        )
    )
    side = patch.shape[-1]
    return CLIPConfig(
        projection_dim=projected,
        vision_config=vision | {"patch_size": side, "image_size": round(places**0.5) * side},
        text_config=text
        | {"vocab_size": len(words), "max_position_embeddings": length}
        | {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": 0},
    )
