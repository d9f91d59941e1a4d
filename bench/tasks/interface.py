"""The interface task: every pair (i, j) of one i finetuned alike, and how good each becomes.

All pairs see the same images, times and noise for the same number of steps (Eq. 78), the paper's
search stopping at j = 4 notwithstanding.  Before and after, on pictures that nothing saw:

    error     E | e_s(z_t) - e(x_0) |^2      at the recipe's times, the same for every pair
    recall    Recall@1 of both directions    at one noise level; captions ranked by the value

Pairs of one i share the frozen trunk and are trained side by side.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.arms import ARMS, Given, stitched
from bench.cell import Spec
from bench.images import WorldImages
from bench.metrics.retrieval import both_ways
from bench.protocols import InterfaceProtocol
from bench.stitching import Job, Workshop
from bench.tasks.outcome import Outcome, Phases
from bench.worlds import expect_meaning
from bench.worlds import make as make_world
from stitchvm.backbone import NULL
from stitchvm.distill import Recipe, Student, distill
from stitchvm.memo import Shared
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.search import Pair, Search, Settings, search
from stitchvm.streams import Streams, derive
from stitchvm.world import Split, World

Begin = Callable[[Given], Student]
AT_ONCE = 100  # pictures
SPLITS: tuple[Split, ...] = ("train", "held")


def _begin(name: str) -> Begin:
    """The build of an arm, which has no settings of its own."""

    def build(given: Given) -> Student:
        return ARMS[name].begin(given, **ARMS[name].settings)

    return build


STITCHED: dict[str, Begin] = {
    name: _begin(name)
    for name, arm in ARMS.items()
    if arm.begin is stitched and arm.trunk == "backbone" and "condition" not in arm.settings
}

RECALLS = ("image_to_text", "text_to_image")


def run(spec: Spec, device: str = "cpu") -> Outcome:
    """Train and judge the pairs of one cell.

    Raises:
        ValueError: for a backbone without block i, or a reward that the world does not test by
            retrieval.
    """
    protocol, phases = InterfaceProtocol.model_validate(spec.protocol), Phases()
    with phases("build"):
        world = make_world(spec.world, device)
        reward = world.reward(spec.reward.build)
        judge = Judge(world, reward, protocol, spec.seed)
    with phases("search"):
        found = _search(world, reward, protocol, spec.seed)
        pairs = [pair for pair in found.pairs if pair.i == protocol.i]
        if not pairs:
            raise ValueError(f"expected i in 1..{world.backbone.depth}, got {protocol.i}")
    backbone = Shared(world.backbone)
    x_0 = next(world.images("train", protocol.probes)).x_0
    students = [
        STITCHED[spec.estimator.build](Given(backbone, reward, found, (pair.i, pair.j), x_0))
        for pair in pairs
    ]
    with phases("judged"):
        before = judge.of(students)
    start = time.perf_counter()
    with phases("trained"):
        _train(students, world, spec, protocol)
    share = (time.perf_counter() - start) / len(pairs)
    with phases("judged"):
        after = judge.of(students)
    clean = float(judge.clean.mean())
    rows = [
        _row(found, pair, *both, seconds=share, clean=clean)
        for pair, *both in zip(pairs, before, after, strict=True)
    ]
    return Outcome(rows=rows, phases=phases.summary())


def _search(world: World, reward: Reward, protocol: InterfaceProtocol, seed: int) -> Search:
    """Stage 1 over all pairs, the last blocks of the reward included."""
    entries = protocol.entries or tuple(range(1, reward.depth + 1))
    images = ([shown.x_0 for shown in world.images(split, protocol.probes)] for split in SPLITS)
    return search(world.backbone, reward, *images, settings=Settings(entries=entries, seed=seed))


def _train(students: list[Student], world: World, spec: Spec, protocol: InterfaceProtocol) -> None:
    """Stage 2 of all pairs, a step of each in turn."""
    with TemporaryDirectory() as folder:
        shop = Workshop(world, Path(folder), WorldImages(world), protocol.images)
        job = Job(spec.reward.build, spec.estimator.build)
        (data,) = shop.data([job], "train", protocol.images)
    asked = {name: getattr(protocol, name) for name in ("steps", "batch", "rate", "warmup")}
    recipe = shop.recipe(job, Recipe(**asked, seed=spec.seed))
    for _ in zip(*(distill(student, data, recipe) for student in students), strict=True):
        pass


class Judged(NamedTuple):
    """Squared embedding error of each picture (n,), and Recall@1 by item, (n + T,)."""

    error: np.ndarray
    recall: np.ndarray


class Judge:
    """Judges value models on one set of noisy pictures.

    Args:
        world: Where.
        reward: What they are to agree with.
        protocol: How many pictures, and at which noise level.
        seed: Of times and noise.

    Raises:
        ValueError: if the world does not test the reward by retrieval.
    """

    @torch.no_grad()
    def __init__(
        self, world: World, reward: Reward, protocol: InterfaceProtocol, seed: int
    ) -> None:
        evaluation = world.evaluation(reward, protocol.pictures)
        if evaluation is None:
            raise ValueError(f"expected a reward that world {world.name!r} can test, got none")
        expect_meaning(world, "embeddings that are judged", "weights=hub, or a folder of copies")
        x_0 = torch.cat(list(evaluation.images()))
        self.reward, self.evaluation = reward, evaluation
        self.z_0 = _batched(world.backbone.encode, x_0)
        self.target = _batched(lambda x: reward.features(x).embedding, x_0)
        rng = Streams.of(seed, "interface", rows=len(x_0))
        self.eps = rng.child("eps").normal(self.z_0)
        times = Recipe(steps=1).draw(
            len(x_0), torch.Generator().manual_seed(derive(seed, "times"))
        )
        self.t, self.sigma = times.to(self.z_0), self.z_0.new_tensor(protocol.sigma)
        self.clean = self._recall(self.target)

    @torch.no_grad()
    def of(self, models: Sequence[Student]) -> list[Judged]:
        """What value models are worth; those on a shared backbone share its work."""
        found = []
        at_times, at_sigma = (
            self._embeddings(models, t) for t in (self.t, self.sigma.expand(len(self.t)))
        )
        for guessed, seen in zip(at_times, at_sigma, strict=True):
            error = (guessed - self.target).square().sum(-1).double().cpu().numpy()
            found.append(Judged(error, self._recall(seen)))
        return found

    def _embeddings(self, models: Sequence[Student], t: Tensor) -> list[Tensor]:
        """Of every model, (n, D) each, a batch of all of them in turn."""
        z_t = noise(self.z_0, t, self.eps)
        parts = [
            [model.features(z, at, [NULL] * len(z)).embedding for model in models]
            for z, at in zip(z_t.split(AT_ONCE), t.split(AT_ONCE), strict=True)
        ]
        return [torch.cat(of_one) for of_one in zip(*parts, strict=True)]

    def _recall(self, e: Tensor) -> np.ndarray:
        """Recall@1 of both directions by item.

        Raises:
            ValueError: if the embeddings are tested for something else.
        """
        marks = self.evaluation.marks(self.reward, e)
        if set(marks) != set(RECALLS):
            raise ValueError(f"expected a reward that is tested by retrieval, got {list(marks)}")
        return both_ways(*(marks[name] for name in RECALLS))


def _slices(rows: int) -> Iterator[slice]:
    return (slice(first, first + AT_ONCE) for first in range(0, rows, AT_ONCE))


def _batched(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(x[rows]) for rows in _slices(len(x))])


def _row(
    found: Search, pair: Pair, before: Judged, after: Judged, *, seconds: float, clean: float
) -> dict[str, Any]:
    """What a record keeps of a pair; its seconds are an even share of training them all."""
    figures = ("loss", "normalised", "r2", "held_loss", "held_normalised", "held_r2", "cost")
    return {
        "i": pair.i,
        "j": pair.j,
        "picked": [name for name, pick in found.picks.items() if pick == pair],
        **{name: getattr(pair, name) for name in figures},
        "seconds": seconds,
        "clean_recall": clean,
        "metrics": {
            "error": after.error.tolist(),
            "error_before": before.error.tolist(),
            "recall": after.recall.tolist(),
            "recall_before": before.recall.tolist(),
        },
    }
