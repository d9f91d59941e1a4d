"""The text encoders of a model's pipeline, as shapes: what they take where they stay resident."""

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from bench.worlds.full import drawn

KINDS = {
    "clip": (CLIPTextConfig, CLIPTextModelWithProjection),
    "t5": (T5Config, T5EncoderModel),
}
OF = {  # a pipeline's; FLUX's CLIP-L has no projection, 0.6 of 4886 million weights
    "sd35-medium": ("clip-l", "clip-g", "t5-xxl"),
    "sd35-large": ("clip-l", "clip-g", "t5-xxl"),
    "flux-dev": ("clip-l", "t5-xxl"),
}


def parameters(name: str) -> int:
    """How many weights an encoder has, those that it shares with itself once."""
    shapes = drawn.config("encoders")[name]
    config, model = KINDS[shapes["kind"]]
    with torch.device("meta"):
        built = model(config(**shapes["config"]))
    return sum(weight.numel() for weight in built.parameters())


def resident(model: str, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of all text encoders of a model's pipeline.

    Raises:
        ValueError: for a model without any.
    """
    if model not in OF:
        raise ValueError(f"expected a model in {', '.join(OF)}, got {model!r}")
    return sum(parameters(name) for name in OF[model]) * dtype.itemsize
