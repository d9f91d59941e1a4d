"""ImageReward's test set: images of one generator, ranked by trained raters.

    data/test.json      [{"id": ..., "prompt": ..., "generations": [...], "ranking": [...]}]
    data/test_images/   part-005658/images/0040/45b0de4d-....webp

Lower is better.  Its accuracy is over all 6399 pairs of unequal rank; there a reward's tie is
wrong, here half right.  Xu et al., 2023, arXiv:2304.05977; the list is in
https://github.com/THUDM/ImageReward, images are in
https://huggingface.co/datasets/THUDM/ImageRewardDB.  Apache-2.0.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, TypeAdapter

from bench.datasets.files import one_of, parsed
from bench.datasets.ranked import Ranked, preferences, whole
from stitchvm.evaluation import Preferences

LISTS = ("data/test.json", "test.json")
FOLDERS = ("data/test_images", "test_images", "images", "")


class Entry(BaseModel):
    """A prompt."""

    id: str
    prompt: str
    generations: list[str]
    ranking: list[float]


def rankings(path: Path) -> list[Ranked]:
    """All of `test.json`.

    Raises:
        ValueError: if it is cut off, of another form, or an id stands twice.
    """
    entries = parsed(path, TypeAdapter(list[Entry]))
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise ValueError(f"expected every id once in {path}, got {entry.id} again")
        seen.add(entry.id)
    found = [Ranked(e.prompt, tuple(e.generations), tuple(e.ranking)) for e in entries]
    return whole(found, path)


def build(
    root: Path, side: int, items: int | None = None, device: torch.device | str = "cpu"
) -> Preferences:
    """The first pairs.

    Raises:
        ValueError: for what is missing or broken.
    """
    found = rankings(root / one_of(root, LISTS))
    return preferences(found, root, FOLDERS, side, items, device)
