"""Clean images of a data set on the hub, streamed: none of it is kept in memory or on disk.

An address is `hub:OWNER/NAME@COMMIT`, or `hub:OWNER/NAME@COMMIT:SPLIT`.  A commit, because a
branch may hold other images tomorrow.  Needs the package `datasets`.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench.images import (
    BROKEN,
    HELD_EVERY,
    FolderImages,
    Images,
    at_once,
    fitted,
    of_world,
    size_of,
)
from stitchvm.backbone import NULL
from stitchvm.models.refusals import from_the_hub
from stitchvm.world import Batch, Shown, Split, World

PREFIX = "hub:"
ADDRESS = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(:(?P<split>[\w.-]+))?"
)
COLUMN = "image"


@dataclass(frozen=True)
class HubImages(Images):
    """The column `image` of a data set.

    Attributes:
        address: Where.
        size: Of the images that come out, (H, W).
        device: Where to.

    Raises:
        ValueError: if the address is none.
    """

    address: str
    size: tuple[int, int]
    device: torch.device | str = "cpu"
    prompted = False

    def __post_init__(self) -> None:
        if ADDRESS.fullmatch(self.address) is None:
            raise ValueError(
                f"expected hub:OWNER/NAME@COMMIT or hub:OWNER/NAME@COMMIT:SPLIT, the commit in 40 "
                f"hex digits as the data set's page lists it, got {self.address!r}"
            )

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Of address and size: a commit's content is fixed."""
        return hashlib.sha256(f"{self.address} {self.size}".encode()).hexdigest()[:16]

    def shown(self, split: Split, count: int) -> Iterator[Shown]:
        """The first images of a split; every tenth, by a digest of its place, is held out.

        Raises:
            ValueError: if it has fewer, one is broken, or the hub does not give them.
        """
        return (batch.read() for batch in self.batches(split, count))

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """The same, decoded when they are asked for.

        Raises:
            ValueError: as `shown`.
        """
        part: list[tuple[int, dict[str, Any]]] = []
        seen, each = 0, at_once(self.size)
        rows = (kept for kept in enumerate(self._rows()) if _held(kept[0]) == (split == "held"))
        for row in islice(rows, count):
            part.append(row)
            seen += 1
            if len(part) == each or seen == count:
                yield Batch(len(part), partial(self._decoded, part))
                part = []
        if seen < count:
            raise ValueError(
                f"expected {count} images for {split!r} in {self.address}, got {seen}"
            )

    def _decoded(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> Shown:
        decode = _package(self.address).Image().decode_example
        x_0 = torch.stack([self._image(k, row, decode) for k, row in rows])
        return Shown(x_0.to(self.device), [NULL] * len(rows))

    def _image(
        self, k: int, row: dict[str, Any], decode: Callable[[Any], Image.Image]
    ) -> torch.Tensor:
        if COLUMN not in row:
            raise ValueError(
                f"expected a column {COLUMN!r} in {self.address}, got {', '.join(sorted(row))}"
            )
        try:
            return fitted(decode(row[COLUMN]), self.size)
        except BROKEN as error:
            raise ValueError(
                f"expected an image in row {k} of {self.address}, got {error}"
            ) from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the whole data set, their images as they are stored."""
        datasets, match = _package(self.address), ADDRESS.fullmatch(self.address)
        assert match is not None  # checked when it was made
        with from_the_hub(match["name"], match["commit"], "data set"):
            found = datasets.load_dataset(
                match["name"],
                revision=match["commit"],
                split=match["split"] or "train",
                streaming=True,
            )
            yield from found.decode(False)  # noqa: FBT003 - theirs


def _package(address: str) -> Any:
    """The package `datasets`.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise ValueError(
            f"expected the package `datasets` to read {address}, found none: "
            f"pip install 'stitchvm-bench[hub]'"
        ) from None


def _held(k: int) -> bool:
    return int(hashlib.sha256(f"{k}".encode()).hexdigest(), 16) % HELD_EVERY == 0


def images_from(source: str, size: tuple[int, int], device: torch.device | str) -> Images:
    """Images of a folder or of the hub.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: for an address that is none.
    """
    if source.startswith(PREFIX):
        return HubImages(source, size, device)
    return FolderImages(Path(source).expanduser(), size, device)


def images_of(world: World, source: str | None) -> Images:
    """A world's own images, or others in the size of those."""
    if source is None or not source.startswith(PREFIX):
        return of_world(world, None if source is None else Path(source))
    return HubImages(source, *size_of(world))
