"""The value task: one estimator at the same latents as all others, against what is known.

For each noise level: make the latents; ask the estimator, R times with its own randomness if it
has any; take gradients, seconds, peak bytes and counted calls; compare with the truth where it is
known, and with the realised clean reward always.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import scipy.stats  # noqa: F401 - slow: loaded here it counts as start, not as harness
import torch
from torch import Tensor

from baselines import ESTIMATORS
from bench.cell import Spec
from bench.meter import KINDS, Calls, peak_bytes, seconds
from bench.metrics import METRICS, Metric, metrics_of
from bench.metrics.value import Samples
from bench.protocols import Protocol
from bench.resolve import resolve
from bench.tasks.latents import Latents, make
from bench.tasks.outcome import Outcome, Phases
from bench.worlds import make as make_world
from bench.worlds import reward_of
from stitchvm.path import denoise
from stitchvm.sample import Diverged
from stitchvm.streams import Streams, derive
from stitchvm.value import Valued, ValueEstimator, value_and_gradient
from stitchvm.world import Certainty, World

SHOWN = 6  # prompts whose pictures are kept with the truth


def run(spec: Spec, device: str = "cpu") -> Outcome:
    """Measure one cell.

    Raises:
        ValueError: if the estimator cannot be built, or returns values of a wrong shape.
    """
    protocol = cast(Protocol, spec.protocol)
    phases, calls = Phases(), Calls()
    protocol = Protocol.model_validate(spec.protocol)
    with phases("build"):
        world = make_world(spec.world, device)
        reward = reward_of(spec.reward, world)
        calls.watch(world.backbone)
        if world.tiny is not None:
            calls.watch(world.tiny)
        calls.watch(reward)
        build = resolve(spec.estimator.build, ESTIMATORS, "estimator")
        estimator = build(world, reward, **spec.estimator.settings)
        calls.watch(estimator)
        estimand = replace(
            estimator.target,
            posterior="prompt" if protocol.pairing == "own" else "data",
            kernel=None,
        )
        truth = world.truth(reward, estimand)
        metrics = METRICS | metrics_of(protocol.metrics)
    outcome, arrays = Outcome(), defaultdict(list)
    for sigma in protocol.sigmas:
        with phases("latents"):
            latents = make(world, reward, protocol, sigma, spec.seed)
        measured = Measured(estimator, latents, protocol, spec.seed, calls)
        with phases("measured"):
            measured.measure()
        if not bool(measured.values.isfinite().any()):
            raise Diverged(f"all {len(latents.c)} values at sigma {sigma:g} are not finite")
        with phases("reference"):
            reference = None if truth is None else _reference(truth, latents, protocol.batch)
            known = world.certainty(reward, estimand, latents.z_t, latents.t, latents.c)
        samples = measured.samples(reference)
        outcome.rows.append(
            {"sigma_reference": sigma, "estimand": estimand.as_dict(), **measured.row()}
            | _certainty(known)
            | {"metrics": _metrics(samples, metrics) if world.meaningful else {}}
        )
        for name in Samples.__dataclass_fields__:
            if (numbers := getattr(samples, name)) is not None:
                arrays[name].append(numbers)
        if spec.estimator.build == "truth":
            for name, pictures in _pictures(world, latents).items():
                arrays[name].append(pictures)
    outcome.arrays = {name: np.stack(numbers) for name, numbers in arrays.items()}
    outcome.arrays["sigma"] = np.array([row["sigma"] for row in outcome.rows])
    outcome.phases = phases.summary()
    return outcome


def _reference(truth: ValueEstimator, latents: Latents, batch: int) -> Valued:
    """True values (B,) and gradients (B, *latent)."""
    parts = [
        value_and_gradient(truth, latents.z_t[rows], latents.t, latents.c[rows])
        for rows in batches(len(latents.c), batch)
    ]
    return Valued(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _certainty(known: Certainty | None) -> dict[str, float]:
    """How well the truth of a row is known; nothing where it is exact or unknown."""
    if known is None:
        return {}
    return {
        "truth_members": float(known.members.median()),
        "truth_floor": math.sqrt(float(known.variance.mean())),
    }


@torch.no_grad()
def _pictures(world: World, latents: Latents) -> dict[str, np.ndarray]:
    """What the first latent of each of the first prompts was, and its posterior mean."""
    rows = [row for row, key in enumerate(latents.keys) if key[1:] == (0, 0)][:SHOWN]
    z_t, c = latents.z_t[rows], [latents.c[row] for row in rows]
    mean = denoise(z_t, latents.t, world.backbone.velocity(z_t, latents.t, c))
    shown = {"clean": world.pictures(latents.z_0[rows]), "posterior_mean": world.pictures(mean)}
    found = {
        f"pictures_{name}": ((x + 1) * 127.5).round().byte().cpu().numpy()
        for name, x in shown.items()
        if x is not None
    }
    return found | ({"pictures_prompts": np.array(c)} if found else {})


def _metrics(
    samples: Samples, metrics: Mapping[str, Metric]
) -> dict[str, list[float | None] | None]:
    """Every metric's numbers per prompt; None for what does not apply or is not finite."""
    numbers = {name: metric(samples) for name, metric in metrics.items()}
    return {
        name: None if x is None else [float(v) if math.isfinite(v) else None for v in x]
        for name, x in numbers.items()
    }


def batches(rows: int, size: int) -> list[slice]:
    """Slices of at most size rows."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


class Measured:
    """One estimator at one set of latents.

    Args:
        estimator: Whom to ask.
        latents: What to ask about.
        protocol: How.
        seed: Of the estimator's randomness.
        calls: The counter that watches backbone and reward.
    """

    def __init__(
        self,
        estimator: ValueEstimator,
        latents: Latents,
        protocol: Protocol,
        seed: int,
        calls: Calls,
    ) -> None:
        self.estimator, self.latents, self.protocol = estimator, latents, protocol
        self.seed, self.calls, self.device = seed, calls, latents.z_t.device
        self.batches = batches(len(latents.c), protocol.batch)
        self.replicates = protocol.replicates if estimator.stochastic else 1
        self.call_seconds: list[float] = []
        self.call_rows: list[int] = []
        self.gradient_seconds: list[float] = []
        self.gradients: Tensor | None = None

    def measure(self) -> None:
        """Values, counts and time, then memory; then the same for gradients.

        The last replicate comes first and is not timed: all prompts are known after it.
        """
        last = torch.cat([self._value(self.replicates - 1, rows) for rows in self.batches])
        with self.calls.during() as spent:
            first = self._pass(0)
        self.counts = {kind: spent[kind] / len(first) for kind in KINDS}
        others = [self._pass(replicate) for replicate in range(1, self.replicates - 1)]
        self.values = torch.stack([first, *others, last][: self.replicates])
        while len(self.call_seconds) < self.protocol.calls:
            self._pass(0)
        self.peak = self._peak(self._value)
        self.gradient_peak = None
        if self.protocol.gradient and self.estimator.differentiable:
            self.gradient_peak = self._peak(lambda _, rows: self._gradient(rows))
            self.gradients = torch.cat([self._timed_gradient(rows) for rows in self.batches])

    def _rows(self, rows: slice) -> int:
        return rows.stop - rows.start

    def _streams(self, replicate: int, rows: slice) -> Streams:
        return Streams(
            derive(self.seed, "estimator", replicate, f"{self.latents.sigma:.12g}", *key)
            for key in self.latents.keys[rows]
        )

    @torch.no_grad()
    def _value(self, replicate: int, rows: slice) -> Tensor:
        z_t, c = self.latents.z_t[rows], self.latents.c[rows]
        value = self.estimator(z_t, self.latents.t, c, self._streams(replicate, rows))
        if value.shape != (len(c),):
            raise ValueError(
                f"expected values of shape ({len(c)},) from "
                f"{type(self.estimator).__name__}, got {tuple(value.shape)}"
            )
        return value

    def _pass(self, replicate: int) -> Tensor:
        """Timed calls over all batches, (B,)."""
        values = []
        for rows in self.batches:
            spent, value = seconds(partial(self._value, replicate, rows), self.device)
            self.call_seconds.append(spent)
            self.call_rows.append(self._rows(rows))
            values.append(value)
        return torch.cat(values)

    def _gradient(self, rows: slice) -> Valued:
        z_t, c = self.latents.z_t[rows], self.latents.c[rows]
        return value_and_gradient(self.estimator, z_t, self.latents.t, c, self._streams(0, rows))

    def _timed_gradient(self, rows: slice) -> Tensor:
        spent, valued = seconds(lambda: self._gradient(rows), self.device)
        self.gradient_seconds.append(spent)
        return valued.gradient

    def _peak(self, call: Any) -> dict[str, int | None]:
        """Peak bytes of one call on the first batch."""
        standing = [self.latents.z_t, self.latents.t, *self.estimator.state_dict().values()]
        return peak_bytes(lambda: call(0, self.batches[0]), self.device, iter(standing))

    def samples(self, reference: Valued | None) -> Samples:
        """The numbers behind the metrics, shaped (R, P, G, M) and (P, G, M)."""
        p = self.protocol
        shape = (p.prompts, p.groups, p.members)

        def shaped(x: Tensor) -> np.ndarray:
            return x.detach().double().cpu().numpy().reshape(*x.shape[:-1], *shape)

        cosine = error = None
        if reference is not None and self.gradients is not None:
            ours, true = self.gradients.flatten(1), reference.gradient.flatten(1)
            cosine = shaped(torch.cosine_similarity(ours, true, dim=1))
            error = shaped((ours - true).norm(dim=1) / true.norm(dim=1))
        truth = None if reference is None else shaped(reference.value)
        return Samples(shaped(self.values), truth, shaped(self.latents.realised), cosine, error)

    def row(self) -> dict[str, Any]:
        """What a record keeps of this noise level, metrics apart."""
        return {
            "sigma": self.latents.sigma,
            "target": self.estimator.target.as_dict(),
            "realises": self.latents.realises,
            "z_digest": self.latents.digest,
            "replicates": self.replicates,
            "latents": len(self.latents.c),
            "nonfinite": int((~self.values.isfinite()).sum()),
            "call_seconds": self.call_seconds,
            "call_rows": self.call_rows,
            "gradient_seconds": self.gradient_seconds,
            "gradient_rows": [self._rows(rows) for rows in self.batches]
            if self.gradient_seconds
            else [],
            "peak": self.peak,
            "gradient_peak": self.gradient_peak,
            "calls": self.counts,
        }
