"""Checkpoints that are there whole or not at all."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain data; a process that dies meanwhile leaves the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    torch.save(state, new)
    os.replace(new, path)


def read(path: Path) -> dict[str, Any]:
    """A state, on the CPU.

    Raises:
        ValueError: if there is none, or a torn one.
    """
    if not path.is_file():
        raise ValueError(f"expected a checkpoint at {path}, got none")
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"expected a whole checkpoint at {path}, got a torn one") from error
