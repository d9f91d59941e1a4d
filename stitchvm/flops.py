"""FLOPs of a call, counted operator by operator, gradients included."""

from collections.abc import Callable

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions, two for each multiply-add.

    Attention runs as matrix products, for a CPU's fused kernel is not counted.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()
