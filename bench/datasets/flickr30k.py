"""Flickr30K captions: the Karpathy test split, or all images as published.

    dataset_flickr30k.json     flickr30k-images/1007129816.jpg
    results_20130124.token     1000092795.jpg#0<TAB>Two young guys ...
    results.csv                image_name| comment_number| comment
    captions.txt               image,caption

Young et al., 2014; https://shannon.cs.illinois.edu/DenotationGraph.  For non-commercial research
and education; images belong to their authors on Flickr.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from bench.datasets.captions import Captioned, Read, gathered, karpathy, retrieval
from bench.datasets.files import lines, table
from stitchvm.evaluation import Retrieval

FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "Images", "")


def tokens(path: Path) -> list[Captioned]:
    """`name.jpg#k`, a tab and a caption a line.

    Raises:
        ValueError: for a line of another form.
    """
    return gathered(_tokens(path), path)


def _tokens(path: Path) -> Iterator[tuple[str, str]]:
    for k, line in enumerate(lines(path), 1):
        if not line:
            continue
        place, tab, caption = line.partition("\t")
        file, sharp, _ = place.rpartition("#")
        if not (tab and sharp):
            raise ValueError(f"{path}:{k}: expected NAME.jpg#K<TAB>CAPTION, got {line[:60]!r}")
        yield file, caption


def results(path: Path) -> list[Captioned]:
    """The columns that are parted by bars.

    Raises:
        ValueError: for a row of another form.
    """
    rows = table(path, ("image_name", "comment"), delimiter="|")
    return gathered(((file, caption) for file, caption in rows), path)


def captions(path: Path) -> list[Captioned]:
    """The columns that are parted by commas.

    Raises:
        ValueError: for a row of another form.
    """
    return gathered(((file, said) for file, said in table(path, ("image", "caption"))), path)


FORMS: dict[str, Read] = {
    "dataset_flickr30k.json": karpathy,
    "results_20130124.token": tokens,
    "results.csv": results,
    "captions.txt": captions,
}


def build(
    root: Path, side: int, items: int | None = None, device: torch.device | str = "cpu"
) -> Retrieval:
    """The first images and their captions.

    Raises:
        ValueError: for what is missing or broken.
    """
    return retrieval(root, FORMS, FOLDERS, side, items, device)
