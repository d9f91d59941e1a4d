"""MSCOCO captions: the Karpathy test split, or a validation set as published.

    dataset_coco.json                    val2014/COCO_val2014_000000000042.jpg
    annotations/captions_val2017.json    val2017/000000000139.jpg
    annotations/captions_val2014.json    val2014/...

Lin et al., 2014, arXiv:1405.0312; https://cocodataset.org.  Annotations are CC BY 4.0; images
belong to their authors on Flickr, under the terms each chose.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, TypeAdapter

from bench.datasets.captions import Captioned, Read, karpathy, once, retrieval
from bench.datasets.files import parsed
from stitchvm.evaluation import Retrieval

FOLDERS = ("", "val2017", "val2014", "images", "images/val2017", "images/val2014")


class Photo(BaseModel):
    """An image."""

    id: int
    file_name: str


class Caption(BaseModel):
    """What somebody said of one."""

    image_id: int
    caption: str


class Annotations(BaseModel):
    """`captions_val*.json`."""

    images: list[Photo]
    annotations: list[Caption]


def published(path: Path) -> list[Captioned]:
    """Images in the order of the file.

    Raises:
        ValueError: for an id that stands twice, or a caption of an image that is not listed.
    """
    said = parsed(path, TypeAdapter(Annotations))
    texts: dict[int, list[str]] = {}
    for photo in said.images:
        if photo.id in texts:
            raise ValueError(f"expected every image id once in {path}, got {photo.id} again")
        texts[photo.id] = []
    for caption in said.annotations:
        if caption.image_id not in texts:
            raise ValueError(
                f"expected captions of listed images in {path}, got one of {caption.image_id}"
            )
        texts[caption.image_id].append(caption.caption)
    return once([Captioned(p.file_name, tuple(texts[p.id])) for p in said.images], path)


FORMS: dict[str, Read] = {
    "dataset_coco.json": karpathy,
    "annotations/captions_val2017.json": published,
    "annotations/captions_val2014.json": published,
}


def build(
    root: Path, side: int, items: int | None = None, device: torch.device | str = "cpu"
) -> Retrieval:
    """The first images and their captions.

    Raises:
        ValueError: for what is missing or broken.
    """
    return retrieval(root, FORMS, FOLDERS, side, items, device)
