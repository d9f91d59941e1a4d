"""Held-out pictures with a caption each, and which caption is true of which picture."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.worlds.shapes.make.clip import Told
from bench.worlds.shapes.scenes import draw, render


class Gallery(NamedTuple):
    """Pictures x_0 (n, 3, H, W), their captions, and what is true of what, (n, n) by picture."""

    x_0: Tensor
    c: list[str]
    true: Tensor


def gallery(count: int) -> Gallery:
    """Pictures of the `eval` split, on which nothing is trained or chosen."""
    held = Told(draw("eval", count))
    rng = torch.Generator().manual_seed(0)
    c = [held.caption(row, rng) for row in range(count)]
    return Gallery(render(held.scenes), c, held.true(c))
