"""What imagined people think of pictures: the stated rules behind `aesthetic`, `hps` and `pick`.

    rating      5 + FILL z(fill) + WARM z(warmth) + CONTRAST z(contrast) + BALANCE z(balance)
    hps         utility = -(BROKEN parts of the caption that do not hold + WEAR wear)
    pick        utility = share of the caption's parts that hold + LIKING (rating - 5)

A rater adds noise of their own; z standardises over scenes of the training distribution.
"""

from dataclasses import replace

import torch
from torch import Tensor

from bench.worlds.shapes.scenes import COLOURS, JITTER, MOST, PIXELS, SHAPES, Scenes

WARMTH = {"red": 1.0, "yellow": 1.0, "purple": 0.5, "green": 0.3, "cyan": 0.0, "blue": 0.0}
AREAS = {"circle": 3.14, "square": 3.10, "triangle": 1.57, "cross": 2.15, "ring": 2.53}  # of r = 1
LUMA = (0.299, 0.587, 0.114)
FILL, WARM, CONTRAST, BALANCE = 0.7, 0.7, 0.6, 0.5
MEANS = {"fill": 0.124, "warmth": 0.462, "contrast": 0.282, "balance": 0.666}
SPREADS = {"fill": 0.069, "warmth": 0.372, "contrast": 0.173, "balance": 0.192}
RATER, RATERS = 1.0, 3  # a rater's noise, and how many rate each picture
BROKEN, WEAR, LIKING = 1.0, 1.5, 0.1  # of utilities
DOUBT = 0.12  # temperature of a rater's choice between two pictures


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


def tamper(scenes: Scenes, rng: torch.Generator) -> Scenes:
    """Scenes with up to two faults each, so that many of their captions stop being true.

    A fault changes the first object's colour or shape, mirrors the layout, or takes the last
    object away.
    """
    rows = len(scenes)
    faults = torch.randint(3, (rows,), generator=rng)
    out = scenes
    for chance in (1, 2):
        due = faults >= chance
        which = torch.randint(4, (rows,), generator=rng)
        out = _recoloured(out, due & (which == 0), rng)
        out = _reshaped(out, due & (which == 1), rng)
        flip = due & ((which == 2) | (which == 3) & (out.n == 1))  # noqa: PLR2004
        out = replace(out, x=torch.where(flip[:, None], -out.x, out.x))
        lost = due & (which == 3) & (out.n > 1)  # noqa: PLR2004
        out = replace(out, n=out.n - lost.long())
    return out


def _recoloured(scenes: Scenes, due: Tensor, rng: torch.Generator) -> Scenes:
    rows, count = len(scenes), len(COLOURS)
    other = (scenes.colour[:, 0] + torch.randint(1, count, (rows,), generator=rng)) % count
    colour = torch.where(_first(due), other[:, None], scenes.colour)
    fresh = torch.tensor(list(COLOURS.values()))[other]
    fresh = fresh + JITTER * (2 * torch.rand(rows, 3, generator=rng) - 1)
    rgb = torch.where(_first(due)[..., None], fresh[:, None].clamp(0, 1), scenes.rgb)
    return replace(scenes, colour=colour, rgb=rgb)


def _reshaped(scenes: Scenes, due: Tensor, rng: torch.Generator) -> Scenes:
    rows, count = len(scenes), len(SHAPES)
    other = (scenes.shape[:, 0] + torch.randint(1, count, (rows,), generator=rng)) % count
    return replace(scenes, shape=torch.where(_first(due), other[:, None], scenes.shape))


def _first(due: Tensor) -> Tensor:
    return due[:, None] & (torch.arange(MOST) == 0)


def wear(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures blurred, faded or noised, each to a degree in [0, 1] that comes along, (B,)."""
    rows = len(x)
    degree = torch.rand(rows, generator=rng) * (torch.rand(rows, generator=rng) < 0.7)  # noqa: PLR2004
    which = torch.randint(3, (rows,), generator=rng)
    s = degree[:, None, None, None]
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    faded = x.mean((1, 2, 3), keepdim=True)
    noised = x + torch.randn(x.shape, generator=rng)
    worn = torch.stack(
        [torch.lerp(x, y, w * s) for y, w in ((blurred, 1.0), (faded, 0.8), (noised, 0.5))]
    )
    return worn[which, torch.arange(rows)].clamp(-1, 1), degree
