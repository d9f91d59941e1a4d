"""Blocks whose weights wait in main memory, and are on the device only while they compute.

A pass without a gradient holds one block's weights at a time.  Where a gradient passes, the graph
keeps what it will read of the copies until it has gone back, so nothing changes under it; blocks
that are recomputed in the backward pass are copied again, and held no longer than there.
Of StitchVM's guidance that is the first i blocks, or none of them.

Copies are queued on the device's own stream, in the order of what computes with them: nothing
overlaps and, from pinned memory, nothing waits for the processor.

Why not a library's: diffusers' group offloading swaps weights in place, for whole forward passes;
a trunk that stops after i blocks got wrong features, and a gradient of NaN (0.42.1, to disk).
accelerate's leaves meta tensors in a module, of which no digest can be made.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

WHOLE = "block"  # what a block is called within `Plain`
PIECE, ALIGNED = 2**28, 64  # bytes: pinned memory comes in powers of two, weights take part of one


class Offloaded(nn.Module):
    """What a block whose weights wait is of, beside its own class; see `offload`.

    Its weights stay where they are, whatever moves: `to(device)` changes their precision alone.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward pass, with copies of its weights on the device of its input."""
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        own = (*self.named_parameters(), *self.named_buffers())
        copies = {f"{WHOLE}.{name}": w.to(device, copy=True, non_blocking=True) for name, w in own}
        return functional_call(Plain(self), copies, args, kwargs)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """What `to` and its like ask of all weights."""
        return super()._apply(lambda w: _waiting(w, fn(w)), *args, **kwargs)


class Plain(nn.Module):
    """A block's own forward pass, without its hooks: who called the block has called them.

    Args:
        block: An offloaded one.
    """

    def __init__(self, block: Offloaded) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the class of the block computes."""
        return super(Offloaded, self.block).forward(*args, **kwargs)


def offload(blocks: Iterable[nn.Module]) -> None:
    """Let the weights of blocks wait where they are from now on.

    Names of weights stay, and copies of a block - a twin with LoRA - are offloaded as well.

    Args:
        blocks: Changed in place; those that are offloaded stay so.
    """
    for block in blocks:
        if not isinstance(block, Offloaded):
            block.__class__ = _offloaded(type(block))  # type: ignore[arg-type] # it can be hashed


def pin(blocks: Iterable[nn.Module], allocate: Callable[[int], Tensor] | None = None) -> None:
    """Move weights to pinned memory, from where a GPU copies faster and without the processor.

    One by one they would take up to twice their bytes; in pieces they take little more than those.

    Args:
        blocks: Whose.
        allocate: Makes a piece of so many bytes, (n,) of uint8; in pinned memory when None.
    """
    allocate = allocate or partial(torch.empty, dtype=torch.uint8, pin_memory=True)
    own = (w for block in blocks for w in (*block.parameters(), *block.buffers()))
    piece, at = torch.empty(0, dtype=torch.uint8), 0
    for weight in {id(w): w for w in own}.values():
        size = -(-weight.nbytes // ALIGNED) * ALIGNED
        if at + size > len(piece):
            piece, at = allocate(max(PIECE, size)), 0
        kept = piece[at : at + weight.nbytes].view(weight.dtype).view(weight.shape)
        weight.data = kept.copy_(weight.data)
        at += size


def waiting(module: nn.Module) -> list[Tensor]:
    """The weights of a module that wait in main memory."""
    blocks = (part for part in module.modules() if isinstance(part, Offloaded))
    return [weight for block in blocks for weight in block.state_dict().values()]


@cache
def _offloaded(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Offloaded{kind.__name__}", (Offloaded, kind), {})


def _waiting(before: Tensor, after: Tensor) -> Tensor:
    """A weight that something was to move, which it does not."""
    return after if after.device == before.device else before.to(after.dtype)
