"""FLOPs of a call, counted operator by operator, gradients included."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")


def count_flops(call: Callable[[], object], device: torch.device = CPU) -> int:
    """FLOPs of matrix products, attention and convolutions, two for each multiply-add.

    On a CPU attention runs as matrix products meanwhile, for its fused kernel is not counted.  A
    GPU's are: they keep no scores, and compute them again in the backward pass, which is counted.

    Args:
        call: What to count; it runs once.
        device: Where it computes.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with FlopCounterMode(display=False) as counter, attention:
        call()
    return counter.get_total_flops()
