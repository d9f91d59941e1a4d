"""Latents and targets of clean images on disk, made once for all that learns from them.

<folder>/latents-<digest>.safetensors    z_0 and prompts, the same for every reward
<folder>/rollouts-<digest>.safetensors   what the generator makes of the same prompts, step by step
<folder>/targets-<digest>.safetensors    what a reward makes of the clean images

A file is named by the digest of all that it depends on, and is there whole or not at all.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.cell import digest
from bench.images import Images
from stitchvm.path import time_grid
from stitchvm.sample import NU, Sde
from stitchvm.search import Source
from stitchvm.streams import Streams, derive
from stitchvm.teacher import Prepared, Rolled, decoded, encoded, rolled, targets
from stitchvm.world import Split, World

Tensors = dict[str, Tensor]

AT_ONCE = 128  # latents decoded, or rolled out
KERNEL, STEPS = "flow_grpo", 8  # whose rollouts: the sampler that alignment trains with
ROLLED = f"{KERNEL} from t = 1, {STEPS} steps"  # of which 8 t are left at t


@dataclass(frozen=True)
class Shelf:
    """Prepared images of a world.

    Attributes:
        world: Whose backbone and rewards.
        images: Where the images come from.
        folder: Where they are kept.
    """

    world: World
    images: Images
    folder: Path

    def get(
        self, reward: str, count: int, source: Source = "pixels", split: Split = "train"
    ) -> Prepared:
        """Latents, targets and prompts of images; made where they are missing.

        Args:
            reward: Name of the teacher.
            count: Images.
            source: What the teacher sees.
            split: Which images.
        """
        about = {"world": self.world.digest, "split": split, "count": count}
        if self.images.digest != self.world.digest:
            about["images"] = self.images.digest
        teacher = self.world.reward(reward)

        def images() -> Iterator[Tensor]:
            return (shown.x_0 for shown in self.images.shown(split, count))

        def latents() -> tuple[Tensors, list[str]]:
            c: list[str] = []

            def noted() -> Iterator[Tensor]:
                for shown in self.images.shown(split, count):
                    c.extend(shown.c)
                    yield shown.x_0

            return {"z_0": encoded(self.world.backbone, noted())}, c

        found, c = self._kept("latents", about, latents)
        z_0 = found["z_0"]

        def made() -> tuple[Tensors, list[str]]:
            shown = images()
            if source == "latents":
                shown = decoded(self.world.backbone, z_0, AT_ONCE)
            tokens, embedding = targets(teacher, shown)
            return {"tokens": tokens, "embedding": embedding}, []

        of, _ = self._kept("targets", {**about, "reward": reward, "source": source}, made)
        return Prepared(z_0, of["tokens"], of["embedding"], c)

    def rollouts(self, reward: str, count: int, split: Split = "train") -> Rolled:
        """The generator's own rollouts, and targets of what they end in.

        Args:
            reward: Name of the teacher.
            count: Rollouts, each for the prompt of an image.
            split: Of which images.
        """
        about = {
            "world": self.world.digest,
            "split": split,
            "count": count,
            "kernel": KERNEL,
            "steps": STEPS,
        }
        if self.images.digest != self.world.digest:
            about["images"] = self.images.digest
        times = time_grid(STEPS)

        def walked() -> tuple[Tensors, list[str]]:
            c = [prompt for shown in self.images.shown(split, count) for prompt in shown.c]
            rng = Streams.of(derive(0, "rollouts", split), rows=count)
            sampler = Sde(self.world.backbone.velocity, NU[KERNEL])
            parts = []
            for first in range(0, count, AT_ONCE):
                prompts = c[first : first + AT_ONCE]
                own = Streams(rng.seeds[first : first + AT_ONCE])
                z = own.child("eps").normal(self._like(len(prompts)))
                parts.append(rolled(sampler, z, times, prompts, own.child("walk")))
            return {"z": torch.cat(parts)}, c

        found, c = self._kept("rollouts", about, walked)
        z = found["z"]

        def made() -> tuple[Tensors, list[str]]:
            shown = decoded(self.world.backbone, z[:, -1], AT_ONCE)
            tokens, embedding = targets(self.world.reward(reward), shown)
            return {"tokens": tokens, "embedding": embedding}, []

        of, _ = self._kept("targets", {**about, "reward": reward}, made)
        on_the_way = slice(1, -1)  # neither pure noise nor clean
        return Rolled(z[:, on_the_way], times[on_the_way], of["tokens"], of["embedding"], c)

    def _like(self, rows: int) -> Tensor:
        """Latents to fill, (rows, *latent), where the backbone is."""
        like = next(iter(self.world.backbone.state_dict().values()))
        return torch.empty(rows, *self.world.backbone.latent, device=like.device)

    def _kept(
        self, kind: str, about: dict[str, object], make: Callable[[], tuple[Tensors, list[str]]]
    ) -> tuple[Tensors, list[str]]:
        """Tensors and prompts of a file, made where it is missing."""
        path = self.folder / f"{kind}-{digest(about)}.safetensors"
        if not path.is_file():
            with torch.no_grad():
                tensors, c = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            kept = {name: x.contiguous() for name, x in tensors.items()}
            save_file(kept, new, {"about": json.dumps(about), "prompts": json.dumps(c)})
            os.replace(new, path)
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(
                file.metadata()["prompts"]
            )
