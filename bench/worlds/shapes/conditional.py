"""Scenes of which a caption is true: exact draws from p(scene | caption holds).

Objects of one split are exchangeable and a caption's phrases are disjoint, so objects are drawn
for the phrases in a random order: with probability ~ SAME |S_1 n S_2 ...| / |SEEN| all of one
kind, and ~ (1 - SAME) prod |S_k| / |SEEN|^n each on its own, S_k the kinds that phrase k allows.
Layouts and backgrounds are drawn until the rest of the caption holds.
"""

import torch

from bench.worlds.shapes.captions import Caption, Phrase, holds, possible, seen
from bench.worlds.shapes.scenes import (
    COLOURS,
    MOST,
    SAME,
    SEEN,
    SHAPES,
    SIZES,
    Scenes,
    complete,
)
from stitchvm.streams import derive

AT_ONCE = 512


def draw_for(caption: Caption, split: str, count: int, seed: int = 0) -> Scenes:
    """Scenes of a split of which a caption is true; the same whatever the count.

    Raises:
        ValueError: if the split cannot show it.
    """
    if not possible(caption):
        raise ValueError(f"expected a caption of kinds that {split!r} has, got {str(caption)!r}")
    found: list[Scenes] = []
    attempt = 0
    while sum(map(len, found)) < count:
        rng = torch.Generator().manual_seed(derive(seed, "for", split, str(caption), attempt))
        scenes = _proposed(caption, split, rng)
        held = torch.tensor([holds(caption, s) for s in seen(scenes)])
        found.append(scenes[held])
        attempt += 1
    return Scenes.cat(found)[:count]


def _proposed(caption: Caption, split: str, rng: torch.Generator) -> Scenes:
    """Scenes whose objects the caption names, laid out at random."""
    phrases = [p for p in caption.phrases for _ in range(p.count)]
    n = len(phrases)
    allowed = [_kinds(p) for p in phrases]
    shared = [k for k in allowed[0] if all(k in a for a in allowed)]
    each = (1 - SAME) * torch.tensor([len(a) / len(SEEN) for a in allowed]).prod()
    together = SAME * len(shared) / len(SEEN)
    kinds = torch.zeros(AT_ONCE, MOST, 2, dtype=torch.long)
    for k, of in enumerate(allowed):
        kinds[:, k] = torch.tensor(of)[torch.randint(len(of), (AT_ONCE,), generator=rng)]
    if shared:
        one = torch.tensor(shared)[torch.randint(len(shared), (AT_ONCE, 1), generator=rng)]
        same = torch.rand(AT_ONCE, generator=rng) < together / (together + each)
        kinds = torch.where(same[:, None, None], one, kinds)
    size = torch.randint(2, (AT_ONCE, MOST), generator=rng)
    for k, phrase in enumerate(phrases):
        if phrase.size:
            size[:, k] = list(SIZES).index(phrase.size)
    order = torch.rand(AT_ONCE, n, generator=rng).argsort(1)
    order = torch.cat([order, torch.arange(n, MOST).expand(AT_ONCE, -1)], 1)
    kinds = kinds.gather(1, order[..., None].expand(-1, -1, 2))
    count = torch.full((AT_ONCE,), n)
    return complete(count, kinds, size.gather(1, order), split, rng)


def _kinds(phrase: Phrase) -> list[tuple[int, int]]:
    """Indices of the colours and shapes that fit a phrase."""
    colours = list(COLOURS)
    return [
        (c, s)
        for c, s in SEEN
        if SHAPES[s] == phrase.shape and phrase.colour in {None, colours[c]}
    ]
