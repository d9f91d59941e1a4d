"""Fast paths of networks at full size: other ways to the same numbers, to tolerance.

    compile         every block of denoiser and reward, so of trunk and tail, by torch.compile
    channels_last   the decoder's weights, as convolutions of a GPU read them
    offload         the generator's blocks wait in main memory, where text encoders run as well

A compiled block is of a subclass of its class, whose forward pass is compiled once for all blocks
of a kind: weights keep their names, and copies - a finetuned tail, a twin with LoRA - are compiled
as well.  Whether a path gains anything is for a suite to measure.
"""

from collections.abc import Collection, Iterable
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from bench.worlds.full import Fast
from stitchvm.models.clip import ClipTower
from stitchvm.models.offload import offload, pin
from stitchvm.models.pipeline import PipelineBackbone

N = TypeVar("N", bound=nn.Module)
CPU, META = "cpu", "meta"
FORMS = 64  # of a compiled block: kinds times batch sizes times with or without a gradient


def made_on(device: str, fast: Collection[Fast]) -> str:
    """Where a generator is made that will compute on a device: offloaded blocks never go there."""
    return CPU if "offload" in fast and device != META else device


def quick_backbone(
    backbone: PipelineBackbone, fast: Collection[Fast], device: str
) -> PipelineBackbone:
    """A generator on its fast paths, changed in place.

    Args:
        backbone: Where `made_on` says.
        fast: Which.
        device: Where it will compute.
    """
    if "compile" in fast:
        compile_all(backbone.blocks)
    if "offload" in fast:
        offload(backbone.blocks)
        backbone.to(device)
        if torch.device(device).type == "cuda":
            pin(backbone.blocks)
    quick_decoder(backbone.vae, fast)
    return backbone


def quick_decoder(decoder: N, fast: Collection[Fast]) -> N:
    """A decoder on its fast path, changed in place."""
    if "channels_last" in fast:
        decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return decoder


def quick_reward(reward: ClipTower, fast: Collection[Fast]) -> ClipTower:
    """A reward on its fast path, changed in place."""
    if "compile" in fast:
        compile_all(reward.vision.encoder.layers)
    return reward


def compile_all(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward pass of blocks, when it is first asked for; on shapes alone, none."""
    torch._dynamo.config.recompile_limit = FORMS
    for block in blocks:
        if not next(block.parameters()).is_meta:
            block.__class__ = compiled(type(block))  # type: ignore[arg-type] # it can be hashed


@cache
def compiled(kind: type[nn.Module]) -> type[nn.Module]:
    """A class whose forward pass is compiled, for each shape of its input apart."""
    forward = torch.compile(kind.forward, dynamic=False)
    return type(f"Compiled{kind.__name__}", (kind,), {"forward": forward})
