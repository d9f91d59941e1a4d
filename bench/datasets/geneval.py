"""GenEval: 553 prompts of six kinds that a detector can verify.

`evaluation_metadata.jsonl` has one a line: {"tag": ..., "include": [...], "prompt": ...}.  Ghosh
et al., 2023, arXiv:2310.11513; https://github.com/djghosh13/geneval.  MIT.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from bench.datasets.files import parsed_lines
from bench.datasets.kinds import Asked, chosen
from stitchvm.world import World


class Thing(BaseModel):
    """What must, or must not, be seen."""

    model_config = ConfigDict(extra="allow")
    count: int


class Metadata(BaseModel):
    """A prompt and how it is verified."""

    model_config = ConfigDict(extra="allow")
    tag: str
    include: list[Thing]
    prompt: str


def metadata(path: Path) -> dict[str, dict[str, Any]]:
    """What each line says, by its prompt.

    Raises:
        ValueError: if a line is cut off or of another form, or a prompt stands twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in parsed_lines(path, TypeAdapter(Metadata)):
        if line.prompt in found:
            raise ValueError(f"expected every prompt once in {path}, got {line.prompt!r} again")
        found[line.prompt] = line.model_dump()
    return found


def build(
    world: World, *, path: str, kinds: tuple[str, ...] = (), per_kind: int | None = None
) -> list[str]:
    """Prompts for a world.

    Args:
        world: Any; it refuses what it cannot show.
        path: Of `evaluation_metadata.jsonl`.
        kinds: Tags, such as `counting`; none for all.
        per_kind: The first so many of each.

    Raises:
        ValueError: for what is missing or broken.
    """
    del world
    found = metadata(Path(path).expanduser())
    return chosen([Asked(prompt, said["tag"]) for prompt, said in found.items()], kinds, per_kind)
