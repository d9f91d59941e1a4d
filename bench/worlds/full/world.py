"""A generator and rewards of full size: with random weights, what costs are measured in."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bench.cell import digest
from bench.datasets import evaluation
from bench.datasets.files import sha256
from bench.images import FolderImages
from bench.prompts import read
from bench.worlds.full import Fast, drawn
from bench.worlds.full.fast import made_on, quick_backbone, quick_decoder, quick_reward
from bench.worlds.full.files import files_of
from bench.worlds.full.parts import Parts
from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.evaluation import Evaluation
from stitchvm.models import lora
from stitchvm.models.pipeline import PipelineBackbone
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import Batch, Certainty, Finish, Shown, Split, World

PROMPTS = (
    "a red cube on top of a blue sphere",
    "a photo of a bench under a tree in autumn",
    "two cats playing chess in a library",
    "a lighthouse in a storm, oil painting",
)
LISTS = (".json", ".jsonl", ".txt", ".csv", ".token")  # of evaluation sets
AT_ONCE = 8  # images
MODEL = "model"  # what `stitch train` calls the folder of what it made


@dataclass(frozen=True)
class Data:
    """What a world reads beside weights.

    Attributes:
        pictures: A folder of clean images; noise, or none, without.
        models: A folder of value models, <reward>/<name>/model, as `stitch train` leaves it.
        sets: A folder of evaluation sets, each in a folder of its name; see `bench.datasets`.
        captions: The set that CLIP's embeddings retrieve from.
        preferences: The set of pairs that preference rewards compare.
        training: A list of prompts to train a generator on; invented ones without.
    """

    pictures: str | None = None
    models: str | None = None
    sets: str | None = None
    captions: str = "mscoco"
    preferences: str = "hpdv2"
    training: str | None = None

    @property
    def digest(self) -> str:
        """Of the lists of all evaluation sets; images are taken to be what the lists name."""
        root = Path(self.sets or "")
        lists = sorted(path for path in root.glob("*/*") if path.suffix in LISTS)
        return digest([[f"{path.relative_to(root)}", sha256(path.read_bytes())] for path in lists])

    def test(self, reward: str) -> str:
        """The evaluation set of a reward."""
        return {
            "clip": self.captions,
            "dfn": self.captions,
            "aesthetic": "ava",
        }.get(reward, self.preferences)


class FullWorld(World):
    """A generator and rewards of a published model's shapes.

    Nothing is built before it is asked for: to plan costs nothing.

    Args:
        model: Which, a file of `configs/`.
        weights: `random`, `hub`, or a folder of copies; see `files`.
        side: Of pictures, in pixels.
        precision: Name of the generator's dtype, and of random rewards'.
        blocks: The first ones of each stack alone, of random weights.
        data: What it reads beside weights.
        fast: Paths of `bench.worlds.full.fast`.
        device: Where to compute.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a side that the model's latents do not divide, or too many blocks, or
            blocks of published weights.
    """

    prompts = PROMPTS

    def __init__(
        self,
        model: str,
        *,
        weights: str,
        side: int,
        precision: str,
        blocks: int | None,
        data: Data,
        fast: tuple[Fast, ...],
        device: str,
    ) -> None:
        shapes = drawn.config(model)
        if side < drawn.PATCH or side % drawn.PATCH:
            raise ValueError(f"expected a side divisible by {drawn.PATCH}, got {side}")
        drawn.first(shapes["transformer"]["num_layers"], blocks)
        self.name, self.side, self.blocks, self.device = model, side, blocks, device
        self.dtype: torch.dtype = getattr(torch, precision)
        self.parts = self._parts(weights)
        self.rewards, self.meaningful = self.parts.rewards, self.parts.trained
        self.folder = None
        if data.pictures is not None:
            self.folder = FolderImages(Path(data.pictures), (side, side), device)
        self.data = data
        self.fast = fast
        self.digest = self._digest(weights, precision)
        self._rewards: dict[str, Reward] = {}
        self._learned: tuple[str, ...] = ()  # prompts that training asked for

    def _parts(self, weights: str) -> Parts:
        if weights == "random":
            return drawn.DrawnParts(
                self.name,
                side=self.side,
                dtype=self.dtype,
                blocks=self.blocks,
                device=self.device,
            )
        if self.blocks is not None:
            raise ValueError(
                f"expected all blocks of published weights, got blocks = {self.blocks}"
            )
        from bench.worlds.full.stored import StoredParts  # noqa: PLC0415 - slow: transformers

        return StoredParts(
            self.name,
            files_of(weights),
            side=self.side,
            dtype=self.dtype,
            device=self.device,
            expected=lambda: (NULL, *self.prompts, *self.tuning, *self._learned),
        )

    def _digest(self, weights: str, precision: str) -> str:
        kind = weights if weights in {"random", "hub"} else "copies"
        known = f"{kind}-{digest([*self.parts.known, self.side, precision])}"
        known += "" if self.blocks is None else f"-{self.blocks}"
        known += "".join(f"-{path}" for path in sorted(self.fast))
        known += "" if self.folder is None else f"-{self.folder.digest}"
        return known + ("" if self.data.sets is None else f"-{self.data.digest}")

    @cached_property
    def generator(self) -> PipelineBackbone:
        """The model's own; `backbone`, what is asked, may be wrapped."""
        made = self.parts.backbone(made_on(self.device, self.fast))
        return quick_backbone(made, self.fast, self.device)

    @cached_property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The generator."""
        return self.generator

    @cached_property
    def tiny(self) -> Backbone:  # type: ignore[override]
        """The same with a distilled decoder, TAESD3 or TAEF1."""
        return self.generator.with_decoder(quick_decoder(self.parts.decoder(), self.fast))

    def reward(self, name: str) -> Reward:
        """The reward of that name.

        Raises:
            ValueError: for any other.
        """
        if name not in self.rewards:
            raise ValueError(f"expected a reward in {self.rewards}, got {name!r}")
        if name not in self._rewards:
            self._rewards[name] = quick_reward(self.parts.reward(name), self.fast)
        return self._rewards[name]

    def identity(self, reward: str) -> str | None:
        """Which files a reward is made of; None of random weights."""
        return self.parts.identity(reward)

    def trained(self, reward: str) -> dict[str, Path]:
        """Those of its folder of value models that are of a reward, which is not read."""
        if self.data.models is None or reward not in self.rewards:
            return {}
        found = sorted((Path(self.data.models) / reward).glob(f"*/{MODEL}"))
        return {folder.parent.name: folder for folder in found}

    def called(self, reward: Reward) -> str | None:
        """The name of a reward that was read; None for one that is not the world's."""
        return next((name for name, known in self._rewards.items() if known is reward), None)

    def evaluation(self, reward: Reward, items: int) -> Evaluation | None:
        """The set of Table 5 that a reward's job is done on; None without `sets`."""
        name = self.called(reward)
        if self.data.sets is None or name is None:
            return None
        test = self.data.test(name)
        return evaluation(test, Path(self.data.sets) / test, self.side, items, self.device)

    def _folder(self) -> FolderImages | None:
        """The folder of pictures; None where noise stands for them.

        Raises:
            ValueError: where it must not: what published weights make of noise means nothing.
        """
        if self.folder is None and self.parts.trained:
            raise ValueError(
                f"expected pictures=FOLDER with published weights of {self.name!r}, got none"
            )
        return self.folder

    @torch.no_grad()
    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Latents of pictures, whatever they show; without pictures, standard normal ones.

        Raises:
            ValueError: for a prompt, where there are pictures: nobody knows what they show.
        """
        if (folder := self._folder()) is None:
            return rng.normal(torch.empty(len(c), *self.generator.latent, device=self.device))
        if named := [text for text in c if text != NULL]:
            raise ValueError(
                f"expected the null prompt, as of `pairing: mismatched`, got {named[0]!r}: nobody "
                f"knows which pictures of {folder.folder} show it"
            )
        files = folder.of("held")
        drawn_of = [files[int(u * len(files))] for u in rng.uniform()]
        x_0 = [folder.read(path)[None].to(self.device) for path in drawn_of]
        return torch.cat([self.generator.encode(x) for x in x_0])

    def images(self, split: Split, count: int) -> Iterator[Shown]:
        """Pictures of the folder; without, of noise, by which a search costs what it does by any.

        Raises:
            ValueError: if the folder has fewer.
        """
        if (folder := self._folder()) is not None:
            yield from folder.shown(split, count)
            return
        for start in range(0, count, AT_ONCE):
            rows = min(AT_ONCE, count - start)
            rng = torch.Generator().manual_seed(derive(0, "images", split, start))
            x = torch.rand(rows, 3, self.side, self.side, generator=rng) * 2 - 1
            c = [PROMPTS[k % len(PROMPTS)] for k in range(start, start + rows)]
            yield Shown(x.to(self.device), c)

    @property
    def _list(self) -> Path:
        """Of prompts to train on.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        path = Path(self.data.training or "")
        if not path.is_file():
            raise FileNotFoundError(f"expected a list of prompts at {path}, found no file")
        return path

    def batches(self, split: Split, count: int) -> Iterator[Batch]:
        """The same; pictures of the folder are read when they are asked for."""
        folder = self._folder()
        return super().batches(split, count) if folder is None else folder.batches(split, count)

    @property
    def lessons(self) -> str | None:
        """Digest of its list; None where prompts are invented."""
        return None if self.data.training is None else digest([*read(self._list)])

    def training(self, count: int) -> tuple[str, ...]:
        """The first prompts of its list but for those it is judged by; invented ones without.

        Raises:
            ValueError: if there are fewer, or no list for published weights.
        """
        if self.data.training is None:
            if self.parts.trained:
                raise ValueError(
                    f"expected training=FILE, a list of prompts, with published weights of "
                    f"{self.name!r}, got none"
                )
            return tuple(f"a photo of thing number {k}" for k in range(count))
        judged = {*self.prompts, *self.tuning}
        found = [text for text in dict.fromkeys(read(self._list)) if text not in judged]
        if len(found) < count:
            raise ValueError(
                f"expected {count} prompts to train on in {self._list}, got {len(found)} beside "
                f"those that judge"
            )
        self._learned = tuple(found[:count])
        return self._learned

    def trainable(self, rank: int, seed: int) -> Backbone:
        """With LoRA on all attention."""
        return lora.adapted(self.generator, rank, seed=seed)

    @torch.no_grad()
    def pictures(self, z_0: Tensor) -> Tensor | None:
        """Decoded, (B, 3, H, W) in [-1, 1]; None of random weights, which draw noise."""
        if not self.parts.trained:
            return None
        return torch.cat([self.generator.decode(z) for z in z_0.split(1)]).clamp(-1, 1)

    def seen(self, z_0: Tensor) -> Tensor:
        """The latents themselves, (B, D)."""
        return z_0.flatten(1)

    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """None: nobody knows it."""
        del reward, target
        return None

    def certainty(
        self, reward: Reward, target: Target, z_t: Tensor, t: Tensor, c: Prompts
    ) -> Certainty | None:
        """None: there is no truth."""
        del reward, target, z_t, t, c
        return None

    def posterior(self, posterior: str) -> Finish | None:
        """None: nobody can draw from it."""
        del posterior
        return None
