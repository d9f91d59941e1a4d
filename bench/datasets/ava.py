"""AVA: photographs that people rated from 1 to 10.

    AVA.txt            index, image id, counts of the ratings 1 ... 10, two tags, challenge
    images/953619.jpg

Neighbours in the list are of one challenge, so images are taken in the order of a digest of their
ids.  Murray et al., 2012, CVPR.  For research; images belong to their authors on dpchallenge.com.
"""

import hashlib
from pathlib import Path

import torch

from bench.datasets.captions import first
from bench.datasets.files import lines
from bench.datasets.pictures import Pictures, folder_of
from stitchvm.evaluation import Ratings

FOLDERS = ("images", "image", "")
GRADES = range(1, 11)
FIELDS = 2 + len(GRADES) + 2 + 1


def ratings(path: Path) -> dict[str, float]:
    """Mean rating by image id.

    Raises:
        ValueError: for a line of another form, an id that stands twice, or one nobody rated.
    """
    found: dict[str, float] = {}
    for k, line in enumerate(lines(path), 1):
        if not (fields := line.split()):
            continue
        if len(fields) != FIELDS or not all(field.isdigit() for field in fields):
            raise ValueError(f"{path}:{k}: expected {FIELDS} counts and ids, got {line[:60]!r}")
        name, counts = fields[1], [int(field) for field in fields[2 : 2 + len(GRADES)]]
        if name in found:
            raise ValueError(f"{path}:{k}: expected every image once, got {name} again")
        if not sum(counts):
            raise ValueError(f"{path}:{k}: expected a rating of {name}, got none")
        found[name] = sum(g * n for g, n in zip(GRADES, counts, strict=True)) / sum(counts)
    if not found:
        raise ValueError(f"expected rated images in {path}, got none")
    return found


def build(
    root: Path, side: int, items: int | None = None, device: torch.device | str = "cpu"
) -> Ratings:
    """Some images and their mean ratings.

    Raises:
        ValueError: for what is missing or broken.
    """
    every = ratings(root / "AVA.txt")
    order = sorted(every, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = first(order, items, f"images in {root / 'AVA.txt'}")
    folder = folder_of(root, FOLDERS, f"{chosen[0]}.jpg")
    files = tuple(folder / f"{name}.jpg" for name in chosen)
    rated = torch.tensor([every[name] for name in chosen])
    return Ratings(Pictures(files, side, device), rated)
