"""Making a StitchVM in a world: search, start from a pick, finetune, keep.

<folder>/search.json, fits.safetensors    stage 1: the loss table and the picks
<folder>/checkpoint.pt, log.jsonl         stage 2, as far as it has come
<folder>/model/                           the value model, whole or not there
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from baselines.vae_stitch import Latent
from bench.resolve import UnknownName
from stitchvm.backbone import Backbone
from stitchvm.distill import CHECKPOINT, Prepared, Recipe, Record, distill, prepare
from stitchvm.reward import Reward
from stitchvm.search import TABLE, Search, Settings, Source, load, search
from stitchvm.stitch import Condition, Norm, Stitched, StitchLayer
from stitchvm.world import Split, World

PROBES, HELD = 200, 200  # images of the probe set (section 4.1), and of the one that checks it
IMAGES = 20_000  # that stage 2 learns from
MODEL, LOG, BEGUN = "model", "log.jsonl", "run.json"
Trunk = Literal["backbone", "latent"]
TRUNKS: dict[str, Callable[[Backbone], Backbone]] = {
    "backbone": lambda backbone: backbone,
    "latent": Latent,  # the rival that stitches the noisy latent itself
}


def find(
    world: World,
    name: str,
    folder: Path,
    settings: Settings,
    *,
    probes: int = PROBES,
    trunk: Trunk = "backbone",
) -> Search:
    """Stage 1 of a world's reward, kept in a folder; what is there is not made again.

    Args:
        world: Where.
        name: Of the reward.
        folder: Where to keep it.
        settings: How.
        probes: Images of the probe set.
        trunk: What is stitched.

    Raises:
        ValueError: if the folder has a search of something else.
    """
    about = {"world": world.digest, "reward": name, "trunk": trunk, "probes": probes, "held": HELD}
    if (folder / TABLE).is_file():
        known = load(folder)
        wanted = json.loads(json.dumps({**asdict(settings), **about}))
        if known.about != wanted:
            raise ValueError(f"expected a search of {wanted} in {folder}, got {known.about}")
        return known
    found = search(
        TRUNKS[trunk](world.backbone),
        world.reward(name),
        pictures(world, "train", probes),
        pictures(world, "held", HELD),
        settings=settings,
    )
    found = replace(found, about={**found.about, **about})
    found.save(folder)
    return found


def pictures(world: World, split: Split, count: int) -> Iterator[Tensor]:
    """Images without their prompts."""
    return (shown.x_0 for shown in world.images(split, count))


def pick(found: Search, chosen: str) -> tuple[int, int]:
    """The pair (i, j) that `paper`, `cheap` or "i,j" stands for.

    Raises:
        UnknownName: for another name, or a pair that the search has no layer for.
    """
    known = {name: (pair.i, pair.j) for name, pair in found.picks.items()}
    known |= {f"{i},{j}": (i, j) for i, j in found.interfaces}
    if chosen not in known:
        raise UnknownName("pick", chosen, known)
    return known[chosen]


@torch.no_grad()
def begin(
    world: World,
    reward: Reward,
    found: Search,
    pair: tuple[int, int],
    *,
    norm: Norm = "unit",
    condition: Condition = "null",
    trunk: Trunk = "backbone",
) -> Stitched:
    """The value model after stage 1, its tail a copy of the reward's.

    Args:
        world: Where.
        reward: The pretrained reward.
        found: Stage 1.
        pair: Which (i, j).
        norm: `unit` (published), or `free`, whose gain makes clean embeddings of unit length on
            average.
        condition: What the trunk sees.
        trunk: What is stitched.
    """
    x_0 = next(pictures(world, "train", PROBES))
    i, j = pair
    entering = reward.head(x_0, j)
    interface = found.interfaces[pair]
    height, width = entering.map.shape[-2:]
    layer = StitchLayer(interface.fit, (height, width), interface.cls).to(entering.map)
    gain = None
    if norm == "free":
        out = reward.tail(entering, j)
        raw = out.embedding if out.raw is None else out.raw
        gain = 1 / raw.norm(dim=-1).mean().item()
    tail = copy.deepcopy(reward)
    backbone = TRUNKS[trunk](world.backbone)
    return Stitched(backbone, i, layer, tail, j, condition=condition, gain=gain)


def learned_from(
    world: World, reward: Reward, count: int = IMAGES, source: Source = "pixels"
) -> Prepared:
    """Latents, targets and prompts of a world's training images."""
    c: list[str] = []

    def images() -> Iterator[Tensor]:
        for shown in world.images("train", count):
            c.extend(shown.c)
            yield shown.x_0

    return prepare(world.backbone, reward, images(), source=source)._replace(c=c)


def finetune(
    model: Stitched, data: Prepared, recipe: Recipe, folder: Path, about: dict[str, object]
) -> Iterator[Record]:
    """Stage 2 in a folder; killed at any moment, the same call goes on.

    Args:
        model: After stage 1.
        data: What to learn from.
        recipe: How.
        folder: Of checkpoint, log and the finished model.
        about: What to say of how it was made.

    Yields:
        The records that were not made before.

    Raises:
        ValueError: if the folder is of another model, recipe or origin.
    """
    begun = json.loads(json.dumps({**about, "recipe": asdict(recipe)}))
    if (folder / BEGUN).is_file():
        known = json.loads((folder / BEGUN).read_text())
        if known != begun:
            raise ValueError(f"expected a run of {begun} in {folder}, got {known}")
    if (folder / MODEL).is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).write_text(json.dumps(begun, indent=1) + "\n")
    log = folder / LOG
    for number, record in enumerate(distill(model, data, recipe, folder)):
        if number == 0:
            _shorten(log, record.step)
        with log.open("a") as lines:
            lines.write(json.dumps(record._asdict()) + "\n")
        yield record
    model.save_pretrained(folder / MODEL, begun)
    (folder / CHECKPOINT).unlink()


def _shorten(log: Path, step: int) -> None:
    """Drop what a run logged after its last checkpoint: from that step on it is made again."""
    if log.is_file():
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines[: step - 1]))
