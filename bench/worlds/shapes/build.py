"""Making the shapes world: stages in order, each resumable, each done once.

A stage leaves `<folder>/<stage>/model`; what is there is not made again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.worlds.shapes.make import aesthetic, clip, generator, preference, tiny, vae


@dataclass(frozen=True)
class Stage:
    """One network.

    Attributes:
        about: What it is.
        minutes: That its training takes on one core.
        train: Trains it in a folder of stages, yielding records.
    """

    about: str
    minutes: int
    train: Callable[[Path], Iterator[dict[str, Any]]]


def _model(folder: Path, stage: str) -> Path:
    """Where a finished stage keeps its network.

    Raises:
        ValueError: if that stage has not been finished.
    """
    path = folder / stage / "model"
    if not path.is_dir():
        raise ValueError(f"expected stage {stage!r} to be finished first, got no {path}")
    return path


STAGES = {
    "vae": Stage("the autoencoder", 30, lambda f: vae.train(f / "vae")),
    "clip": Stage("the reward's CLIP", 20, lambda f: clip.train(f / "clip", clip.REWARD, 1)),
    "large": Stage(
        "the generator and its text encoders",
        120,
        lambda f: generator.train(f / "large", _model(f, "vae"), generator.LARGE, 3),
    ),
    "small": Stage(
        "a smaller generator on the same latents",
        40,
        lambda f: generator.train(f / "small", _model(f, "vae"), generator.SMALL, 4),
    ),
    "tiny": Stage("the tiny decoder", 8, lambda f: tiny.train(f / "tiny", _model(f, "vae"))),
    "aesthetic": Stage(
        "the head on the reward's CLIP",
        1,
        lambda f: aesthetic.train(f / "aesthetic", _model(f, "clip")),
    ),
    "hps": Stage(
        "the reward's CLIP finetuned on preferences",
        16,
        lambda f: preference.train(f / "hps", _model(f, "clip"), preference.graded, 1800, seed=7),
    ),
    "judge": Stage("another CLIP", 8, lambda f: clip.train(f / "judge", clip.JUDGE, 2)),
    "pick": Stage(
        "that CLIP finetuned on other preferences",
        6,
        lambda f: preference.train(
            f / "pick", _model(f, "judge"), preference.pleased, 700, seed=8
        ),
    ),
}


def build(
    folder: Path, stages: tuple[str, ...], threads: int
) -> Iterator[tuple[str, dict[str, Any]]]:
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
    for name in missing(folder, stages):
        for record in STAGES[name].train(folder):
            yield name, record


def missing(folder: Path, stages: tuple[str, ...] = ()) -> list[str]:
    """Those of the stages, all by default, that are not finished, in order."""
    asked = [name for name in STAGES if not stages or name in stages]
    return [name for name in asked if not (folder / name / "model").is_dir()]
