"""Evaluation sets of the shapes world, from the first scenes of the `eval` split.

clip         which of the captions of all scenes are true of a scene
hps          which of two pictures a rater chose for a caption, by the rule it learned from
aesthetic    the noiseless rating of a scene
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.worlds.shapes.make.clip import Told
from bench.worlds.shapes.make.preference import graded, pairs_of
from bench.worlds.shapes.ratings import rating
from bench.worlds.shapes.scenes import Scenes, draw, render
from stitchvm.evaluation import Evaluation, Images, Preferences, Ratings, Retrieval

AT_ONCE = 128  # pictures
CAPTIONS, CHOICES = 1, 2  # seeds, as in the exam


def retrieval(items: int, device: str) -> Retrieval:
    """Scenes, and one caption drawn for each; equal captions count once."""
    told, rng = Told(draw("eval", items)), torch.Generator().manual_seed(CAPTIONS)
    texts = list(dict.fromkeys(told.caption(row, rng) for row in range(items)))
    return Retrieval(pictures(told.scenes, device), texts, told.true(texts))


def preferences(items: int, device: str) -> Preferences:
    """A pair for each scene: broken parts of its caption and wear, and what a rater chose."""
    told, rng = Told(draw("eval", items)), torch.Generator().manual_seed(CHOICES)
    x, texts, _, chosen = pairs_of(told, list(range(items)), graded, rng)
    first = torch.arange(items)
    pairs = torch.stack([first + items * ~chosen, first + items * chosen], 1)
    return Preferences(lambda: iter(x.to(device).split(AT_ONCE)), texts, pairs)


def ratings(items: int, device: str) -> Ratings:
    """Scenes, and their ratings without a rater's noise."""
    scenes = draw("eval", items)
    return Ratings(pictures(scenes, device), rating(scenes))


def pictures(scenes: Scenes, device: str) -> Images:
    """Rendered in batches."""

    def rendered() -> Iterator[Tensor]:
        for first in range(0, len(scenes), AT_ONCE):
            yield render(scenes[slice(first, first + AT_ONCE)]).to(device)

    return rendered


EVALUATIONS: dict[str, Callable[[int, str], Evaluation]] = {
    "clip": retrieval,
    "hps": preferences,
    "aesthetic": ratings,
}
