"""Lists of prompts of one's own, for any world that can show them.

list.txt          one a line; empty lines and those that begin with # do not count
list.jsonl        one a line: a string, or a mapping with `prompt`
list.py:build     what `build(world)` returns
drawbench         a published benchmark's, with its `path`; so is geneval (`bench.datasets`)
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.datasets import PROMPTS
from bench.resolve import resolve
from stitchvm.world import World

LISTS = (".txt", ".jsonl")


def listed(name: Any) -> bool:
    """Whether a world's `prompts` name a list: no count, and no set of the world's own."""
    if not isinstance(name, str):
        return False
    return name in PROMPTS or ":" in name or Path(name).suffix in {*LISTS, ".py"}


def build_of(name: str) -> Callable[..., Sequence[str]]:
    """What makes a list of prompts for a world.

    Raises:
        ValueError: if there is no such file, function or module.
    """
    path = Path(name).expanduser()
    if path.suffix not in LISTS:
        return resolve(name, PROMPTS, "prompts")
    if not path.is_file():
        raise ValueError(f"expected a list of prompts at {path}, found no file")

    def build(world: World) -> Sequence[str]:
        del world
        return read(path)

    return build


def read(path: Path) -> list[str]:
    """The prompts of a text file.

    Raises:
        ValueError: for a line that is no prompt.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".txt":
        return [line for line in lines if line and not line.startswith("#")]
    return [_prompt(line, f"{path}:{k}") for k, line in enumerate(lines, 1) if line]


def _prompt(line: str, where: str) -> str:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {line[:40]!r}: {error}") from None
    text = said.get("prompt") if isinstance(said, dict) else said
    if not isinstance(text, str):
        raise ValueError(f'{where}: expected a string or {{"prompt": ...}}, got {line[:40]!r}')
    return text


def checked(found: Any, world: World) -> tuple[str, ...]:
    """Prompts that a world can show, each once.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(found, str) or not isinstance(found, Sequence) or not len(found):
        got = f"{len(found)}" if isinstance(found, Sequence) else type(found).__name__
        raise ValueError(f"expected a list of prompts, at least one, got {got}")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected prompts of some words, got {text!r}")
    if len(set(found)) < len(found):
        twice = next(text for k, text in enumerate(found) if text in found[:k])
        raise ValueError(f"expected every prompt once, got {twice!r} again")
    world.admit(found)
    return tuple(found)
