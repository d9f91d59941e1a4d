"""LoRA on the attention of a pipeline's transformer: what fine-tuning trains (Hu et al., 2021).

The adapted generator is a twin: modules of its own round the same frozen weights, so whoever holds
the original - a value model's trunk, the reference policy - sees none of it, and no weight is
there twice.  Files are those of `save_lora_weights`, which pipelines of the kind load.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

from stitchvm.models.pipeline import PipelineBackbone

B = TypeVar("B", bound=PipelineBackbone)

ADAPTER = "default"
HALVES = (torch.bfloat16, torch.float16)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj",
             "to_add_out")  # fmt: skip
PIPELINES = {
    SD3Transformer2DModel: StableDiffusion3Pipeline,
    FluxTransformer2DModel: FluxPipeline,
}


def adapted(
    backbone: B,
    rank: int = 32,
    alpha: int | None = None,
    targets: Sequence[str] = ATTENTION,
    seed: int = 0,
) -> B:
    """A twin of a generator with LoRA weights, the only ones that ask for gradients.

    They are of at least 32 bits, whatever the generator has.

    Args:
        backbone: The generator; unchanged.
        rank: Of every update.
        alpha: Scale over rank; twice the rank when None.
        targets: Names of the linear layers.
        seed: Of A's Gaussian entries; B is zero, so the twin begins as the generator.

    Raises:
        ValueError: for a rank < 1, or a transformer without such layers.
    """
    if rank < 1:
        raise ValueError(f"expected rank >= 1, got {rank}")
    held = chain(backbone.transformer.parameters(), backbone.transformer.buffers())
    parts = (backbone.vae, backbone.texts, backbone.decoder)
    shared = {id(x): x for x in (*held, *parts) if x is not None}
    twin = copy.deepcopy(backbone, shared)
    scale = 2 * rank if alpha is None else alpha
    config = LoraConfig(
        r=rank, lora_alpha=scale, init_lora_weights="gaussian", target_modules=list(targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin.transformer.add_adapter(config, adapter_name=ADAPTER)
    for weight in twin.parameters():
        if weight.requires_grad and weight.dtype in HALVES:
            weight.data = weight.data.float()  # small steps would round to nothing
    return twin


def save(twin: PipelineBackbone, folder: Path) -> None:
    """Write its LoRA weights, and their rank and scale, as diffusers does.

    Raises:
        ValueError: for a generator that is not adapted, or of no known pipeline.
    """
    pipeline, config = _known(twin)
    pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(twin.transformer, adapter_name=ADAPTER),
        transformer_lora_adapter_metadata=config.to_dict(),
    )


def load(twin: PipelineBackbone, folder: Path) -> None:
    """Read LoRA weights into an adapted generator.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are of other layers, or another rank or scale.
    """
    pipeline, config = _known(twin)
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"expected LoRA weights in {folder}, got none")
    found, metadata = pipeline.lora_state_dict(folder, return_lora_metadata=True)
    state = {name.removeprefix("transformer."): weight for name, weight in found.items()}
    mine = get_peft_model_state_dict(twin.transformer, adapter_name=ADAPTER)
    theirs = {name: tuple(weight.shape) for name, weight in state.items()}
    wanted = {name: tuple(weight.shape) for name, weight in mine.items()}
    if theirs != wanted:
        odd = sorted(set(theirs.items()) ^ set(wanted.items()))[0]
        raise ValueError(
            f"expected LoRA weights of {len(wanted)} tensors of rank {config.r}, got "
            f"{len(theirs)} in {folder}; they differ at {odd[0]}, {odd[1]}"
        )
    scale = (metadata or {}).get("transformer.lora_alpha", config.lora_alpha)
    if scale != config.lora_alpha:
        raise ValueError(f"expected LoRA of alpha {config.lora_alpha:g}, got {scale:g}")
    set_peft_model_state_dict(twin.transformer, state, adapter_name=ADAPTER)


def _known(twin: PipelineBackbone) -> tuple[Any, LoraConfig]:
    """The pipeline class of a transformer, and its adapter's configuration."""
    pipeline = PIPELINES.get(type(twin.transformer))
    if pipeline is None:
        known = ", ".join(kind.__name__ for kind in PIPELINES)
        raise ValueError(f"expected one of {known}, got {type(twin.transformer).__name__}")
    config = getattr(twin.transformer, "peft_config", {}).get(ADAPTER)
    if config is None:
        raise ValueError("expected a generator with LoRA weights, got one without")
    return pipeline, config
