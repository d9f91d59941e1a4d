"""Test prompts by kind, as in GenEval: single, colours, two, counting, position, attribution.

A prompt belongs to the `tune` or the `eval` set by the parity of its digest, so that nothing is
chosen on the prompts that are reported.
"""

import hashlib
from functools import cache
from typing import Literal

from bench.worlds.shapes.captions import KIND_NAMES, parse, seen, told
from bench.worlds.shapes.scenes import draw

PER_KIND = 4  # prompts of each kind in the world's own list
SCENES = 512  # drawn at a time to be captioned
ENOUGH = 4096  # scenes without a new prompt that end the search


def prompt_set(split: Literal["tune", "eval"], per_kind: int = PER_KIND) -> tuple[str, ...]:
    """Prompts of a set, the kinds taking turns; a longer list begins with the shorter one.

    Captions of scenes of that split, without background or place.

    Raises:
        ValueError: for another set, or more prompts than the grammar has of a kind.
    """
    if split not in {"tune", "eval"}:
        raise ValueError(f"expected the tune or eval prompts, got {split!r}")
    found: dict[str, list[str]] = {kind: [] for kind in KIND_NAMES}
    scenes = 0
    fresh = 0  # scenes since the last new prompt
    while min(map(len, found.values())) < per_kind:
        if fresh > ENOUGH:
            kind = min(found, key=lambda kind: len(found[kind]))
            raise ValueError(
                f"expected at most {len(found[kind])} {split} prompts of each kind, as there are "
                f"of {kind!r}, got {per_kind}"
            )
        scenes += SCENES
        fresh += SCENES
        for scene in seen(draw(split, scenes))[scenes - SCENES :]:
            told_of = sorted(told(scene), key=_order)
            for text in told_of:
                caption = parse(text)
                mine = found[caption.kind]
                if (caption.background or caption.place or text in mine) or _split(text) != split:
                    continue
                if len(mine) < per_kind:
                    mine.append(text)
                    fresh = 0
                break
    return tuple(found[kind][k] for k in range(per_kind) for kind in KIND_NAMES)


@cache
def training_set(count: int) -> tuple[str, ...]:
    """Captions to train generators on: of training scenes, and neither `tune` nor `eval` prompts.

    They are as likely as scenes are that they tell of; none belongs to the `eval` set, shown or
    not, and a longer list begins with the shorter one.
    """
    kept: list[str] = []
    known = set(prompt_set("tune"))
    scenes = 0
    while len(kept) < count:
        scenes += SCENES
        for scene in seen(draw("train", scenes))[scenes - SCENES :]:
            for text in sorted(told(scene), key=_order):
                caption = parse(text)
                plain = not (caption.background or caption.place)
                if plain and text not in known and _split(text) == "tune":
                    kept.append(text)
                    known.add(text)
                    break
    return tuple(kept[:count])


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _split(text: str) -> str:
    return "tune" if _order(text)[0] % 2 else "eval"
