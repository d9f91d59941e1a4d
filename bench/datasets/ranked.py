"""Images that people ranked for a prompt, as pairs of which one was preferred.

A pair of equal rank says nothing and is left out, as the authors of HPSv2 and ImageReward do.
Pairs are taken in rounds, one of each prompt, so that few of them are of many prompts.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch

from bench.datasets.captions import first
from bench.datasets.pictures import Pictures, folder_of
from stitchvm.evaluation import Preferences


class Ranked(NamedTuple):
    """A prompt, image files made for it, and what place each got: 1 is best."""

    prompt: str
    files: tuple[str, ...]
    rank: tuple[float, ...]


class Pair(NamedTuple):
    """A prompt, the file that was preferred, and the other."""

    prompt: str
    preferred: str
    other: str


def whole(found: Sequence[Ranked], path: Path) -> list[Ranked]:
    """Rankings that say a place of every image.

    Raises:
        ValueError: naming one that does not, or an image that stands twice in one.
    """
    for k, one in enumerate(found):
        if len(one.files) != len(one.rank):
            raise ValueError(
                f"{path}: entry {k}: expected a rank of each of {len(one.files)} images, got "
                f"{len(one.rank)}"
            )
        if len(set(one.files)) < len(one.files):
            raise ValueError(f"{path}: entry {k}: expected every image once, got {one.files}")
    return list(found)


def pairs(found: Sequence[Ranked]) -> list[Pair]:
    """All pairs of unequal rank, in rounds."""
    rounds = zip_longest(*(list(_of_prompt(k, one)) for k, one in enumerate(found)))
    return [pair for some in rounds for pair in some if pair is not None]


def _of_prompt(k: int, one: Ranked) -> Iterator[Pair]:
    """In an order of its own: images may be listed by the model that made them."""
    order = list(combinations(range(len(one.files)), 2))
    random.Random(f"pairs of {k}").shuffle(order)
    for i, j in order:
        if one.rank[i] != one.rank[j]:
            better, worse = (i, j) if one.rank[i] < one.rank[j] else (j, i)
            yield Pair(one.prompt, one.files[better], one.files[worse])


def preferences(
    found: Sequence[Ranked],
    root: Path,
    folders: Sequence[str],
    side: int,
    items: int | None,
    device: torch.device | str,
) -> Preferences:
    """The first pairs, and no other images than theirs.

    Args:
        found: Rankings.
        root: The data set's folder.
        folders: Where images may lie below it.
        side: Of images, in pixels.
        items: How many pairs; None for all.
        device: Where to.

    Raises:
        ValueError: if images are missing, or there are too few pairs.
    """
    chosen = first(pairs(found), items, f"pairs in {root}")
    if not chosen:
        raise ValueError(f"expected pairs of which one was preferred in {root}, got none")
    names = list(dict.fromkeys(name for pair in chosen for name in pair[1:]))
    row = {name: k for k, name in enumerate(names)}
    folder = folder_of(root, folders, names[0])
    return Preferences(
        Pictures(tuple(folder / name for name in names), side, device),
        [pair.prompt for pair in chosen],
        torch.tensor([[row[pair.preferred], row[pair.other]] for pair in chosen]),
    )
