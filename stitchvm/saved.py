"""Trained value models on disk: safetensors in parts, and a JSON that says what they belong to.

A folder is there whole or not at all; every file of it is checked against its digest.
"""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from stitchvm.identity import file_digest

Parts = dict[str, dict[str, Tensor]]  # file to tensors by name


def put(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_bytes(data)
    os.replace(new, path)


class Saved(NamedTuple):
    """What a folder holds: what it says it is, and its weights by file."""

    described: dict[str, Any]
    parts: Parts


def write(
    folder: Path | str,
    config: str,
    described: Mapping[str, Any],
    parts: Parts,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a new folder.

    Args:
        folder: What to write; must not exist.
        config: Name of the JSON file.
        described: What it holds, beside the digests of its files.
        parts: Weights by file, the suffix left out.
        dtype: Of the files; the weights' own when None.

    Raises:
        ValueError: if the folder exists, or the dtype cannot hold a weight exactly.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"expected a new folder, got {folder}, which exists")
    new = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, tensors in parts.items():
            kept = {key: _exactly(w.detach().cpu(), dtype, key) for key, w in tensors.items()}
            save_file(kept, new / f"{name}.safetensors")
        digests = {path.name: file_digest(path.read_bytes()) for path in sorted(new.iterdir())}
        (new / config).write_text(json.dumps({**described, "files": digests}, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(new)
        raise
    new.rename(folder)


def _exactly(weight: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    kept = weight.to(dtype or weight.dtype)
    if not torch.equal(kept.to(weight.dtype), weight):
        raise ValueError(f"expected {name} to fit {dtype} exactly: round the weights first")
    return kept.contiguous()


def read(folder: Path | str, config: str) -> Saved:
    """What `write` wrote.

    Raises:
        FileNotFoundError: if the folder or a file of it is missing.
        ValueError: for a file that is no safetensors (a pickle, which may run anything when it is
            read, is not opened), lies elsewhere, or is not what its digest says.
    """
    folder = Path(folder)
    described, parts = description(folder, config), {}
    for name, digest in described["files"].items():
        path = folder / name
        if path.suffix != ".safetensors" or path.name != name:
            raise ValueError(f"expected safetensors files in {folder}, got {name}")
        if not path.is_file():
            raise FileNotFoundError(f"expected {path}, got no such file")
        data = path.read_bytes()
        if (found := file_digest(data)) != digest:
            raise ValueError(f"expected {path} with digest {digest}, got {found}")
        parts[path.stem] = _tensors(data, path)
    return Saved(described, parts)


def description(folder: Path | str, config: str) -> dict[str, Any]:
    """What a folder says that it holds, the digests of its files as `files`.

    Raises:
        FileNotFoundError: if there is no such folder, or it does not say.
        ValueError: if what it says cannot be understood.
    """
    path = Path(folder) / config
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved value model in {folder}, got no {config}")
    try:
        described = json.loads(path.read_text())
        return {**described, "files": dict(described["files"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"expected digests of files in {path}, got {error!r}") from error


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """What is in a safetensors file."""
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {path}, got something else: {error}") from error


def require(names: Collection[str], found: Collection[str], place: Path | str) -> None:
    """Refuse what lacks something.

    Raises:
        ValueError: naming it.
    """
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"expected {', '.join(names)} in {place}, got no {', '.join(missing)}")


def rounded(folder: Path | str, to: Path | str, dtype: torch.dtype = torch.float16) -> None:
    """A saved value model in a new folder with weights rounded to a smaller dtype.

    Raises:
        FileNotFoundError: if the folder or a file of it is missing.
        ValueError: if it is not what it was saved as, or the new folder exists.
    """
    configs = [path.name for path in sorted(Path(folder).glob("*.json"))]
    if len(configs) != 1:
        raise FileNotFoundError(f"expected a saved value model in {folder}, got {configs}")
    described, parts = read(folder, configs[0])
    smaller = {
        name: {key: weight.to(dtype) for key, weight in tensors.items()}
        for name, tensors in parts.items()
    }
    write(to, configs[0], {**described, "rounded": str(dtype).removeprefix("torch.")}, smaller)


def agree(found: Mapping[str, Any], saved: Mapping[str, Any], folder: Path | str) -> None:
    """Refuse a model that is not of what it was saved of.

    Raises:
        ValueError: naming what differs.
    """
    for key, value in found.items():
        if value != saved.get(key):
            raise ValueError(f"expected {key} {saved.get(key)} for {folder}, got {value}")


@torch.no_grad()
def fill(own: Parts, saved: Parts, folder: Path | str) -> None:
    """Put saved weights into a model's own, and freeze them.

    Raises:
        ValueError: if they are not the same weights by name and shape.
    """
    for name, mine in own.items():
        theirs = saved.get(name, {})
        shapes = [{k: tuple(w.shape) for k, w in part.items()} for part in (mine, theirs)]
        if shapes[0] != shapes[1]:
            wrong = sorted(key for key, _ in shapes[0].items() ^ shapes[1].items())
            raise ValueError(f"expected the same weights in {name} of {folder}, got {wrong}")
        for key, weight in mine.items():
            weight.copy_(theirs[key])
            weight.requires_grad = False
