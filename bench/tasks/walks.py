"""A whole steered sample from the kinds of its steps, each timed in turns with an unsteered step.

    step        N particles go on                               alike in every step of Best-of-N
    asked       their value is asked first                      where they are weighed
    proposed    the value of N M proposals, of which N go on    Algorithm 1, lines 5 to 8
    end         the clean reward of N latents

A sample of K steps is the sum of its kinds, each as often as it occurs (`Algorithm.kinds`), so a
few calls tell the seconds of all K.  A value comes before the step from the same latents, as in
the loop: where trunk or velocity are shared, they are here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from bench.algorithms import Algorithm, Setting
from bench.interleaved import UNITS, clock_of, interleaved
from bench.meter import peak_bytes
from stitchvm.flops import count_flops
from stitchvm.streams import Streams
from stitchvm.world import World

UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Walks:
    """Steps of a sampler whose particles are weighed or proposed, for one sample.

    Attributes:
        world: The world, its backbone shared by sampler and estimator where asked.
        setting: What the algorithm works with.
        algorithm: Whose samples.
        rounds: How often each kind is timed.
        seed: Of the latents.
    """

    world: World
    setting: Setting
    algorithm: Algorithm
    rounds: int
    seed: int

    def row(self) -> dict[str, Any]:
        """Seconds, FLOPs and peak bytes of each kind, and how many of each make a sample."""
        device = self.setting.times.device
        calls = self.calls()
        spent = interleaved(calls, self.rounds, clock_of(device))
        flops = {name: count_flops(call, device) for name, call in calls.items()}
        peaks = {
            name: peak_bytes(call, device, iter(self.weights)) for name, call in calls.items()
        }
        return {
            "phase": "walk",
            "unit": UNITS[device.type],
            "kinds": self.kinds,
            "kind_seconds": spent,
            "flops": flops,
            "peaks": peaks,
            "metrics": {},
        }

    @property
    def kinds(self) -> dict[str, int]:
        """How many steps of each kind a sample has, those that it has none of left out."""
        found = self.algorithm.kinds(self.setting.steps)
        return {name: number for name, number in found.items() if number}

    @property
    def weights(self) -> list[Tensor]:
        """What is there before a step: of world, reward and estimator."""
        value = self.setting.value
        parts = (self.world.backbone, self.setting.terminal, *(() if value is None else (value,)))
        return [tensor for part in parts for tensor in part.state_dict().values()]

    def calls(self) -> dict[str, Callable[[], Any]]:
        """An unsteered step, and one of every kind, each of other latents at every call."""
        n, fresh = self.algorithm.particles, count(1)
        many = n * self.algorithm.proposals
        known = {
            "step": self._call(self.walked, n, fresh),
            "asked": self._call(self.asked, n, fresh),
            "proposed": self._call(self.proposed, many, fresh),
            "end": self._call(self.ended, n, fresh),
        }
        of_sample = {name: known[name] for name in self.kinds}
        return {UNSTEERED: self._call(self.walked, 1, fresh), **of_sample}

    def walked(self, z: Tensor, c: list[str], rng: Streams, draws: int = 1) -> list[Tensor]:
        """A step of a batch, and draws from where it leads."""
        t, s = self.setting.times[self.middle], self.setting.times[self.middle + 1]
        sampler = self.setting.sampler
        kernel = sampler.transition(z, t, s, c)
        if not sampler.stochastic:
            return [kernel.mean]
        return [kernel.draw(rng.child("draw", k)) for k in range(draws)]

    def asked(self, z: Tensor, c: list[str], rng: Streams) -> list[Tensor]:
        """The value of a batch, and its step."""
        self.setting.estimator(z, self.setting.times[self.middle], c, rng)
        return self.walked(z, c, rng)

    def proposed(self, z: Tensor, c: list[str], rng: Streams) -> list[Tensor]:
        """The value of proposals, and the step of the best of each particle's."""
        n, m = self.algorithm.particles, self.algorithm.proposals
        value = self.setting.estimator(z, self.setting.times[self.middle], c, rng)
        best = value.unflatten(0, (m, n)).argmax(0) * n + torch.arange(n, device=value.device)
        return self.walked(z[best], c[:n], rng.of_rows(best.tolist()), draws=m)

    def ended(self, z: Tensor, c: list[str], rng: Streams) -> Tensor:
        """The clean reward of a batch."""
        del rng
        return self.setting.terminal(z, self.setting.times[-1], c)

    @property
    def middle(self) -> int:
        """The step nearest t = 1/2, counted from 0."""
        return int((self.setting.times[:-1] - 0.5).abs().argmin())

    def _call(
        self, step: Callable[..., Any], rows: int, fresh: Iterator[int]
    ) -> Callable[[], Any]:
        """A step of other latents at every call: nothing of an earlier one can be remembered."""
        rng = Streams.of(self.seed, "walk", rows=rows)
        z = rng.normal(self.world.backbone.empty_latents(rows))
        again = partial(step, c=[self.world.prompts[0]] * rows, rng=rng)
        return torch.no_grad()(lambda: again(z * (1 + 1e-3 * next(fresh))))
