"""Making the shapes world: stages in order, each resumable, each done once.

A stage leaves `<folder>/<stage>/model`; what is there is not made again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.worlds.shapes.make import aesthetic, clip, generator, preference, tiny, vae

Stage = Callable[[Path], Iterator[dict[str, Any]]]


def _model(folder: Path, stage: str) -> Path:
    """Where a finished stage keeps its network.

    Raises:
        ValueError: if that stage has not been finished.
    """
    path = folder / stage / "model"
    if not path.is_dir():
        raise ValueError(f"expected stage {stage!r} to be finished first, got no {path}")
    return path


STAGES: dict[str, tuple[str, Stage]] = {
    "vae": ("the autoencoder", lambda f: vae.train(f / "vae")),
    "clip": ("the reward's CLIP", lambda f: clip.train(f / "clip", clip.REWARD, 1)),
    "large": (
        "the generator and its text encoders",
        lambda f: generator.train(f / "large", _model(f, "vae"), generator.LARGE, 3),
    ),
    "small": (
        "a smaller generator on the same latents",
        lambda f: generator.train(f / "small", _model(f, "vae"), generator.SMALL, 4),
    ),
    "tiny": ("the tiny decoder", lambda f: tiny.train(f / "tiny", _model(f, "vae"))),
    "aesthetic": (
        "the head on the reward's CLIP",
        lambda f: aesthetic.train(f / "aesthetic", _model(f, "clip")),
    ),
    "hps": (
        "the reward's CLIP finetuned on preferences",
        lambda f: preference.train(f / "hps", _model(f, "clip"), preference.graded, 7),
    ),
    "judge": ("another CLIP", lambda f: clip.train(f / "judge", clip.JUDGE, 2)),
    "pick": (
        "that CLIP finetuned on other preferences",
        lambda f: preference.train(f / "pick", _model(f, "judge"), preference.pleased, 8),
    ),
}


def build(folder: Path, stages: tuple[str, ...], threads: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make stages, all by default, in the order of STAGES.

    Args:
        folder: Of checkpoints, logs and finished networks.
        stages: Which; those finished are passed over.
        threads: CPU threads.

    Yields:
        The stage's name and its records: step, seconds, loss, figures.

    Raises:
        ValueError: for an unknown stage, or one whose input is not finished.
    """
    unknown = set(stages) - STAGES.keys()
    if unknown:
        raise ValueError(f"expected stages in {list(STAGES)}, got {sorted(unknown)}")
    torch.set_num_threads(threads)
    for name, (_, train) in STAGES.items():
        if (stages and name not in stages) or (folder / name / "model").is_dir():
            continue
        for record in train(folder):
            yield name, record
