"""What imagined people think of pictures: the stated rules behind `aesthetic`, `hps` and `pick`.

    rating      5 + FILL z(fill) + WARM z(warmth) + CONTRAST z(contrast) + BALANCE z(balance)
    hps         utility = -(WRONG faults + WEAR wear)
    pick        utility = share of the caption's parts that hold + LIKING (rating - 5)

A rater adds noise of their own; z standardises over scenes of the training distribution.
"""

from dataclasses import replace

import torch
from torch import Tensor

from bench.worlds.shapes.scenes import (
    COLOURS,
    GAP,
    JITTER,
    MARGIN,
    MOST,
    PIXELS,
    SEEN,
    SHAPES,
    Scenes,
)

WARMTH = {"red": 1.0, "yellow": 1.0, "purple": 0.5, "green": 0.3, "cyan": 0.0, "blue": 0.0}
AREAS = {"circle": 3.14, "square": 3.10, "triangle": 1.57, "cross": 2.15, "ring": 2.53}  # of r = 1
LUMA = (0.299, 0.587, 0.114)
FILL, WARM, CONTRAST, BALANCE = 0.7, 0.7, 0.6, 0.5
MEANS = {"fill": 0.124, "warmth": 0.462, "contrast": 0.282, "balance": 0.666}
SPREADS = {"fill": 0.069, "warmth": 0.372, "contrast": 0.173, "balance": 0.192}
RATER, RATERS = 1.0, 3  # a rater's noise, and how many rate each picture


def composition(scenes: Scenes) -> dict[str, Tensor]:
    """Fill, warmth, contrast and balance of every scene, (B,) each, before standardising."""
    here = scenes.present.float()
    areas = torch.tensor(list(AREAS.values()))[scenes.shape] * scenes.radius**2 * here
    warmth = torch.tensor([WARMTH[c] for c in COLOURS])[scenes.colour]
    luma = torch.tensor(LUMA)
    contrast = ((scenes.rgb @ luma) - (scenes.grey @ luma)[:, None]).abs()
    centre = torch.stack([(k * areas).sum(1) for k in (scenes.x, scenes.y)], -1)
    centre = centre / areas.sum(1, keepdim=True)
    return {
        "fill": areas.sum(1) / PIXELS**2,
        "warmth": (warmth * here).sum(1) / here.sum(1),
        "contrast": (contrast * here).sum(1) / here.sum(1),
        "balance": 1 - centre.norm(dim=-1) / (PIXELS / 2),
    }


def rating(scenes: Scenes) -> Tensor:
    """The noiseless rating, about 1 to 9 around 5, (B,)."""
    weights = {"fill": FILL, "warmth": WARM, "contrast": CONTRAST, "balance": BALANCE}
    z = {k: (v - MEANS[k]) / SPREADS[k] for k, v in composition(scenes).items()}
    return 5 + sum((weights[k] * z[k] for k in weights), torch.zeros(len(scenes)))


def rated(scenes: Scenes, rng: torch.Generator) -> Tensor:
    """The mean rating of RATERS people, (B,)."""
    return rating(scenes) + RATER / RATERS**0.5 * torch.randn(len(scenes), generator=rng)
