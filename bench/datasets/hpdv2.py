"""HPDv2's test set: images of many generators, ranked by ten people.

    test.json    [{"prompt": ..., "image_path": [...], "rank": [...], "raw_annotations": [...]}]
    test/        the images

`rank` is the raters' average, lower is better; without it their own ranks are averaged.  Wu et
al., 2023, arXiv:2306.09341; https://huggingface.co/datasets/ymhao/HPDv2, there listed as
Apache-2.0 (`test.tar.gz` has the images).
"""

from pathlib import Path
from statistics import fmean

import torch
from pydantic import AliasChoices, BaseModel, Field, TypeAdapter

from bench.datasets.files import parsed
from bench.datasets.ranked import Ranked, preferences, whole
from stitchvm.evaluation import Preferences

FOLDERS = ("test", "", "images")


class Rater(BaseModel):
    """One person's places."""

    rank: list[float]


class Entry(BaseModel):
    """A prompt."""

    prompt: str
    image_path: list[str]
    rank: list[float] = Field(default_factory=list)
    raters: list[Rater] = Field(
        default_factory=list,
        validation_alias=AliasChoices("raw_annotations", "raw_annotation"),
    )

    @property
    def places(self) -> tuple[float, ...]:
        """Of every image."""
        return tuple(self.rank or map(fmean, zip(*(r.rank for r in self.raters), strict=True)))


def rankings(path: Path) -> list[Ranked]:
    """All of `test.json`.

    Raises:
        ValueError: if it is cut off or of another form.
    """
    entries = parsed(path, TypeAdapter(list[Entry]))
    return whole([Ranked(e.prompt, tuple(e.image_path), e.places) for e in entries], path)


def build(
    root: Path, side: int, items: int | None = None, device: torch.device | str = "cpu"
) -> Preferences:
    """The first pairs.

    Raises:
        ValueError: for what is missing or broken.
    """
    return preferences(rankings(root / "test.json"), root, FOLDERS, side, items, device)
