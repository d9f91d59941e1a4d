"""What a call will cost, from shapes alone: on the meta device, where nothing is computed.

FLOPs and peak bytes are counted operator by operator as shapes go through the same code that runs
later.  Attention keeps no scores, as fused kernels on a GPU; on meta it would run as products.

Of blocks that wait in main memory, LoRA weights and what an optimiser keeps of them wait there as
well, but count as the device's: a little too much.

Not predicted: the workspace of libraries, fragmentation, the CUDA context; and what depends on
numbers, such as whether two different latents of one shape are remembered.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from bench.meter import Calls, Live
from stitchvm.backbone import Backbone
from stitchvm.models.offload import waiting

COPY = torch.ops.aten._to_copy
FLASH = torch.ops.aten._scaled_dot_product_flash_attention
TRUNK, DENOISER = "trunk", "denoiser"
BLOCK = 512  # bytes: what a GPU's allocator rounds up to


@dataclass(frozen=True)
class Cost:
    """Of a call.

    Attributes:
        flops: Of matrix products, attention and convolutions, two for each multiply-add.
        live: Peak bytes of tensors above weights and inputs.
        weights: Bytes that were there before, on the device.
        stages: FLOPs of each stage, which add up to all.
        waiting: Bytes of weights that wait in main memory.
        copied: Bytes of weights that came from there.
    """

    flops: int
    live: int
    weights: int
    stages: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    copied: int = 0

    def over(self, rows: int) -> "Cost":
        """That of one of so many samples; bytes are of all."""
        stages = {name: flops // rows for name, flops in self.stages.items()}
        return replace(self, flops=self.flops // rows, stages=stages)


class Meter(Live):
    """Counts FLOPs and live bytes of what runs while it is active, on the meta device.

    Args:
        standing: Tensors that were there before.
        away: Those that wait in main memory.
    """

    def __init__(self, standing: Iterator[Tensor], away: Iterable[Tensor] = ()) -> None:
        super().__init__(standing, BLOCK)
        self.flops = self.copied = 0
        self.away = {_storage(w) for w in away}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on shapes, and count it."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        elif func._overloadpacket is COPY and _storage(args[0]) in self.away:
            self.copied += out.nbytes
        return out


def cost(
    call: Callable[[], Any],
    standing: list[Tensor],
    watch: Calls | None = None,
    backbone: Backbone | None = None,
) -> Cost:
    """What a call on the meta device would cost.

    Args:
        call: What to count; it runs once.
        standing: Weights and inputs; weights that wait in main memory take no room on the device.
        watch: Tells apart what decoders and rewards are asked for; all is `rest` without.
        backbone: Whose `trunk` an estimator asks for: a stage of its own.
    """
    away = [] if backbone is None else waiting(backbone)
    meter = Meter(iter(standing), away)
    with fused(), trunks(backbone, lambda: meter.flops) as trunk, meter:
        stages = (watch or Calls()).stages(call, lambda: meter.flops)
    found = {name: int(flops) for name, flops in stages.items()}
    denoiser = found.pop("blocks") - trunk[TRUNK]
    held = {_storage(t): t.untyped_storage().nbytes() for t in standing}
    waits = sum(size for storage, size in held.items() if storage in meter.away)
    whole = {**trunk, DENOISER: denoiser, **found}
    there = sum(held.values()) - waits
    return Cost(meter.flops, meter.peak, there, whole, waits, meter.copied)


def _storage(tensor: Tensor) -> int:
    """What tells a tensor's memory from others'."""
    return tensor.untyped_storage()._cdata


@contextmanager
def trunks(backbone: Backbone | None, now: Callable[[], int]) -> Iterator[dict[str, int]]:
    """How far a reading rises while a backbone is asked for a trunk."""
    spent = {TRUNK: 0}
    if backbone is None:
        yield spent
        return
    ask = backbone.trunk

    def counted(*args: Any, **kwargs: Any) -> Any:
        before = now()
        out = ask(*args, **kwargs)
        spent[TRUNK] += now() - before
        return out

    with patch.object(backbone, "trunk", counted):
        yield spent


@contextmanager
def fused() -> Iterator[None]:
    """Attention as a fused kernel meanwhile."""
    with patch("torch.nn.functional.scaled_dot_product_attention", _flash):
        yield


@contextmanager
def unfused() -> Iterator[list[torch.optim.Optimizer]]:
    """Optimisers without their fused kernels meanwhile, which are not there on meta.

    Nor can autocast be switched off there, which is on nowhere.

    Yields:
        Those that are made.
    """
    plain, cast, made = torch.optim.AdamW, torch.autocast, list[torch.optim.Optimizer]()

    def make(weights: Any, *, fused: bool, **settings: Any) -> torch.optim.AdamW:
        del fused
        one = plain(weights, **settings)
        made.append(one)
        return one

    def off(kind: str, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        if kind == "meta" and not settings.get("enabled", True):
            return nullcontext()
        return cast(kind, *args, **settings)

    with patch("torch.optim.AdamW", make), patch("torch.autocast", off):
        yield made


def _flash(  # noqa: PLR0913, PLR0917 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    if attn_mask is not None or enable_gqa:
        raise ValueError("expected attention without a mask or grouped heads to be predicted")
    return FLASH(query, key, value, dropout_p, is_causal, scale=scale)[0]
