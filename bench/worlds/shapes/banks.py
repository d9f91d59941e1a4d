"""Banks on disk: shipped with the weights, cached, or made on first use.

A bank's file is named by what it holds; the folder it is cached in by the world's version, so
networks trained again never meet an old bank.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from bench import cache
from bench.child import ANNOUNCED
from bench.worlds.shapes.bank import Bank
from bench.worlds.shapes.captions import parse, seen, told
from bench.worlds.shapes.conditional import draw_for
from bench.worlds.shapes.scenes import Scenes, draw, render
from stitchvm.backbone import Backbone
from stitchvm.reward import Reward

AT_ONCE = 128  # pictures encoded and decoded at a time
NOTICE = 10.0  # seconds of work left that are worth announcing


class Banks:
    """All banks of one world.

    Args:
        backbone: Encodes and decodes.
        towers: Rewards by the name of their embedding.
        shipped: Folder of banks that come with the weights.
        version: Of the world.
    """

    def __init__(
        self,
        backbone: Backbone,
        towers: Mapping[str, Callable[[], Reward]],
        shipped: Path,
        version: str,
    ) -> None:
        self.backbone, self.towers, self.shipped = backbone, towers, shipped
        self.cache = cache.root() / "shapes" / version
        self._loaded: dict[str, Bank] = {}

    def data(self, members: int) -> Bank:
        """Scenes of the whole distribution, equally likely."""
        return self._bank(f"data-{members}", lambda: draw("bank", members), None)

    def prompt(self, caption: str, members: int) -> Bank:
        """Scenes of which a caption is true, weighted by p(c | scene)."""
        parsed = parse(caption)
        caption = str(parsed)  # however commas and spaces were set
        key = hashlib.sha256(caption.encode()).hexdigest()[:12]
        return self._bank(
            f"prompt-{key}-{members}", lambda: draw_for(parsed, "bank", members), caption
        )

    def _bank(self, name: str, scenes: Callable[[], Scenes], caption: str | None) -> Bank:
        if name not in self._loaded:
            path = next(
                (
                    p
                    for f in (self.shipped, self.cache)
                    if (p := f / f"{name}.safetensors").is_file()
                ),
                None,
            )
            if path is None:
                path = self.write(name, scenes(), caption, self.cache)
            tensors, embeddings = load_file(path), load_file(_beside(path))
            to = next(self.backbone.parameters()).device
            self._loaded[name] = Bank(
                latents=tensors["latents"].double().to(to),
                log_weights=tensors["log_weights"].double().to(to),
                embeddings={
                    k: normalize(v.to(to, torch.float32), dim=-1) for k, v in embeddings.items()
                },
            )
        return self._loaded[name]

    @torch.no_grad()
    def write(self, name: str, scenes: Scenes, caption: str | None, folder: Path) -> Path:
        """Make one bank's file; says how long it takes where that is long."""
        log_weights = torch.zeros(len(scenes))
        if caption is not None:
            p = [told(s).get(caption, 0.0) for s in seen(scenes)]
            log_weights = torch.tensor(p).log()
        latents: list[Tensor] = []
        embeddings: dict[str, list[Tensor]] = {tower: [] for tower in self.towers}
        rewards = {tower: reward() for tower, reward in self.towers.items()}
        firsts = range(0, len(scenes), AT_ONCE)
        device = next(self.backbone.parameters()).device
        for first in narrated(firsts, f"bank {name}"):
            x = render(scenes[slice(first, first + AT_ONCE)]).to(device)
            z = self.backbone.encode(x).half()  # the member is the rounded latent
            latents.append(z)
            decoded = self.backbone.decode(z.float())
            for tower, reward in rewards.items():
                embeddings[tower].append(embed(reward, decoded))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.safetensors"
        _save(_beside(path), {k: torch.cat(v).cpu() for k, v in embeddings.items()})
        _save(path, {"latents": torch.cat(latents).cpu(), "log_weights": log_weights})
        return path


def _beside(path: Path) -> Path:
    """The file of a bank's embeddings, which is written first: no shipped file is large."""
    return path.with_name(f"{path.stem}-embeddings.safetensors")


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all, whoever else makes the same."""
    new = path.with_suffix(f".{os.getpid()}.new")
    save_file({k: v.contiguous() for k, v in tensors.items()}, new)
    os.replace(new, path)


def embed(reward: Reward, x: Tensor) -> Tensor:
    """Unit embeddings of pictures as they are stored, (B, D), float16."""
    return reward.features(x).embedding.half()


def narrated(items: Iterable[int], what: str) -> Iterator[int]:
    """Items one by one; on standard error, what is made and how long it will take."""
    todo = list(items)
    start, told_at = time.monotonic(), None
    for done, item in enumerate(todo):
        spent = time.monotonic() - start
        left = spent / done * (len(todo) - done) if done else 0.0
        due = left > NOTICE if told_at is None else spent - told_at > NOTICE
        if done and due:
            told_at = spent
            print(  # noqa: T201
                f"{ANNOUNCED}{what}, once: {done / len(todo):.0%}, about {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
        yield item
