"""Stage 1 in a folder: made where it is missing, and what a pick of it stands for."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.arms import TRUNKS, Trunk
from bench.finetuning import same
from bench.images import Images, WorldImages
from bench.resolve import UnknownName
from bench.spent import of
from stitchvm.search import TABLE, Search, Settings, load, search
from stitchvm.world import World

PROBES, HELD = 200, 200  # images of the probe set (section 4.1), and of the one that checks it


def find(
    world: World,
    name: str,
    folder: Path,
    settings: Settings,
    *,
    probes: int = PROBES,
    trunk: Trunk = "backbone",
    images: Images | None = None,
) -> Search:
    """Stage 1 of a world's reward, kept in a folder; what is there is not made again.

    Args:
        world: Where.
        name: Of the reward.
        folder: Where to keep it.
        settings: How.
        probes: Images of the probe set.
        trunk: What is stitched.
        images: The probe set and those that check it; the world's own when None.

    Raises:
        ValueError: if the folder has a search of something else.
    """
    images = images or WorldImages(world)
    about = {
        "world": world.digest,
        "images": images.digest,
        "reward": name,
        "trunk": trunk,
        "probes": probes,
        "held": HELD,
    }
    if (folder / TABLE).is_file():
        known = load(folder)
        wanted = json.loads(json.dumps({**asdict(settings), **about}))
        same("a search", wanted, {key: known.about.get(key) for key in wanted}, folder)
        return known
    start = time.perf_counter()
    found = search(
        TRUNKS[trunk](world.backbone),
        world.reward(name),
        (shown.x_0 for shown in images.shown("train", probes)),
        (shown.x_0 for shown in images.shown("held", HELD)),
        settings=settings,
    )
    seconds, device = time.perf_counter() - start, world.backbone.empty_latents(0).device
    spent = {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "spent": of(seconds, device).plain(),
    }
    found = replace(found, about={**found.about, **about, **spent})
    found.save(folder)
    return load(folder)  # with the layers that are kept, as every later call has it


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
