"""Reading a local diffusers folder: checked first, so that nothing is looked for on a hub.

Given a name that is no folder, the libraries would ask a hub for it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_accelerate_available
from transformers import AutoTokenizer

from stitchvm.models.texts import Text, load_null, read_null


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


def load_texts(
    root: Path,
    kinds: dict[str, Any],
    dtype: torch.dtype,
    *,
    null: str | Path | None = None,
    optional: tuple[str, ...] = (),
) -> tuple[dict[str, Any] | None, Text | None]:
    """What a pipeline's folder reads prompts with: text encoders, and a stored null prompt.

    Args:
        root: The folder.
        kinds: Classes of its text encoders, by name.
        dtype: Of their weights.
        null: File of the null prompt's embedding, read in place of the text encoders.
        optional: Text encoders that may be missing.

    Returns:
        The text encoders and their tokenizers, None for missing ones, and the null prompt's
        embedding, None where the folder has none.  In place of all text encoders None, where
        `null` is given, or the folder has a null prompt and not one of them.

    Raises:
        FileNotFoundError: if some are missing, or their tokenizers, or the file.
        ValueError: see `read_null`.
    """
    stored = load_null(root) if null is None else read_null(null)
    present = [name for name in kinds if (root / name).is_dir()]
    if null is not None or (stored is not None and not present):
        return None, stored
    wanted = [name for name in kinds if name in present or name not in optional]
    networks = [f"{name}/config.json" for name in wanted]
    check_folder(root, (*networks, *(f"{_tokenizer(n)}/tokenizer_config.json" for n in wanted)))
    parts: dict[str, Any] = {part: None for name in kinds for part in (name, _tokenizer(name))}
    for name in wanted:
        parts[name] = kinds[name].from_pretrained(
            root / name, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        parts[_tokenizer(name)] = AutoTokenizer.from_pretrained(
            root / _tokenizer(name), local_files_only=True
        )
    return parts, stored


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
