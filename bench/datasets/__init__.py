"""Published prompts, images and judgements, read from the layouts that their authors chose.

    EVALUATIONS    build(root, side, items, device): the sets of arXiv:2605.19804, Table 5
    PROMPTS        build(world, *, path): what a world's `prompts` may name in a suite

Nothing of them ships: `stitchbench data get` fetches what is small, and each file's first lines
say where the rest is and under which terms.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench.datasets import ava, drawbench, flickr30k, geneval, hpdv2, imagereward, mscoco
from bench.datasets.hub import images_from
from bench.resolve import UnknownName
from stitchvm.evaluation import Evaluation
from stitchvm.world import Shown, Split

EVALUATIONS: dict[str, Callable[..., Evaluation]] = {
    "mscoco": mscoco.build,
    "flickr30k": flickr30k.build,
    "hpdv2": hpdv2.build,
    "imagereward": imagereward.build,
    "ava": ava.build,
}
PROMPTS: dict[str, Callable[..., Sequence[str]]] = {
    "drawbench": drawbench.build,
    "geneval": geneval.build,
}


def evaluation(
    name: str,
    root: str | Path,
    side: int,
    items: int | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """An evaluation set of Table 5; its images are decoded as they are asked for.

    Args:
        name: A key of `EVALUATIONS`.
        root: The data set's folder, laid out as published.
        side: Of images, in pixels: the middle, resized.
        items: Images of a retrieval, pairs, or rated images; None for all.
        device: Where images go.

    Raises:
        UnknownName: for a set nobody knows.
        ValueError: for what is missing or broken, or fewer items.
    """
    if name not in EVALUATIONS:
        raise UnknownName("evaluation set", name, EVALUATIONS)
    return EVALUATIONS[name](Path(root).expanduser(), side, items, device)


def images(
    source: str, side: int, count: int, split: Split, device: torch.device | str = "cpu"
) -> Iterator[Shown]:
    """Clean images to learn from or to choose by, the same whenever asked.

    Args:
        source: A folder, or `hub:OWNER/NAME@COMMIT`.
        side: Of images, in pixels: the middle, resized.
        count: How many.
        split: `train`, or `held`: one in ten.
        device: Where to.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are fewer, one is broken, or the hub does not give them.
    """
    return images_from(source, (side, side), device).shown(split, count)
