"""Making the shapes world: stages in order, each resumable, each done once.

A stage leaves `<folder>/<stage>/model`; what is there is not made again.  Stages can also be taken
from exported weights, and the generators among them trained further.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.worlds.shapes.make import aesthetic, clip, generator, preference, reader, tiny, vae
from bench.worlds.shapes.weights import verify

FURTHER = ("large", "small")  # stages that nothing else is made from
START = "start"  # folder of the weights that a stage is trained further from


@dataclass(frozen=True)
class Stage:
    """One network.

    Attributes:
        about: What it is.
        minutes: That its training takes on one core.
        train: Trains it in a folder of stages, yielding records.
        exported: Parts of its network by where they lie in exported weights.
        only_for: The stages that need it, if it is not exported itself.
    """

    about: str
    minutes: int
    train: Callable[[Path], Iterator[dict[str, Any]]]
    exported: Mapping[str, str] = field(default_factory=dict)
    only_for: tuple[str, ...] = ()


def _model(folder: Path, stage: str) -> Path:
    """Where a finished stage keeps its network.

    Raises:
        ValueError: if that stage has not been finished.
    """
    path = folder / stage / "model"
    if not path.is_dir():
        raise ValueError(f"expected stage {stage!r} to be finished first, got no {path}")
    return path


def _generator(name: str, about: str, minutes: int, size: generator.Size, seed: int) -> Stage:
    """The stage of a generator, which is trained further where it was taken from weights."""

    def train(folder: Path) -> Iterator[dict[str, Any]]:
        coder = _model(folder, "vae")
        read = None if (folder / name / START).is_dir() else _model(folder, "reader")
        return generator.train(folder / name, coder, read, size, seed)

    return Stage(about, minutes, train, {part: f"{name}/{part}" for part in generator.PARTS})


STAGES = {
    "vae": Stage("the autoencoder", 23, lambda f: vae.train(f / "vae"), {"": "large/vae"}),
    "clip": Stage(
        "the reward's CLIP", 24, lambda f: clip.train(f / "clip", clip.REWARD, 1), {"": "clip"}
    ),
    "reader": Stage(
        "the text encoder that the generators begin with",
        2,
        lambda f: reader.train(f / "reader", 5),
        only_for=("large", "small"),
    ),
    "large": _generator(
        "large", "the generator and its text encoders", 75, generator.LARGE, seed=3
    ),
    "small": _generator(
        "small", "a smaller generator on the same latents", 13, generator.SMALL, seed=4
    ),
    "tiny": Stage(
        "the tiny decoder", 10, lambda f: tiny.train(f / "tiny", _model(f, "vae")), {"": "tiny"}
    ),
    "aesthetic": Stage(
        "the head on the reward's CLIP",
        1,
        lambda f: aesthetic.train(f / "aesthetic", _model(f, "clip")),
        {"": "aesthetic"},
    ),
    "hps": Stage(
        "the reward's CLIP finetuned on preferences",
        12,
        lambda f: preference.train(f / "hps", _model(f, "clip"), preference.graded, 1100, seed=7),
        {"": "hps"},
    ),
    "judge": Stage(
        "another CLIP",
        10,
        lambda f: clip.train(f / "judge", clip.JUDGE, 2),
        only_for=("pick",),
    ),
    "pick": Stage(
        "that CLIP finetuned on other preferences",
        5,
        lambda f: preference.train(
            f / "pick", _model(f, "judge"), preference.pleased, 700, seed=8
        ),
        {"": "pick"},
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


def adopt(weights: Path, folder: Path, further: tuple[str, ...] = ()) -> None:
    """Take stages from exported weights, but for those that the folder has.

    Args:
        weights: An exported folder.
        folder: Of the stages.
        further: Stages to train further from what they were, instead of taking them as finished.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if they are not what their digests say, or for a stage that other stages were
            made from.
    """
    verify(weights)
    if wrong := set(further) - set(FURTHER):
        raise ValueError(f"expected stages to train further in {FURTHER}, got {sorted(wrong)}")
    for name, stage in STAGES.items():
        if not stage.exported or (folder / name).exists():
            continue
        new = folder / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        to, log = (START, "earlier") if name in further else ("model", "log")
        for part, source in stage.exported.items():
            shutil.copytree(weights / source, new / to / part)
        kept = weights / "logs" / f"{name}.jsonl"
        if kept.is_file():
            shutil.copy(kept, new / f"{log}.jsonl")
        new.rename(folder / name)


def missing(folder: Path, stages: tuple[str, ...] = ()) -> list[str]:
    """Those of the stages, all by default, that are not finished, in order."""

    def finished(name: str) -> bool:
        return (folder / name / "model").is_dir()

    def needed(name: str) -> bool:
        only_for = STAGES[name].only_for
        return not only_for or not all(
            finished(n) or (folder / n / START).is_dir() for n in only_for
        )

    return [n for n in STAGES if (not stages or n in stages) and not finished(n) and needed(n)]
