"""The first blocks of a transformer, read from its folder without the rest.

A StitchVM runs u^{<=i} and nothing after it (Eq. 6): of SD 3.5 medium, 4 blocks of 24.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from stitchvm.models.folder import check_folder, load_network, own
from stitchvm.models.pipeline import AFTER

NAMED = 5  # of the weights that are wrong, in an error


def load_transformer(
    kind: Any, folder: Path, dtype: torch.dtype, stacks: Iterable[str], blocks: int | None
) -> Any:
    """A diffusers transformer from its own folder, whole or its first blocks.

    The first blocks are those of the whole transformer to the bit.  Of sharded files, those with
    nothing but what is left out may be missing.

    Args:
        kind: Its class.
        folder: Its folder, one safetensors file or several with an index.
        dtype: Of all weights, whatever the files have.
        stacks: Names of its lists of blocks, in the order in which they run.
        blocks: How many; all, and what follows them, when None.

    Raises:
        FileNotFoundError: if a file of the weights is missing.
        ValueError: if there are not so many blocks, or the files hold other weights than the
            configuration describes.
        RuntimeError: for a weight of another shape.
    """
    if blocks is None:
        return load_network(kind, folder, dtype)
    with torch.device("meta"):  # all names and shapes, no memory
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    files = _files(folder)
    if wrong := sorted(files.keys() ^ network.state_dict().keys()):
        raise ValueError(
            f"expected the weights that {folder / 'config.json'} describes, got {len(wrong)} "
            f"missing or unknown: {', '.join(wrong[:NAMED])}"
        )
    _truncate(network, stacks, blocks)
    kept = {name: files[name] for name in network.state_dict()}
    network.load_state_dict(_read(folder, kept), assign=True)
    return own(network, dtype).eval()


def _files(folder: Path) -> dict[str, str]:
    """Which file holds a weight, by the weight's name."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return json.loads(index.read_text())["weight_map"]
    check_folder(folder, (SAFETENSORS_WEIGHTS_NAME,))
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        return dict.fromkeys(file.keys(), SAFETENSORS_WEIGHTS_NAME)


def _truncate(network: nn.Module, stacks: Iterable[str], blocks: int) -> None:
    """Leave the first blocks and what comes before; all of them leave the network whole."""
    depth = sum(len(getattr(network, stack)) for stack in stacks)
    if not 1 <= blocks <= depth:
        raise ValueError(f"expected blocks in 1..{depth}, got {blocks}")
    if blocks == depth:
        return
    for stack in stacks:
        kept = getattr(network, stack)[:blocks]
        setattr(network, stack, kept)
        blocks -= len(kept)
    for name in AFTER:
        delattr(network, name)


def _read(folder: Path, files: dict[str, str]) -> dict[str, Tensor]:
    """Weights by name, and no others, from the files that hold them."""
    shards = tuple(dict.fromkeys(files.values()))
    check_folder(folder, shards)
    read = {}
    for shard in shards:
        with safe_open(folder / shard, "pt") as opened:
            for name in (name for name, file in files.items() if file == shard):
                read[name] = opened.get_tensor(name)
    return read
