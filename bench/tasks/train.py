"""The train task: a generator is trained by one method, judged as it goes, and timed.

    trial    learning rates, judged on tune prompts at the end
    pilot    a run whose plateau says which level the others are to reach
    run      the runs that are compared, each with a seed of its own
    cost     a training step beside one of the published method, in turns

The clock of a run is that of its training steps: evaluation, logging and checkpoints do not count.
Every run starts from the same generator; what is judged are samples of its averaged weights, from
noise that is the same at every evaluation, of every run and method.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import baselines
from bench.cell import Spec
from bench.interleaved import UNITS, clock_of
from bench.judging import by_prompt, scored
from bench.logbook import LOGS, Logbook
from bench.meter import peak_bytes
from bench.protocols import TrainProtocol
from bench.resolve import resolve
from bench.tasks.outcome import Outcome, Phases
from bench.tasks.value import batches
from bench.trainers import TRAINERS, Pupil, Trainer
from bench.worlds import expect_meaning, rewards_of
from bench.worlds import make as make_world
from stitchvm import checkpoint
from stitchvm.align.policy import Policy
from stitchvm.align.training import CHECKPOINT, PHASES, Keep, Recipe, Record
from stitchvm.backbone import Prompts
from stitchvm.path import time_grid
from stitchvm.reward import Reward
from stitchvm.sample import Diverged, Ode, sample
from stitchvm.streams import Streams, derive
from stitchvm.value import Sum, ValueEstimator
from stitchvm.world import World

Row = dict[str, Any]
CURVE = "curve.json"
FIGURES = tuple(name for name in Record._fields if name not in {"step", "samples", "seconds"})


def run(spec: Spec, device: str, folder: Path) -> Outcome:
    """Measure one cell.

    Args:
        spec: The cell.
        device: Where to compute.
        folder: Of what a killed run goes on from.

    Raises:
        ValueError: for what does not fit, before anything is trained.
    """
    phases = Phases()
    with phases("build"):
        school = School.of(spec, device, folder)
    outcome, p = Outcome(), school.protocol
    if p.seeds or p.tried or p.pilot:
        expect_meaning(school.world, "a training that is judged", "costs alone have seeds: 0")
    rate = p.rates[0]
    if p.tried:
        with phases("trials"):
            trials = [school.trial(rate) for rate in p.rates]
        outcome.rows += trials
        ended = [trial for trial in trials if trial["curve"]]
        if not ended:
            raise Diverged(f"all of {len(trials)} learning rates, {trials[0]['diverged']}")
        rate = max(ended, key=_reached)["rate"]
    with phases("runs"):
        if p.pilot:
            outcome.rows.append(school.trained(rate, "pilot", school.recipe(rate, "pilot")))
        for k in range(p.seeds):
            recipe = school.recipe(rate, "run", k)
            outcome.rows.append(school.trained(rate, "run", recipe) | {"seed": k})
    if p.rounds:
        with phases("timed"):
            outcome.rows.append(school.cost(rate))
    outcome.phases = phases.summary()
    return outcome


def _reached(trial: Row) -> float:
    """The target reward that a trial ended with; of one that is not finite, the lowest."""
    values = trial["curve"][-1]["metrics"]["target"]
    return -float("inf") if None in values else sum(values) / len(values)


@dataclass
class School:
    """Where generators are trained.

    Attributes:
        world: The world.
        rewards: Those whose sum is the target.
        value: Asked where rollouts end.
        trainer: How they are trained.
        protocol: How much.
        seed: Of all randomness.
        times: The sampler's grid.
        folder: Of what a killed run goes on from.
    """

    world: World
    rewards: list[Reward]
    value: ValueEstimator
    trainer: Trainer
    protocol: TrainProtocol
    seed: int
    times: Tensor
    folder: Path

    @classmethod
    def of(cls, spec: Spec, device: str, folder: Path) -> "School":
        """Everything built and checked.

        Raises:
            ValueError: for what does not fit.
        """
        if "backbone" in spec.world.parts:
            raise ValueError(
                f"expected the world's own generator to train, got "
                f"{spec.world.parts['backbone'].build!r}"
            )
        protocol, world = cast(TrainProtocol, spec.protocol), make_world(spec.world, device)
        rewards = rewards_of(spec.reward, world)
        build = resolve(spec.estimator.build, baselines.ESTIMATORS, "estimator")
        value = Sum([build(world, reward, **spec.estimator.settings) for reward in rewards])
        if spec.algorithm is None:
            raise ValueError("expected an algorithm, got none")
        made = resolve(spec.algorithm.build, TRAINERS, "algorithm")
        place = world.backbone.empty_latents(0).device
        school = cls(
            world=world,
            rewards=rewards,
            value=value,
            trainer=made(**spec.algorithm.settings),
            protocol=protocol,
            seed=spec.seed,
            times=time_grid(protocol.steps, shift=protocol.shift).to(place),
            folder=folder,
        )
        if protocol.tried and not world.tuning:
            raise ValueError(
                f"expected one rate in world {world.name!r}, which has no prompts to choose on, "
                f"got {len(protocol.rates)}"
            )
        return school

    @property
    def logs(self) -> Path:
        """Where what runs say lies, beside the folder of what is done once they end."""
        return self.folder.parents[1] / LOGS / self.folder.name

    def recipe(self, rate: float, *labels: object) -> Recipe:
        """How weights are trained, under a seed of what the labels name."""
        p = self.protocol
        return Recipe(
            steps=p.updates,
            prompts=p.prompts,
            group=p.group,
            rate=rate,
            decay=p.decay,
            average=p.average,
            batch=p.batch,
            seed=derive(self.seed, "train", *labels),
        )

    def pupil(self, value: ValueEstimator | None = None) -> Pupil:
        """A policy as it is before training, and what it is trained by."""
        network = self.world.trainable(self.protocol.rank, self.seed)
        return Pupil(
            policy=Policy(network, self.world.backbone.velocity),
            value=self.value if value is None else value,
            prompts=self.world.training(self.protocol.known),
            times=tuple(self.times.tolist()),
            clock=clock_of(self.times.device),
        )

    def trial(self, rate: float) -> Row:
        """A short run, judged at its end on prompts that are not judged by otherwise."""
        recipe = replace(self.recipe(rate, "trial"), steps=self.protocol.trial)
        try:
            return self.trained(rate, "trial", recipe, self.world.tuning)
        except Diverged as error:
            return {"phase": "trial", "rate": rate, "diverged": str(error), "curve": []}

    def trained(
        self, rate: float, phase: str, recipe: Recipe, prompts: Sequence[str] | None = None
    ) -> Row:
        """A run from the beginning or from where it was killed; its curve and its records."""
        pupil, judged = self.pupil(), self.world.prompts if prompts is None else prompts
        every = recipe.steps if phase == "trial" else self.protocol.every
        folder = self.folder / f"{phase}-{rate:g}-{recipe.seed}"
        diary = _Diary.read(folder)
        records = self.trainer.run(pupil, recipe, Keep(folder, every))
        if not diary.curve:
            diary.curve.append(self._judged(pupil.policy, judged) | _clock(0, 0.0, 0))
        with Logbook(self.logs / folder.name, len(diary.columns["reward"])) as log:
            for record in records:
                diary.add(record)
                log.add(record)
                if record.step % every == 0 or record.step == recipe.steps:
                    found = self._judged(pupil.policy, judged)
                    diary.curve.append(found | _clock(record.step, diary.seconds, record.samples))
                    diary.write(folder)
        return {
            "phase": phase,
            "rate": rate,
            "curve": diary.curve,
            "prompts": list(judged),
            "kinds": self.world.kinds(judged),
            "records": diary.columns,
        }

    @torch.no_grad()
    def _judged(self, policy: Policy, prompts: Sequence[str]) -> Row:
        """What samples of the averaged weights are worth."""
        keys = [(c, k) for c in prompts for k in range(self.protocol.samples)]
        c = [text for text, _ in keys]
        rng = Streams(derive(self.seed, "judged", *key) for key in keys)
        z = rng.normal(policy.network.empty_latents(len(keys)))
        sampler, parts = Ode(policy.holding(policy.averaged)), []
        for rows in batches(len(keys), self.protocol.batch):
            parts.append(sample(sampler, z[rows], self.times, c[rows]))
        scores = scored(self.world, self._target, torch.cat(parts), c, self.protocol.batch)
        return {"metrics": by_prompt(scores, len(prompts))}

    def _target(self, x: Tensor, c: Prompts) -> Tensor:
        """The sum of the rewards."""
        return torch.stack([reward(x, c) for reward in self.rewards]).sum(0)

    def cost(self, rate: float) -> Row:
        """Seconds by phase, and peak bytes, of a training step and of one of the published method.

        In turns, each with a policy of its own; a round has a step for every stop of the window,
        so that no chance decides which were timed, and as many of the published method.
        """
        clean = Sum([baselines.ESTIMATORS["terminal"](self.world, r) for r in self.rewards])
        stop, rounds = self.trainer.stop, self.protocol.rounds
        stops = [None] if stop is None else [(k, k) for k in range(stop[0], stop[1] + 1)]
        recipe = replace(self.recipe(rate, "cost"), steps=len(stops) * rounds + 2)
        pupils, other = [self.pupil() for _ in stops], self.pupil(clean)
        runs: dict[str, list[Iterator[Record]]] = {
            "this": [
                replace(self.trainer, stop=of).run(pupil, recipe)
                for of, pupil in zip(stops, pupils, strict=True)
            ],
            "published": [self.trainer.published.run(other, recipe)] * len(stops),
        }
        for running in (*runs["this"], runs["published"][0]):
            next(running)  # warm
        spent: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(rounds):
            sums = {name: dict.fromkeys(PHASES, 0.0) for name in runs}
            for k in range(len(stops)):
                for name in runs:
                    for phase, x in next(runs[name][k]).seconds.items():
                        sums[name][phase] += x / len(stops)
            for name, of_round in sums.items():
                spent[name].append(of_round)
        own = [w for pupil in (*pupils, other) for w in pupil.policy.everything()]
        standing = [*own, *(w for part in (self.world.backbone, *self.rewards, self.value)
                            for w in part.state_dict().values())]  # fmt: skip
        peaks = {
            name: peak_bytes(partial(next, running[-1]), self.times.device, iter(standing))
            for name, running in runs.items()
        }
        return {
            "phase": "cost",
            "rate": rate,
            "unit": UNITS[self.times.device.type],
            "step_seconds": {
                name: {phase: [one[phase] for one in steps] for phase in PHASES}
                for name, steps in spent.items()
            },
            "peaks": peaks,
        }


def _clock(step: int, seconds: float, samples: int) -> Row:
    return {"step": step, "seconds": seconds, "samples": samples}


@dataclass
class _Diary:
    """What a run has come to: never behind its checkpoint, and cut back to it."""

    curve: list[Row]
    columns: dict[str, list[Any]]

    @classmethod
    def read(cls, folder: Path) -> "_Diary":
        """That of a run that was killed, up to its checkpoint; else an empty one."""
        empty: dict[str, list[Any]] = {name: [] for name in (*FIGURES, *PHASES)}
        if not (folder / CHECKPOINT).is_file():
            return cls([], empty)
        step = checkpoint.read(folder / CHECKPOINT)["step"]
        kept = json.loads((folder / CURVE).read_text())
        curve = [point for point in kept["curve"] if point["step"] <= step]
        return cls(curve, {name: x[:step] for name, x in kept["columns"].items()})

    @property
    def seconds(self) -> float:
        """Of all training steps so far."""
        return float(sum(sum(self.columns[phase]) for phase in PHASES))

    def add(self, record: Record) -> None:
        """Note a step."""
        for name in FIGURES:
            value = getattr(record, name)
            self.columns[name].append(value if math.isfinite(value) else None)
        for phase in PHASES:
            self.columns[phase].append(record.seconds[phase])

    def write(self, folder: Path) -> None:
        """Keep it, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{CURVE}.{os.getpid()}.new"
        new.write_text(json.dumps({"curve": self.curve, "columns": self.columns}))
        os.replace(new, folder / CURVE)
