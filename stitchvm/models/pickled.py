"""Tensors out of files that torch pickled: read as data, never run as code."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

NEST = "state_dict"  # where training checkpoints keep their weights


def read(file: Path | str) -> dict[str, Tensor]:
    """The tensors by name in a file of `torch.save`, on the CPU; those of a checkpoint's model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, holds anything but tensors by name, or would run code.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"expected weights in {file}, got no such file")
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"expected tensors alone in {file}, got a pickle that asks for more, which could run "
            f"code: {_first_line(error)}"
        ) from None
    except Exception as error:  # what a file that is cut off raises depends on where
        raise ValueError(f"expected a whole file {file}, got {_first_line(error)}") from None
    tensors = loaded.get(NEST, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"expected tensors by name in {file}, got {_kind(tensors)}")
    return dict(tensors)


def _kind(found: Any) -> str:
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    other = next(name for name, value in found.items() if not torch.is_tensor(value))
    return f"a {type(found[other]).__name__} named {other!r}"


def _first_line(error: BaseException) -> str:
    return f"{error}".partition("\n")[0]
