"""Latents and targets of clean images on disk, made once for all that learns from them.

<folder>/latents-<digest>/    z_0 and prompts, the same for every reward
<folder>/rollouts-<digest>/   what the generator makes of the same prompts, step by step
<folder>/targets-<digest>/    what a reward makes of the clean images

A folder is named by the digest of all that it depends on.  It holds some images a file, each there
whole or not at all: what was killed goes on where it was, and processes make them together.  None
is read into memory at once: of SD 3.5 and CLIP ViT-L an image takes 3.4 MB.
"""

import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.cell import digest
from bench.images import Images, at_once
from bench.report import numbers
from bench.spent import Amount, of, read, total
from stitchvm.path import time_grid
from stitchvm.sample import NU, Sde
from stitchvm.saved import put
from stitchvm.search import Source
from stitchvm.streams import Streams, derive
from stitchvm.teacher import Prepared, Rolled, Rows, rolled
from stitchvm.workers import ALONE, Workers
from stitchvm.world import Batch, Shown, Split, World

Tensors = dict[str, Tensor]
Make = Callable[[int, Shown], Tensors]  # of a batch whose first image has that place
About = dict[str, Any]

PART = 128  # images in a file, if batches are smaller
WHOLE, NEW = "whole.json", ".new"
STALE = 3600.0  # seconds after which nobody still writes a file
AT_ONCE = 128  # latents decoded together, if they are small
ENLARGED = 8  # a latent's pixel on each side, in a published VAE
KERNEL, STEPS = "flow_grpo", 8  # whose rollouts: the sampler that alignment trains with
ROLLED = f"{KERNEL} from t = 1, {STEPS} steps"  # of which 8 t are left at t


class Parts:
    """Rows of a tensor that lies in several files, each mapped into memory.

    Args:
        parts: Of the files, in order.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self._starts = [0, *accumulate(len(part) for part in self.parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        found = self.parts[0].new_empty(len(rows), *self.parts[0].shape[1:])
        for at, row in enumerate(rows.tolist()):
            k = bisect_right(self._starts, row) - 1
            found[at] = self.parts[k][row - self._starts[k]]
        return found


class Found(NamedTuple):
    """What a folder holds: tensors by name, and a prompt for each row."""

    tensors: dict[str, Parts]
    c: list[str]


@dataclass(frozen=True)
class Shelf:
    """Prepared images of a world.

    Attributes:
        world: Whose backbone and rewards.
        images: Where the images come from.
        folder: Where they are kept.
        workers: The processes that make them together.
    """

    world: World
    images: Images
    folder: Path
    workers: Workers = ALONE

    def get(
        self, reward: str, count: int, source: Source = "pixels", split: Split = "train"
    ) -> Prepared:
        """Latents, targets and prompts of images; made where they are missing.

        Args:
            reward: Name of the teacher.
            count: Images.
            source: What the teacher sees.
            split: Which images.

        Raises:
            ValueError: if there is no room for them.
        """
        about, follows = self._about(split, count), self._features(reward)
        batches = self.images.batches(split, count)
        z_0, c = self._kept("latents", about, batches, self._latents, follows)
        shown = self.images.batches(split, count)
        if source == "latents":
            shown = self._decoded(z_0["z_0"], c)
        of = self._targets({**about, "reward": reward, "source": source}, reward, shown)
        return Prepared(z_0["z_0"], of["tokens"], of["embedding"], c)

    def rollouts(self, reward: str, count: int, split: Split = "train") -> Rolled:
        """The generator's own rollouts, and targets of what they end in.

        Args:
            reward: Name of the teacher.
            count: Rollouts, each for the prompt of an image.
            split: Of which images.

        Raises:
            ValueError: if there is no room for them.
        """
        about = self._walks(split, count)
        times, rng = time_grid(STEPS), Streams.of(derive(0, "rollouts", split), rows=count)
        sampler = Sde(self.world.backbone.velocity, NU[KERNEL])

        def walked(first: int, shown: Shown) -> Tensors:
            own = Streams(rng.seeds[first : first + len(shown.c)])
            z = own.child("eps").normal(self.world.backbone.empty_latents(len(shown.c)))
            walk = rolled(sampler, z, times, shown.c, own.child("walk"))
            return {"z_t": walk[:, 1:-1].flatten(0, 1), "z_0": walk[:, -1]}

        batches, follows = self.images.batches(split, count), self._features(reward)
        walks, c = self._kept("rollouts", about, batches, walked, follows)
        of = self._targets({**about, "reward": reward}, reward, self._decoded(walks["z_0"], c))
        return Rolled(walks["z_t"], times[1:-1], of["tokens"], of["embedding"], c)

    def spent(
        self, reward: str, count: int, source: Source = "pixels", split: Split = "train"
    ) -> Amount | None:
        """What preparing images took; None where nobody knows.

        Arguments as in `get`.
        """
        about = self._about(split, count)
        return _spent(
            self._place("latents", about),
            self._place("targets", {**about, "reward": reward, "source": source}),
        )

    def spent_on_rollouts(self, reward: str, count: int, split: Split = "train") -> Amount | None:
        """The same of rollouts."""
        about = self._walks(split, count)
        targets = self._place("targets", {**about, "reward": reward})
        return _spent(self._place("rollouts", about), targets)

    def _walks(self, split: Split, count: int) -> About:
        """What rollouts depend on."""
        return {**self._about(split, count), "kernel": KERNEL, "steps": STEPS}

    def _place(self, kind: str, about: About) -> Path:
        return self.folder / f"{kind}-{digest({**about, 'part': PART})}"

    def _about(self, split: Split, count: int) -> About:
        about: About = {"world": self.world.digest, "split": split, "count": count}
        if self.images.digest != self.world.digest:
            about["images"] = self.images.digest
        return about

    def _latents(self, first: int, shown: Shown) -> Tensors:
        del first
        return {"z_0": self.world.backbone.encode(shown.x_0)}

    def _targets(self, about: About, reward: str, shown: Iterable[Batch]) -> dict[str, Parts]:
        """What the teacher makes of images."""
        return self._kept("targets", about, shown, self._features(reward)).tensors

    def _features(self, reward: str) -> Make:
        teacher = self.world.reward(reward)

        def made(first: int, shown: Shown) -> Tensors:
            del first
            of = teacher.features(shown.x_0)
            return {"tokens": of.tokens, "embedding": of.embedding}

        return made

    def _decoded(self, z_0: Rows, c: Sequence[str]) -> Iterator[Batch]:
        """Latents as images."""

        def read(rows: slice) -> Shown:
            z = z_0[rows].to(self.world.backbone.empty_latents(0).device)
            return Shown(self.world.backbone.decode(z), list(c[rows]))

        height, width = self.world.backbone.latent[-2:]
        each = at_once((ENLARGED * height, ENLARGED * width), AT_ONCE)
        for first in range(0, len(c), each):
            rows = slice(first, min(first + each, len(c)))
            yield Batch(rows.stop - first, partial(read, rows))

    def _kept(
        self,
        kind: str,
        about: About,
        batches: Iterable[Batch],
        make: Make,
        follows: Make | None = None,
    ) -> Found:
        """What a folder holds; files that are missing are made.

        Raises:
            ValueError: if there is no room for them and what follows, made of the same images, or
                they were divided otherwise.
        """
        folder, count = self._place(kind, about), about["count"]
        if not (folder / WHOLE).is_file():
            if self.workers.first:
                _swept(folder)
            self.workers.wait()
            names = []
            parts = groupby(_placed(batches), lambda at: at[0] // PART)
            for k, (_, part) in enumerate(parts):
                begun = next(part)
                path = folder / f"{begun[0]:08d}.safetensors"
                names.append(path.name)
                if k % self.workers.count == self.workers.rank and not path.is_file():
                    _write(path, about, chain([begun], part), make, follows)
            self.workers.wait()
            if self.workers.first:
                put(folder / WHOLE, json.dumps({"about": about, "files": names}).encode())
            self.workers.wait()
        names = json.loads((folder / WHOLE).read_text())["files"]
        found = _read([folder / name for name in names])
        if len(found.c) != count:
            raise ValueError(
                f"expected {count} images in {folder}, got {len(found.c)}: delete it, and it is "
                f"made again"
            )
        return found


def _placed(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """Batches with the place of their first image."""
    first = 0
    for batch in batches:
        yield first, batch
        first += batch.rows


def _swept(folder: Path) -> None:
    """Remove what killed processes had half written."""
    for path in folder.glob(f"*{NEW}"):
        if time.time() - path.stat().st_mtime > STALE:
            path.unlink(missing_ok=True)


@torch.no_grad()
def _write(
    path: Path,
    about: About,
    part: Iterable[tuple[int, Batch]],
    make: Make,
    follows: Make | None = None,
) -> None:
    """A file of some batches.

    Raises:
        ValueError: if there is no room for it and all that are still to come, with what follows.
    """
    start, made, c = time.perf_counter(), list[Tensors](), list[str]()
    for first, batch in part:
        shown = batch.read()
        made.append({name: x.cpu() for name, x in make(first, shown).items()})
        c += shown.c
    kept = {name: torch.cat([of[name] for of in made]).contiguous() for name in made[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    done = PART * len(list(path.parent.glob("*.safetensors")))
    took = of(time.perf_counter() - start, shown.x_0.device)
    each = _bytes(kept) // len(c)
    if follows is not None:
        each += _bytes(follows(first, Shown(shown.x_0[:1], shown.c[:1])))
    needed = each * max(len(c), about["count"] - done)
    if needed > (free := shutil.disk_usage(path.parent).free):
        raise _no_room(path.parent, f"{numbers.size(needed)} of room", numbers.size(free))
    new = path.with_name(f"{path.name}.{os.getpid()}{NEW}")
    try:
        told = {"about": json.dumps(about), "prompts": json.dumps(c)}
        save_file(kept, new, told | {name: f"{x}" for name, x in took.plain().items()})
        os.replace(new, path)
    except (OSError, SafetensorError) as error:
        new.unlink(missing_ok=True)
        raise _no_room(path.parent, f"to write {path.name}", f"{error}") from error


def _bytes(tensors: Tensors) -> int:
    return sum(x.nbytes for x in tensors.values())


def _spent(*folders: Path) -> Amount | None:
    """What the files of folders took to be made; None where one is not whole, or does not say."""
    if not all((folder / WHOLE).is_file() for folder in folders):
        return None
    return total(_took(path) for folder in folders for path in folder.glob("*.safetensors"))


def _took(path: Path) -> Amount | None:
    with safe_open(path, "pt") as file:
        return read(file.metadata())


def _no_room(folder: Path, wanted: str, got: str) -> ValueError:
    return ValueError(
        f"expected {wanted} in {folder}, got {got}: fewer images take less, and another disk may "
        f"have room (--out)"
    )


def _read(paths: Sequence[Path]) -> Found:
    """What files hold, each of which must begin where the one before it ends.

    Raises:
        ValueError: if one does not.
    """
    tensors: dict[str, list[Tensor]] = {}
    c: list[str] = []
    for path in paths:
        if int(path.stem) != len(c):
            raise ValueError(
                f"expected images from {len(c)} on, got {path}: it was divided otherwise; delete "
                f"its folder, and it is made again"
            )
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensors.setdefault(name, []).append(file.get_tensor(name))
            c += json.loads(file.metadata()["prompts"])
    return Found({name: Parts(parts) for name, parts in tensors.items()}, c)
