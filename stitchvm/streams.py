"""Randomness with one stream per row, so that batch size and particle count change no number.

A stream is a seed; its generator is made when first drawn from.  Child streams are a function of
the parent's seed and a label alone, whatever was drawn before, so rollout 3 of a latent sees the
same noise whether it runs with 4 rollouts or 64, alone or in a batch.  Torch's CPU generators keep
32 bits of a seed: of 100,000 streams about one pair is equal.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed from a parent seed and labels (SHA-256 of their text)."""
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Streams:
    """B independent random streams, one per row of a batch.

    Args:
        seeds: One seed per row.
        device: Where to draw.  Streams on different devices differ; draw on the CPU (the default)
            for numbers that are the same everywhere.
    """

    def __init__(self, seeds: Iterable[int], device: str | torch.device = "cpu") -> None:
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self._generators: list[torch.Generator] | None = None

    @classmethod
    def of(cls, seed: int, *labels: object, rows: int) -> "Streams":
        """Streams for rows 0 .. rows - 1 of whatever the labels name."""
        return cls(derive(seed, *labels, row) for row in range(rows))

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Streams":
        return Streams(self.seeds[rows], self.device)

    def of_rows(self, rows: Iterable[int]) -> "Streams":
        """The streams of some rows, from their beginning."""
        return Streams((self.seeds[row] for row in rows), self.device)

    def child(self, *labels: object) -> "Streams":
        """One child stream per row; labels say what it is for."""
        return Streams((derive(s, *labels) for s in self.seeds), self.device)

    def split(self, indices: Iterable[int]) -> "Streams":
        """Children for each index, index-major: row n * B + b is index n of row b."""
        return Streams((derive(s, n) for n in indices for s in self.seeds), self.device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal draws of the shape, dtype and device of like, (B, *latent).

        Raises:
            ValueError: if like has another number of rows.
        """
        if len(like) != len(self):
            raise ValueError(f"expected {len(self)} rows, one per stream, got {len(like)}")
        out = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        for row, generator in zip(out.unbind(0), self._ready(), strict=True):
            row.normal_(generator=generator)
        return out.to(like.device)

    def uniform(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """One uniform draw on [0, 1) per row, (B,)."""
        draws = [
            torch.rand((), generator=g, dtype=dtype, device=self.device) for g in self._ready()
        ]
        return torch.stack(draws)

    def _ready(self) -> list[torch.Generator]:
        if self._generators is None:
            self._generators = [torch.Generator(self.device).manual_seed(s) for s in self.seeds]
        return self._generators
