"""The verifier: what there is in a picture, read from its pixels alone.

    background   a plane b(x, y) per channel through the pixels that lack colour
    coverage     c of a pixel: p = (1 - c) b + c o, with o first a colour of the palette, then
                 the region's own
    regions      connected pixels of one colour with c > SEED, and the fringe round them
    shape        each shape has the radius of the region's area and the centre of its centroid;
                 the shape is the one whose outline so placed, sharp or blurred, agrees best with
                 the coverage; a region that fits none is cut at its necks, if its parts then do

Blurred outlines are for the pictures of an autoencoder, which smear small rings and crosses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from skimage.measure import label
from skimage.segmentation import expand_labels
from torch import Tensor

from bench.worlds.shapes.captions import Seen, Thing, parse, parts
from bench.worlds.shapes.scenes import COLOURS, PIXELS, SHAPES, SIZES, distance

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Cut = Callable[[Array], NDArray[np.bool_]]

UNKNOWN = "unknown"  # shape, colour or background that no caption fits
MOST_SEEN = 6  # things reported: more than a caption can speak of
PALE = 0.15  # a pixel whose channels differ by less may be background
NEXT = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]])  # pixels beside one, in its picture
RIDGE = 1e-3  # keeps the plane defined where no pixel is left for it
BARE = 0.2  # share of the pixels that a background must have
LIT = 0.92  # usual light level
SEED = 0.6  # coverage by a usual colour that makes a pixel part of a region
CORE = 0.8  # of a region's largest coverage: there the colour is the object's alone
FRINGE = 2  # pixels round a region that may be partly covered
WIDE = 4  # the same round its parts, when cut
SPECK = 6  # pixels: a smaller region is noise
CUTS: tuple[Cut, ...] = (  # of a region in parts: at paler necks, at narrow ones
    lambda cover: cover > 0.75,  # noqa: PLR2004
    lambda cover: cover > 0.9,  # noqa: PLR2004
    lambda cover: binary_erosion(cover > SEED),
    lambda cover: binary_erosion(cover > SEED, iterations=2),
)
TWO = 36.0  # pixels: less is no two things
BLURS = (0.0, 0.7)  # of outlines, pixels
SOFT = 0.5  # blur under which outlines are compared, pixels
ODD = 2.0  # weight of a radius between the sizes, or beyond
AGREES = 0.1  # largest squared disagreement per area of a plausible shape
LIMITS = (0.256, 0.567)  # grey levels between dark, grey and light
VIVID = 0.2  # channels of a colour differ by this or more
AREA = (3.1416, 3.0976, 1.5720, 2.1504, 2.5334)  # within each outline, in squared radii
SINK = (0.0, 0.0, 0.28, 0.0, 0.0)  # centroid below the centre, in radii
REACH = 10  # pixels round a centroid that are compared
TINY = 1e-6
CHUNK = 128  # pictures at a time

AXIS = np.arange(PIXELS, dtype=np.float32) + 0.5 - PIXELS / 2
PALETTE = np.array(list(COLOURS.values()), np.float32)


@dataclass(frozen=True)
class Region:
    """Connected pixels of one colour.

    Attributes:
        picture: Which picture it is in.
        colour: Its mean colour, (3,).
        coverage: How much of each pixel it fills, (H, W).
    """

    picture: int
    colour: Array
    coverage: Array


def look(x: Tensor) -> list[Seen]:
    """What there is in every picture, the largest things first, at most MOST_SEEN.

    Args:
        x: Pictures in [-1, 1], (B, 3, 32, 32); values beyond are clamped.

    Raises:
        ValueError: for another shape, or NaN.
    """
    if x.ndim != 4 or x.shape[1:] != (3, PIXELS, PIXELS):  # noqa: PLR2004
        raise ValueError(f"expected x of shape (B, 3, {PIXELS}, {PIXELS}), got {tuple(x.shape)}")
    if x.isnan().any():
        raise ValueError(f"expected numbers in x, got {int(x.isnan().sum())} NaN")
    return [seen for part in x.split(CHUNK) if len(part) for seen in _look(part)]


def verify(x: Tensor, captions: Sequence[str]) -> list[dict[str, bool]]:
    """Which parts of its caption hold for every picture.

    Args:
        x: Pictures in [-1, 1], (B, 3, 32, 32).
        captions: One for each.

    Raises:
        ValueError: for pictures `look` cannot read, captions outside the grammar, or another
            number of captions than pictures.
    """
    if len(captions) != len(x):
        raise ValueError(f"expected {len(x)} captions, got {len(captions)}")
    said = [parse(c) for c in captions]
    return [parts(c, seen) for c, seen in zip(said, look(x), strict=True)]


def correct(x: Tensor, captions: Sequence[str]) -> Tensor:
    """Whether all of its caption holds for every picture, (B,).

    Raises:
        ValueError: as `verify`.
    """
    return torch.tensor([all(p.values()) for p in verify(x, captions)], dtype=torch.bool)


def _look(x: Tensor) -> list[Seen]:
    picture = (x.detach().float().cpu().clamp(-1, 1).add(1) / 2).permute(0, 2, 3, 1).numpy()
    ground, bare = _background(picture)
    things: list[list[Thing]] = [[] for _ in picture]
    regions = list(_regions(picture, ground))
    for region, found in zip(regions, _read(regions), strict=True):
        things[region.picture] += found
    words = map(_word, ground.mean((1, 2, 3)), bare)
    return [Seen(tuple(t[:MOST_SEEN]), word) for t, word in zip(things, words, strict=True)]


def _word(level: float, bare: float) -> str:
    if bare < BARE:
        return UNKNOWN
    dark, light = LIMITS
    return "dark" if level < dark else "light" if level > light else "grey"


def _background(picture: Array) -> tuple[Array, Array]:
    """Plane through the colourless pixels of every picture, (B, H, W, 3), and their share."""
    across, down = np.meshgrid(AXIS / PIXELS, AXIS / PIXELS)
    basis = np.stack([np.ones_like(across), across, down], -1).reshape(-1, 3)
    p = picture.reshape(len(picture), PIXELS**2, 3)
    away = np.ptp(picture, -1) > PALE
    for _ in range(3):
        weight = 1.0 - binary_dilation(away, NEXT).reshape(p.shape[:2])
        normal = np.einsum("bn,ni,nj->bij", weight, basis, basis) + RIDGE * np.eye(3)
        plane = np.linalg.solve(normal, np.einsum("bn,ni,bnc->bic", weight, basis, p))
        ground = np.clip(basis @ plane, 0, 1).reshape(picture.shape)
        away = np.abs(picture - ground).max(-1) > PALE
    return ground.astype(np.float32), weight.mean(1)


def _regions(picture: Array, ground: Array) -> Iterator[Region]:
    """The MOST_SEEN largest regions of every picture, largest first."""
    toward = LIT * PALETTE - ground[..., None, :]  # (B, H, W, colours, 3)
    differs = (picture - ground)[..., None, :]
    cover = ((differs * toward).sum(-1) / (toward**2).sum(-1)).clip(0, None)
    missed = ((differs - cover[..., None] * toward) ** 2).sum(-1)
    nearest = missed.argmin(-1)
    cover = np.take_along_axis(cover, nearest[..., None], -1)[..., 0]
    classes = np.where(cover > SEED, nearest + 1, 0)
    for b, (p, g) in enumerate(zip(picture, ground, strict=True)):
        labels = label(classes[b], background=0, connectivity=2)
        found = [_region(b, p, g, where) for where in _grown(labels, FRINGE)]
        yield from sorted(found, key=lambda r: -r.coverage.sum())[:MOST_SEEN]


def _grown(labels: Labels, by: int) -> list[NDArray[np.bool_]]:
    """Where each labelled part is, fringe included; without specks."""
    size = np.bincount(labels.ravel())
    whole = expand_labels(np.where((size < SPECK)[labels], 0, labels), by)
    return [whole == i for i in range(1, len(size)) if size[i] >= SPECK]


def _region(b: int, picture: Array, ground: Array, where: NDArray[np.bool_]) -> Region:
    """A region with its own colour, and its coverage by it."""
    p, g = picture[where], ground[where]
    strength = ((p - g) ** 2).sum(-1) ** 0.5
    colour = p[strength >= CORE * strength.max()].mean(0)
    toward = colour - g
    coverage = np.zeros_like(picture[..., 0])
    coverage[where] = (((p - g) * toward).sum(-1) / (toward**2).sum(-1).clip(TINY)).clip(0, 1)
    return Region(b, colour, coverage)


def _read(regions: Sequence[Region]) -> list[list[Thing]]:
    """Every region as one thing; or, where that has no plausible shape, its parts if they do."""
    out = [[thing] for thing in _things(regions)]
    for cut in CUTS:
        odd = [i for i, found in enumerate(out) if len(found) == 1 and found[0].shape == UNKNOWN]
        pieces = [_pieces(regions[i], cut) for i in odd]
        things = iter(_things([p for cut_up in pieces for p in cut_up]))
        for i, cut_up in zip(odd, pieces, strict=True):
            found = list(islice(things, len(cut_up)))
            if found and all(t.shape != UNKNOWN for t in found):
                out[i] = found
    return out


def _pieces(region: Region, cut: Cut) -> list[Region]:
    """A region cut up; none if it stays whole or is too small for two things."""
    cover = region.coverage
    labels = label(cut(cover), background=0, connectivity=1)
    if cover.sum() < TWO or labels.max() < 2:  # noqa: PLR2004
        return []
    return [replace(region, coverage=cover * where) for where in _grown(labels, WIDE)]


def _things(regions: Sequence[Region]) -> list[Thing]:
    """The best shape of every region."""
    if not regions:
        return []
    cover = np.stack([r.coverage for r in regions])
    area = cover.sum((1, 2))
    x, y = cover.sum(1) @ AXIS / area, cover.sum(2) @ AXIS / area
    col, row = np.floor(x).astype(int), np.floor(y).astype(int)
    near, at = _window(cover, row, col), np.stack([x - col, y - row])
    fits = [_fit(near, at, area, s, blur) for blur in BLURS for s in range(len(SHAPES))]
    missed, radius = (np.stack(v, 1) for v in zip(*fits, strict=True))
    missed += ODD * (_beyond(radius) / radius) ** 2
    best = missed.argmin(1)
    out = []
    for i, fit in enumerate(best):
        s, r = fit % len(SHAPES), float(radius[i, fit])
        shape = SHAPES[s] if missed[i, fit] < AGREES else UNKNOWN
        where = float(x[i]), float(y[i]) - SINK[s] * r
        out.append(Thing(shape, _colour(regions[i].colour), _size(r), *where))
    return out


def _window(cover: Array, row: NDArray[np.int64], col: NDArray[np.int64]) -> Array:
    """The pixels of every coverage that lie within REACH of a place, (regions, h, w)."""
    padded = np.pad(cover, ((0, 0), (REACH, REACH), (REACH, REACH)))
    offset = np.arange(2 * REACH) + PIXELS // 2
    rows, cols = row[:, None] + offset, col[:, None] + offset
    return padded[np.arange(len(cover))[:, None, None], rows[:, :, None], cols[:, None, :]]


def _fit(cover: Array, at: Array, area: Array, shape: int, blur: float) -> tuple[Array, Array]:
    """Disagreement of every coverage with one shape, and the radius it would have, (regions,)."""
    x, y = at
    radius = ((area / AREA[shape]) ** 0.5).clip(0, REACH)  # beyond it, no shape is plausible
    for _ in range(3 if blur else 1):
        outline = _outline(x, y - SINK[shape] * radius, radius, shape)
        if blur:  # changes the area it is read with
            outline = _peak(gaussian_filter(outline, (0, blur, blur)))
            radius = (radius * (area / outline.sum((1, 2))) ** 0.5).clip(0, REACH)
    wrong = gaussian_filter(cover - outline, (0, SOFT, SOFT))
    return (wrong**2).sum((1, 2)) / area, radius


def _outline(x: Array, y: Array, radius: Array, shape: int) -> Array:
    """Coverage by one shape in windows with the origin in the middle, (regions, h, w)."""
    place = torch.from_numpy(np.stack([x, y, radius]).astype(np.float32))[..., None, None]
    axis = torch.arange(2 * REACH) + 0.5 - REACH
    which = torch.full((len(x),), shape)
    d = distance(axis[None, :] - place[0], axis[:, None] - place[1], place[2], which)
    return (0.5 - d).clamp(0, 1).numpy()


def _peak(outline: Array) -> Array:
    """Blurred outlines as `_region` would read them: relative to their own core."""
    core = outline >= CORE * outline.max((1, 2), keepdims=True)
    mean = (outline * core).sum((1, 2)) / core.sum((1, 2))
    return (outline / mean[:, None, None]).clip(0, 1)


def _beyond(radius: Array) -> Array:
    """How far radii are from the nearest size, pixels."""
    gaps = [np.maximum(low - radius, radius - high) for low, high in SIZES.values()]
    return np.min(gaps, 0).clip(0, None)


def _colour(rgb: Array) -> str:
    if np.ptp(rgb) < VIVID:
        return UNKNOWN
    alike = PALETTE @ rgb / np.linalg.norm(PALETTE, axis=1)
    return list(COLOURS)[int(alike.argmax())]


def _size(radius: float) -> str:
    small, large = SIZES
    return small if radius < (SIZES[small][1] + SIZES[large][0]) / 2 else large
