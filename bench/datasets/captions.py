"""Captioned images as a retrieval: which text is true of which image (arXiv:2605.19804, Table 5).

Equal captions count once, and are true of every image that has one of them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from pydantic import BaseModel, TypeAdapter

from bench.datasets.files import one_of, parsed
from bench.datasets.pictures import Pictures, folder_of
from stitchvm.evaluation import Retrieval

T = TypeVar("T")


class Captioned(NamedTuple):
    """An image's file, below the folder of images, and what people said of it."""

    file: str
    texts: tuple[str, ...]


Read = Callable[[Path], list[Captioned]]


class Sentence(BaseModel):
    """One caption as typed."""

    raw: str


class Split(BaseModel):
    """An image of a Karpathy split."""

    filename: str
    split: str
    sentences: list[Sentence]
    filepath: str = ""


class Karpathy(BaseModel):
    """`dataset_coco.json` and `dataset_flickr30k.json`."""

    images: list[Split]


def karpathy(path: Path) -> list[Captioned]:
    """The test images of a Karpathy split, in its order (arXiv:1412.2306).

    Raises:
        ValueError: if the file is cut off, of another form, or has no test images.
    """
    images = parsed(path, TypeAdapter(Karpathy)).images
    found = [
        Captioned(f"{i.filepath}/{i.filename}".lstrip("/"), tuple(s.raw for s in i.sentences))
        for i in images
        if i.split == "test"
    ]
    return once(found, path)


def once(found: Sequence[Captioned], path: Path) -> list[Captioned]:
    """Images that stand once in their list, each with a caption.

    Raises:
        ValueError: naming one that stands twice or has no caption, or if there is none.
    """
    if not found:
        raise ValueError(f"expected captioned images in {path}, got none")
    seen: set[str] = set()
    for image in found:
        if image.file in seen:
            raise ValueError(f"expected every image once in {path}, got {image.file} again")
        if not any(words(text) for text in image.texts):
            raise ValueError(f"expected a caption of every image in {path}, got {image}")
        seen.add(image.file)
    return list(found)


def words(text: str) -> str:
    """A caption without the space and line breaks round and in it."""
    return re.sub(r"\s+", " ", text).strip()


def retrieval(
    root: Path,
    forms: Mapping[str, Read],
    folders: Sequence[str],
    side: int,
    items: int | None,
    device: torch.device | str,
) -> Retrieval:
    """The first images of a captioned set and all their captions.

    Args:
        root: Its folder.
        forms: Names of the files that may hold the captions, the preferred first, and how each
            is read.
        folders: Where images may lie below the root.
        side: Of images, in pixels.
        items: How many images; None for all.
        device: Where to.

    Raises:
        ValueError: if captions or images are missing or broken, or there are too few.
    """
    name = one_of(root, forms)
    every = forms[name](root / name)
    chosen = first(every, items, f"images in {root / name}")
    folder = folder_of(root, folders, chosen[0].file)
    said = [list(dict.fromkeys(w for w in map(words, i.texts) if w)) for i in chosen]
    texts = list(dict.fromkeys(text for some in said for text in some))
    place = {text: k for k, text in enumerate(texts)}
    true = torch.zeros(len(chosen), len(texts), dtype=torch.bool)
    for row, some in enumerate(said):
        true[row, [place[text] for text in some]] = True
    files = tuple(folder / image.file for image in chosen)
    return Retrieval(Pictures(files, side, device), texts, true)


def first(every: Sequence[T], items: int | None, what: str) -> Sequence[T]:
    """The first so many.

    Raises:
        ValueError: if there are fewer.
    """
    if items is not None and not 0 < items <= len(every):
        raise ValueError(f"expected between 1 and {len(every)} {what}, got {items}")
    return every[:items]


def gathered(pairs: Iterable[tuple[str, str]], path: Path) -> list[Captioned]:
    """Images from a list of files and captions, one caption a line.

    Raises:
        ValueError: if there is none.
    """
    found: dict[str, list[str]] = {}
    for file, text in pairs:
        found.setdefault(file, []).append(text)
    return once([Captioned(file, tuple(texts)) for file, texts in found.items()], path)
