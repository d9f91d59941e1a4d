"""Clean images to learn from: a world's own, or those of a folder.

From a folder every tenth image, by the digest of its name, is held out; the shorter side is
resized to the backbone's image, bicubic, and the middle is cut out.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from bench import cache
from stitchvm.backbone import NULL
from stitchvm.world import Batch, Shown, Split, World

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
HELD_EVERY = 10  # one in so many is held out
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as PIL says so
AT_ONCE = 64  # images in a batch, if they are small
PIXELS = 8 * 1024**2  # of a batch: activations of a published VAE take 2 to 4 kB a pixel


class Images(ABC):
    """Where clean images come from.

    Attributes:
        digest: Of what they are.
        prompted: Whether each has a prompt that is true of it.
    """

    digest: str
    prompted: bool

    @abstractmethod
    def shown(self, split: Split, count: int) -> Iterator[Shown]:
        """Images in batches, the same whenever asked.

        Args:
            split: `train`, or `held`.
            count: How many.
        """

    @abstractmethod
    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """The same batches, for those who do not need them all; arguments as in `shown`."""


def at_once(size: tuple[int, int], most: int = AT_ONCE) -> int:
    """How many images of a size (H, W) are encoded together."""
    return max(1, min(most, PIXELS // (size[0] * size[1])))


@dataclass(frozen=True)
class WorldImages(Images):
    """A world's own.

    Attributes:
        world: Whose.
    """

    world: World

    @cached_property
    def prompted(self) -> bool:  # type: ignore[override]
        """Whether its pictures have prompts: those that it reads from a folder have none."""
        return NULL not in next(self.world.images("train", 1)).c

    @property
    def digest(self) -> str:  # type: ignore[override]
        """The world's."""
        return self.world.digest

    def shown(self, split: Split, count: int) -> Iterator[Shown]:
        """As the world gives them."""
        return self.world.images(split, count)

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """As the world gives them."""
        return self.world.batches(split, count)


@dataclass(frozen=True)
class FolderImages(Images):
    """Those of a folder and the folders in it.

    Attributes:
        folder: Where.
        size: Of the images that come out, (H, W).
        device: Where to.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
    """

    folder: Path
    size: tuple[int, int]
    device: torch.device | str = "cpu"
    prompted = False

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"expected a folder of images, got no folder {self.folder}")
        if not self.files:
            raise FileNotFoundError(
                f"expected at least one image ({', '.join(SUFFIXES)}) in {self.folder}, got none"
            )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All images, in order."""
        found = (p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        return tuple(sorted(found))

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Of names and contents."""
        known = hashlib.sha256(f"{self.size}".encode())
        of = cache.digests(self.folder, self.files)
        for path in self.files:
            known.update(f"\n{path.relative_to(self.folder).as_posix()} ".encode())
            known.update(bytes.fromhex(of[path]))
        return known.hexdigest()[:16]

    def shown(self, split: Split, count: int) -> Iterator[Shown]:
        """The first images of a split.

        Raises:
            ValueError: if it has fewer, or a file is no image.
        """
        return (batch.read() for batch in self.batches(split, count))

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """The same, each read when it is asked for.

        Raises:
            ValueError: as `shown`.
        """
        files, each = self.of(split), at_once(self.size)
        if len(files) < count:
            raise ValueError(
                f"expected {count} images for {split!r} in {self.folder}, got {len(files)}"
            )
        for first in range(0, count, each):
            part = files[first : min(first + each, count)]
            yield Batch(len(part), partial(self._batch, part))

    def _batch(self, files: Sequence[Path]) -> Shown:
        x_0 = torch.stack([self.read(path) for path in files])
        return Shown(x_0.to(self.device), [NULL] * len(files))

    def of(self, split: Split) -> list[Path]:
        """The files of a split, in order."""
        return [path for path in self.files if self._held(path) == (split == "held")]

    def _held(self, path: Path) -> bool:
        name = path.relative_to(self.folder).as_posix()
        return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_EVERY == 0

    def read(self, path: Path) -> torch.Tensor:
        """One image, (3, H, W) in [-1, 1].

        Raises:
            ValueError: if the file is none.
        """
        return read(path, self.size)


def read(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """An image file, (3, H, W) in [-1, 1].

    Args:
        path: Where.
        size: (H, W).

    Raises:
        ValueError: if it is no image, or not whole.
    """
    try:
        with Image.open(path) as image:
            return fitted(image, size)
    except BROKEN as error:
        raise ValueError(f"expected an image in {path}, got {error}") from error


def fitted(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """The middle of an image in a size (H, W), resized, bicubic; (3, H, W) in [-1, 1]."""
    height, width = size
    fit = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fit)).permute(2, 0, 1).float() / 127.5 - 1


def size_of(world: World) -> tuple[tuple[int, int], torch.device]:
    """The size (H, W) of the images that a world's backbone decodes to, and where they are."""
    with torch.no_grad():
        x = world.backbone.decode(world.backbone.empty_latents(1).zero_())
    return (x.shape[-2], x.shape[-1]), x.device


def of_world(world: World, folder: Path | None) -> Images:
    """A world's own images, or a folder's in the size that its backbone decodes to."""
    return WorldImages(world) if folder is None else FolderImages(folder, *size_of(world))
