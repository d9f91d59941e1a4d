"""Reading a local diffusers folder: checked first, so that nothing is looked for on a hub.

Given a name that is no folder, the libraries would ask a hub for it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_accelerate_available
from transformers import AutoTokenizer

from stitchvm.models.texts import NULL_FILE


def check_folder(folder: str | Path, parts: tuple[str, ...]) -> Path:
    """The folder, once it is known to hold its parts.

    Args:
        folder: A local folder laid out as a diffusers pipeline.
        parts: Files it must hold, relative to it.

    Raises:
        FileNotFoundError: if the folder or one of the parts is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a local folder laid out as a diffusers pipeline, got {str(folder)!r}, "
            f"which is no folder; nothing is looked for on a hub"
        )
    missing = [part for part in parts if not (root / part).is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected {', '.join(parts)} in {root}, got no {', '.join(missing)}; "
            f"nothing is looked for on a hub"
        )
    return root


def load_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers network from its own folder, whatever dtype its files have."""
    network = kind.from_pretrained(
        folder,
        torch_dtype=dtype,
        low_cpu_mem_usage=is_accelerate_available(),
        local_files_only=True,
        use_safetensors=True,
    )
    return own(network, dtype)


def own(network: Any, dtype: torch.dtype) -> Any:
    """A network just read, its weights and buffers cast and in memory of their own.

    Without accelerate, diffusers does not widen float16 files and leaves buffers in float32.
    Views of a file lie where it was cut, and kernels round differently there.
    """
    return network._apply(lambda weight: weight.to(dtype, copy=True))


def check_texts(root: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> bool:
    """Whether a pipeline's folder has text encoders; it may do without where it has the null text.

    Args:
        root: The folder.
        required: Text encoders that come together or not at all.
        optional: Text encoders that may be missing.

    Raises:
        FileNotFoundError: if some are missing, or their tokenizers.
    """
    present = [part for part in (*required, *optional) if (root / part).is_dir()]
    if not present and (root / NULL_FILE).is_file():
        return False
    wanted = dict.fromkeys((*required, *present))
    networks = [f"{part}/config.json" for part in wanted]
    check_folder(root, (*networks, *(f"{_tokenizer(p)}/tokenizer_config.json" for p in wanted)))
    return True


def load_texts(root: Path, kinds: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders of a pipeline's folder and their tokenizers; None for missing ones."""
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        parts[name] = parts[_tokenizer(name)] = None
        if (root / name).is_dir():
            parts[name] = kind.from_pretrained(
                root / name, dtype=dtype, local_files_only=True, use_safetensors=True
            )
            parts[_tokenizer(name)] = AutoTokenizer.from_pretrained(
                root / _tokenizer(name), local_files_only=True
            )
    return parts


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
