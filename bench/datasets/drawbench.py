"""DrawBench: 200 prompts of 11 kinds, a CSV file with the columns Prompts and Category.

A prompt that stands in two categories counts once, in the first.  Saharia et al., 2022,
arXiv:2205.11487; https://huggingface.co/datasets/sayakpaul/drawbench, listed there as Apache-2.0.
"""

from pathlib import Path

from bench.datasets.files import table
from bench.datasets.kinds import Asked, chosen
from stitchvm.world import World


def read(path: Path) -> list[Asked]:
    """All of them, in order.

    Raises:
        ValueError: if a column or a prompt is missing.
    """
    kinds: dict[str, str] = {}
    for prompt, kind in table(path, ("Prompts", "Category")):
        if not prompt or not kind:
            raise ValueError(f"{path}: expected a prompt and its category, got {[prompt, kind]}")
        kinds.setdefault(prompt, kind)
    if not kinds:
        raise ValueError(f"expected prompts in {path}, got none")
    return [Asked(prompt, kind) for prompt, kind in kinds.items()]


def build(
    world: World, *, path: str, kinds: tuple[str, ...] = (), per_kind: int | None = None
) -> list[str]:
    """Prompts for a world.

    Args:
        world: Any; it refuses what it cannot show.
        path: Of the CSV file.
        kinds: Categories; none for all.
        per_kind: The first so many of each.

    Raises:
        ValueError: for what is missing or broken.
    """
    del world
    return chosen(read(Path(path).expanduser()), kinds, per_kind)
