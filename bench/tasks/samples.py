"""Steered samples of one cell: what makes them, and what they are worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import baselines
from baselines.terminal import Terminal
from bench.algorithms import ALGORITHMS, Algorithm, Guide, Made, Setting
from bench.cell import Spec
from bench.judging import Scorer, by_prompt, finite, judges_of, scored
from bench.meter import KINDS, Calls, seconds
from bench.metrics.align import diversity, energy, mmd
from bench.protocols import AlignProtocol
from bench.resolve import resolve
from bench.tasks.outcome import Outcome
from bench.tasks.steps import Steps
from bench.tasks.value import batches
from bench.tasks.walks import Walks
from bench.worlds import make as make_world
from bench.worlds import reward_of
from stitchvm.align.guide import CFG
from stitchvm.backbone import Velocity
from stitchvm.memo import SharedTrunk
from stitchvm.path import time_grid
from stitchvm.reward import Reward
from stitchvm.sample import NU, Ode, Sampler, Sde
from stitchvm.streams import Streams, derive
from stitchvm.value import ValueEstimator
from stitchvm.world import World

Row = dict[str, Any]
SHOWN = 6  # prompts, one sample of each, whose pictures are kept


def nothing(world: World, reward: Reward) -> None:
    """No estimator: of algorithms that ask for none."""
    del world, reward


ESTIMATORS: dict[str, Callable[..., Any]] = {**baselines.ESTIMATORS, "none": nothing}


def kernel_of(name: str) -> Callable[[Velocity], Sampler]:
    """What makes a sampler of a velocity."""
    return Ode if name == "ode" else lambda velocity: Sde(velocity, NU[name])


@dataclass
class Place:
    """Where samples are made.

    Attributes:
        world: The world, its backbone shared by sampler and estimator where asked.
        reward: The target reward.
        algorithm: How samples are steered.
        setting: What it works with.
        protocol: How much.
        seed: Of all randomness.
        calls: The counter that watches.
        judges: Users' own, by name.
    """

    world: World
    reward: Reward
    algorithm: Algorithm
    setting: Setting
    protocol: AlignProtocol
    seed: int
    calls: Calls
    judges: dict[str, Scorer]

    @classmethod
    def of(cls, spec: Spec, protocol: AlignProtocol, device: str) -> "Place":
        """Everything built and checked.

        Raises:
            ValueError: for what does not fit.
        """
        world, calls = make_world(spec.world, device), Calls()
        reward = reward_of(spec.reward, world)
        calls.watch(world.backbone)
        if world.tiny is not None:
            calls.watch(world.tiny)
        calls.watch(reward)
        if protocol.share:
            world.backbone = SharedTrunk(world.backbone)
        build = resolve(spec.estimator.build, ESTIMATORS, "estimator")
        value: ValueEstimator | None = build(world, reward, **spec.estimator.settings)
        if value is not None:
            calls.watch(value)
            if value.latent != world.backbone.latent:
                raise ValueError(
                    f"expected an estimator of latents {world.backbone.latent}, as the generator "
                    f"makes, got {value.latent}"
                )
        part = spec.algorithm
        if part is None:
            raise ValueError("expected an algorithm, got none")
        algorithm = resolve(part.build, ALGORITHMS, "algorithm")(**part.settings)
        place = world.backbone.empty_latents(0).device
        times = time_grid(protocol.steps, shift=protocol.shift).to(place)
        setting = Setting(
            velocity=CFG(world.backbone.velocity, protocol.cfg),
            kernel=kernel_of(protocol.kernel),
            times=times,
            value=value,
            terminal=Terminal(world.backbone, reward),
        )
        algorithm.check(setting)
        if protocol.trials and algorithm.tuned and not world.tuning:
            raise ValueError(
                f"expected trials: 0 in world {world.name!r}, which has no prompts to tune on, "
                f"got {protocol.trials}"
            )
        judges = judges_of(protocol.judges, world)
        return cls(world, reward, algorithm, setting, protocol, spec.seed, calls, judges)

    @property
    def device(self) -> torch.device:
        """Where the world computes."""
        return self.setting.times.device

    def steps(self, guide: Guide) -> Steps:
        """Its guided steps, to be timed."""
        p = self.protocol
        return Steps(
            self.world, self.reward, self.setting, guide, p.cfg if p.classic else None,
            p.cost_batches, p.rounds, self.seed, self.calls,
        )  # fmt: skip

    @property
    def walks(self) -> Walks:
        """The kinds of steps that its samples are made of, to be timed."""
        p = self.protocol
        return Walks(self.world, self.setting, self.algorithm, p.rounds, self.seed)

    @torch.no_grad()
    def made(
        self,
        prompts: Sequence[str],
        samples: int,
        split: str,
        strength: float | None,
        outcome: Outcome | None = None,
        prefix: str = "",
    ) -> Row:
        """Samples of each prompt, and what they are worth."""
        keys = [(c, k) for c in prompts for k in range(samples)]
        size = max(1, self.protocol.batch // self.algorithm.particles)
        cpu, wall, parts, log = [], [], [], []
        with self.calls.during() as spent:
            for rows in batches(len(keys), size):
                start = time.process_time()
                took, made = seconds(
                    partial(self.steered, keys[rows], strength, split), self.device
                )
                cpu.append(time.process_time() - start)
                wall.append(took)
                parts.append(made.z_0)
                log.append(made.log)
        z_0 = torch.cat(parts)
        lam = None if strength is None else self.algorithm.lam(self.setting, strength)
        texts = [c for c, _ in keys]
        batch, judges = self.protocol.batch, self.judges
        scores = scored(self.world, self.reward, z_0, texts, batch, judges)
        if outcome is not None:
            outcome.arrays |= {f"{prefix}{name}": x.numpy() for name, x in scores.items()}
            if self.protocol.keep:
                outcome.arrays[f"{prefix}z_0"] = z_0.cpu().numpy()
            if (shown := self.world.pictures(z_0[::samples][:SHOWN])) is not None:
                pixels = ((shown + 1) * 127.5).round().byte().cpu().numpy()
                outcome.arrays[f"{prefix}pictures"] = pixels
        return {
            "strength": strength,
            "lam": lam,
            "spread": self.setting.spread,
            "samples": len(keys),
            "prompts": list(prompts),
            "kinds": self.world.kinds(prompts),
            "seconds": cpu if self.device.type == "cpu" else wall,
            "wall": wall,
            "rows": [rows.stop - rows.start for rows in batches(len(keys), size)],
            "calls": {kind: spent[kind] / len(keys) for kind in KINDS},
            "nonfinite": int((~scores["target"].isfinite()).sum()),
            "diverged": None,
            "metrics": self._metrics(z_0, scores, prompts, None if outcome is None else lam),
            "within": _within(scores["target"], len(prompts)),
            "log": _merged(log),
        }

    def steered(self, keys: Sequence[tuple[str, int]], strength: float | None, split: str) -> Made:
        """Latents at the end of the way, one of each key.

        Args:
            keys: A prompt, and which of its samples.
            strength: Of steering; None where nothing steers.
            split: What they are for, on which their noise depends.
        """
        rng = Streams(derive(self.seed, "align", split, *key) for key in keys)
        n = self.algorithm.particles
        like = self.world.backbone.empty_latents(n * len(keys))
        z = rng.child("z_1").split(range(n)).normal(like).unflatten(0, (n, len(keys)))
        c = [c for c, _ in keys]
        return self.algorithm.run(self.setting, 0.0 if strength is None else strength, z, c, rng)

    def _metrics(
        self, z_0: Tensor, scores: dict[str, Tensor], prompts: Sequence[str], lam: float | None
    ) -> dict[str, list[float | None]]:
        """One number per prompt."""
        seen = self.world.seen(z_0).double().cpu().unflatten(0, (len(prompts), -1))
        found = {"diversity": [diversity(x) for x in seen]}
        if lam is not None and lam > 0 and seen.shape[1] > 1:
            found |= self._distances(seen, scores["target"], prompts, lam)
        apart = {name: finite(torch.tensor(x, dtype=torch.float64)) for name, x in found.items()}
        return by_prompt(scores, len(prompts)) | apart

    def _distances(
        self, seen: Tensor, reward: Tensor, prompts: Sequence[str], lam: float
    ) -> dict[str, list[float]]:
        """To the tilted target, and of as many draws from that target: the floor."""
        found: dict[str, list[float]] = {}
        rewards = reward.unflatten(0, (len(prompts), -1))
        for x, r, c in zip(seen, rewards, prompts, strict=True):
            rng = Streams.of(self.seed, "tilted", c, rows=self.protocol.drawn + len(x))
            try:
                drawn = self.world.tilted_draws(self.reward, c, lam, rng)
            except ValueError:  # no target exists at this lambda
                return {}
            if drawn is None:
                return {}
            y = drawn.seen.double().cpu()
            y, again = y[len(x) :], y[: len(x)]
            for name, distance in (("energy", energy), ("mmd", mmd)):
                found.setdefault(name, []).append(distance(x, y))
                found.setdefault(f"{name}_floor", []).append(distance(again, y))
            excess = float(r.mean() - drawn.reward.double().mean().cpu())
            found.setdefault("excess", []).append(excess)
        return found


def _within(reward: Tensor, prompts: int) -> float | None:
    """Standard deviation of the reward within a prompt."""
    x = reward.unflatten(0, (prompts, -1))
    return float(x.var(1).mean().sqrt()) if x.shape[1] > 1 else None


def _merged(logs: list[list[Row]]) -> list[Row]:
    """What steering logged, over all batches: each step once, its numbers joined."""
    out = []
    for entries in zip(*logs, strict=True):
        joined = {
            name: [x for entry in entries for x in entry[name]]
            if isinstance(value, list)
            else value
            for name, value in entries[0].items()
        }
        out.append(joined)
    return out
