"""Pictures of a data set: found when they are named, decoded when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.images import read

AT_ONCE = 32


@dataclass(frozen=True)
class Pictures:
    """Image files as an evaluation set's images, in batches of a few.

    Attributes:
        files: Which.
        side: Of what comes out, in pixels.
        device: Where to.

    Raises:
        ValueError: naming the first that is missing.
    """

    files: tuple[Path, ...]
    side: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        missing = [path for path in self.files if not path.is_file()]
        if missing:
            raise ValueError(
                f"expected {len(self.files)} images, got no file {missing[0]} "
                f"({len(missing)} are missing)"
            )

    def __call__(self) -> Iterator[Tensor]:
        """Batches (b, 3, side, side) in [-1, 1], the same every time."""
        for first in range(0, len(self.files), AT_ONCE):
            part = self.files[first : first + AT_ONCE]
            yield torch.stack([read(path, (self.side, self.side)) for path in part]).to(
                self.device
            )


def folder_of(root: Path, names: Sequence[str], file: str) -> Path:
    """The folder below a root in which a file lies.

    Raises:
        ValueError: if none of the usual ones has it.
    """
    for name in names:
        if (root / name / file).is_file():
            return root / name
    usual = ", ".join(f"{root / name}" for name in names)
    raise ValueError(f"expected the image {file} in one of {usual}, found it in none")
