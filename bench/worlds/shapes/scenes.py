"""Scenes: one to three flat objects on a lit background, and their 32 x 32 pictures.

Lengths are pixels; x runs right, y down, from the middle of the picture.  A scene draws

    n       objects, from COUNTS
    kinds   (colour, shape) of each: with probability SAME all equal, else independent, uniform
            over the combinations of its split
    layout  size, radius and place of each, drawn again until all lie inside and apart
    light   background grey with a tint, one light level, one gradient over the whole picture

Splits are disjoint by construction: a scene's light level is a multiple of 1 / LEVELS whose last
digit belongs to one split alone.  Combinations in HELD_OUT appear in no split but `shift`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stitchvm.streams import derive

PIXELS = 32
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "yellow": (0.95, 0.86, 0.10),
    "green": (0.10, 0.68, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.15, 0.25, 0.95),
    "purple": (0.68, 0.14, 0.85),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": (3.6, 4.2), "large": (5.7, 6.6)}  # radius
BACKGROUNDS = {"dark": (0.05, 0.20), "grey": (0.36, 0.50), "light": (0.74, 0.90)}  # grey level
MOST = 3  # objects
COUNTS = (0.35, 0.40, 0.25)  # probability of 1, 2, 3 objects
SAME = 0.4  # probability that several objects share colour and shape
HELD_OUT = (("red", "ring"), ("green", "triangle"), ("blue", "cross"), ("purple", "square"))
MARGIN, GAP = 0.7, 1.6  # to the edge, and between circles of two radii: corners reach past them
JITTER = 0.04  # of a colour, uniform either way
TINT = 0.04  # of a background, uniform either way
GRADIENT = 0.12  # largest change of light from the middle to an edge
LIGHT, LEVELS = (0.85, 1.0), 10_000  # light levels are multiples of 1 / LEVELS
DIGITS = {"train": (0, 1, 2, 3, 4), "tune": (5,), "eval": (6,), "bank": (7, 8), "shift": (9,)}
CHUNK = 512  # scenes that share a generator

KINDS = tuple((c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES)))
_HELD = {(list(COLOURS).index(c), SHAPES.index(s)) for c, s in HELD_OUT}
SEEN = tuple(k for k in KINDS if k not in _HELD)  # combinations of every split but `shift`


@dataclass(frozen=True)
class Scenes:
    """B scenes; where there are fewer than three objects, the last columns say nothing.

    Attributes:
        n: Objects, (B,).
        colour: Index into COLOURS, (B, 3).
        shape: Index into SHAPES, (B, 3).
        size: 0 small, 1 large, (B, 3).
        radius: (B, 3).
        x: Centres, (B, 3).
        y: Centres, (B, 3).
        rgb: Colours with their jitter, (B, 3, 3).
        ground: Index into BACKGROUNDS, (B,).
        grey: Background in RGB, (B, 3).
        level: Light level times LEVELS, (B,).
        slope: Gradient of the light along x and y, per half picture, (B, 2).
    """

    n: Tensor
    colour: Tensor
    shape: Tensor
    size: Tensor
    radius: Tensor
    x: Tensor
    y: Tensor
    rgb: Tensor
    ground: Tensor
    grey: Tensor
    level: Tensor
    slope: Tensor

    def __len__(self) -> int:
        return len(self.n)

    def __getitem__(self, rows: Tensor | slice) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def cat(cls, parts: Sequence["Scenes"]) -> "Scenes":
        """All scenes of several sets, in order."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @property
    def present(self) -> Tensor:
        """Which of the three objects there are, (B, 3)."""
        return torch.arange(MOST) < self.n[:, None]


def draw(split: str, count: int, seed: int = 0) -> Scenes:
    """The first scenes of a split; the same whatever the count.

    Args:
        split: train, tune, eval, bank, or shift (each scene with a held-out combination).
        count: How many.
        seed: Of the whole sequence.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in DIGITS:
        raise ValueError(f"expected a split in {list(DIGITS)}, got {split!r}")
    chunks = []
    for chunk in range(-(-count // CHUNK)):
        rng = torch.Generator().manual_seed(derive(seed, "scenes", split, chunk) % 2**63)
        n = 1 + torch.multinomial(torch.tensor(COUNTS), CHUNK, replacement=True, generator=rng)
        kinds = _kinds(n, split, rng)
        size = torch.randint(2, (CHUNK, MOST), generator=rng)
        chunks.append(complete(n, kinds, size, split, rng))
    return Scenes.cat(chunks)[:count]


def _kinds(n: Tensor, split: str, rng: torch.Generator) -> Tensor:
    """Colour and shape of every object, (B, 3, 2)."""
    allowed = torch.tensor(SEEN)
    kinds = allowed[torch.randint(len(allowed), (len(n), MOST), generator=rng)]
    same = torch.rand(len(n), generator=rng) < SAME
    kinds = torch.where(same[:, None, None], kinds[:, :1], kinds)
    if split == "shift":
        held = torch.tensor(sorted(_HELD))
        held = held[torch.randint(len(held), (len(n), 1), generator=rng)]
        first = torch.arange(MOST)[:, None] == 0
        kinds = torch.where(same[:, None, None] | first, held, kinds)
    return kinds


def complete(n: Tensor, kinds: Tensor, size: Tensor, split: str, rng: torch.Generator) -> Scenes:
    """Scenes with given objects, the rest drawn: layout, jitter, background and light.

    Args:
        n: Objects, (B,).
        kinds: Colour and shape of each, (B, 3, 2).
        size: 0 small, 1 large, (B, 3).
        split: Whose light levels.
        rng: One generator for all.
    """
    rows = len(n)
    radius, x, y = _layout(n, size, rng)
    colours = torch.tensor(list(COLOURS.values()))
    rgb = colours[kinds[..., 0]] + JITTER * _sym(rng, rows, MOST, 3)
    ground = torch.randint(len(BACKGROUNDS), (rows,), generator=rng)
    low, high = torch.tensor(list(BACKGROUNDS.values()))[ground].unbind(-1)
    grey = low + (high - low) * torch.rand(rows, generator=rng)
    digits = torch.tensor(DIGITS[split])
    tens = torch.randint(
        int(LIGHT[0] * LEVELS) // 10, int(LIGHT[1] * LEVELS) // 10, (rows,), generator=rng
    )
    level = 10 * tens + digits[torch.randint(len(digits), (rows,), generator=rng)]
    angle = 2 * torch.pi * torch.rand(rows, generator=rng)
    strength = GRADIENT * torch.rand(rows, generator=rng)
    return Scenes(
        n=n,
        colour=kinds[..., 0],
        shape=kinds[..., 1],
        size=size,
        radius=radius,
        x=x,
        y=y,
        rgb=rgb.clamp(0, 1),
        ground=ground,
        grey=(grey[:, None] + TINT * _sym(rng, rows, 3)).clamp(0, 1),
        level=level,
        slope=strength[:, None] * torch.stack([angle.cos(), angle.sin()], -1),
    )


def _sym(rng: torch.Generator, *shape: int) -> Tensor:
    """Uniform on [-1, 1)."""
    return 2 * torch.rand(shape, generator=rng) - 1


def _layout(n: Tensor, size: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Radius, x and y of every object, (B, 3) each: uniform among those inside and apart."""
    low, high = torch.tensor(list(SIZES.values()))[size].unbind(-1)
    radius = low + (high - low) * torch.rand(low.shape, generator=rng)
    place = torch.zeros(len(n), MOST, 2)
    waiting = torch.arange(len(n))
    pairs = torch.triu(torch.ones(MOST, MOST, dtype=torch.bool), 1)
    while len(waiting):
        r = radius[waiting]
        reach = PIXELS / 2 - MARGIN - r
        tried = reach[..., None] * _sym(rng, len(waiting), MOST, 2)
        place[waiting] = tried
        apart = torch.cdist(tried, tried) - r[:, :, None] - r[:, None, :]
        there = torch.arange(MOST) < n[waiting, None]
        both = there[:, :, None] & there[:, None, :] & pairs
        waiting = waiting[((apart < GAP) & both).any((1, 2))]
    return radius, place[..., 0], place[..., 1]


def render(scenes: Scenes) -> Tensor:
    """Pictures in [-1, 1], (B, 3, 32, 32)."""
    axis = torch.arange(PIXELS) + 0.5 - PIXELS / 2
    picture = scenes.grey[:, :, None, None].expand(-1, -1, PIXELS, PIXELS)
    for k in range(MOST):
        x = axis[None, None, :] - scenes.x[:, k, None, None]
        y = axis[None, :, None] - scenes.y[:, k, None, None]
        cover = (0.5 - distance(x, y, scenes.radius[:, k, None, None], scenes.shape[:, k])).clamp(
            0, 1
        ) * scenes.present[:, k, None, None]
        picture = torch.lerp(picture, scenes.rgb[:, k, :, None, None], cover[:, None])
    sx, sy = (scenes.slope / (PIXELS / 2)).unbind(-1)
    light = scenes.level / LEVELS
    light = light[:, None, None] + (
        sx[:, None, None] * axis[None, None, :] + sy[:, None, None] * axis[None, :, None]
    )
    return (2 * picture * light[:, None] - 1).clamp(-1, 1)


def distance(x: Tensor, y: Tensor, r: Tensor, shape: Tensor) -> Tensor:
    """Signed distance to the outline of each row's shape, negative inside, (B, H, W)."""
    ax, ay, d = x.abs(), y.abs(), torch.hypot(x, y)
    per_shape = (
        d - r,
        torch.maximum(ax, ay) - 0.88 * r,
        torch.maximum(0.866 * ax - 0.5 * (y - 0.28 * r), y - 0.28 * r) - 0.55 * r,
        torch.minimum(torch.maximum(ax - 0.32 * r, ay - r), torch.maximum(ax - r, ay - 0.32 * r)),
        (d - 0.72 * r).abs() - 0.28 * r,
    )
    stacked = torch.stack(torch.broadcast_tensors(*per_shape))
    return stacked[shape, torch.arange(len(shape))]
