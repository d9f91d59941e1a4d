"""Which weights these are, whatever precision they were loaded in."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def identity(weights: Mapping[str, Tensor]) -> str:
    """Digest of named weights as bfloat16, 16 hexadecimal digits.

    In bfloat16 the digest is the same whether a file was loaded in float32 or in bfloat16.

    Args:
        weights: By name; their order does not matter.
    """
    known = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().to("cpu", torch.bfloat16).contiguous()
        known.update(f"{name} {tuple(weight.shape)}\n".encode())
        known.update(weight.view(torch.int16).numpy().tobytes())
    return known.hexdigest()[:16]


def file_digest(data: bytes) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
