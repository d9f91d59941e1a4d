"""One guided step of a sampler, timed beside an unsteered one and, if asked, one of classic DPS.

All in turns in one process.  Seconds by stage are read in calls of their own; on a GPU they
are those of its queue, and what a step takes beyond them is the host's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

import baselines
from bench.algorithms import Guide, Setting
from bench.interleaved import UNITS, clock_of, interleaved, stage_clock_of
from bench.meter import KINDS, STAGES, Calls, peak_bytes
from stitchvm.flops import count_flops
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.world import World

SMALL = 1e-3  # strength: its size changes no cost
CLASSIC = "classic DPS"  # Tweedie through frozen weights, whose velocity is the sampler's own


@dataclass(frozen=True)
class Steps:
    """Steps of a guided sampler.

    Attributes:
        world: The world, its backbone shared by sampler and estimator where asked.
        reward: The target reward.
        setting: What the algorithm works with.
        guide: The algorithm.
        cfg: Scale of classifier-free guidance of classic DPS; None leaves that out.
        batches: Batch sizes.
        rounds: How often each step is timed.
        seed: Of the latents.
        calls: The counter that watches.
    """

    world: World
    reward: Reward
    setting: Setting
    guide: Guide
    cfg: float | None
    batches: Sequence[int]
    rounds: int
    seed: int
    calls: Calls

    def rows(self) -> Iterator[dict[str, Any]]:
        """Seconds, whole and by stage, FLOPs, peak bytes and counted calls, a row a batch size."""
        device = self.setting.times.device
        clock, stage_clock = clock_of(device), stage_clock_of(device)
        for batch in self.batches:
            calls = self.of_batch(batch)
            spent = interleaved(calls, self.rounds, clock)
            stages = [
                {name: self.calls.stages(call, stage_clock) for name, call in calls.items()}
                for _ in range(self.rounds)
            ]
            flops = {name: count_flops(call, device) for name, call in calls.items()}
            peaks = {
                name: peak_bytes(call, device, iter(self.weights)) for name, call in calls.items()
            }
            with self.calls.during() as counts:
                calls["guided"]()
            yield {
                "phase": "cost",
                "batch": batch,
                "unit": UNITS[device.type],
                "step_seconds": spent,
                "stages": {
                    name: {stage: [one[name][stage] for one in stages] for stage in STAGES}
                    for name in calls
                },
                "flops": flops,
                "peaks": peaks,
                "calls": {kind: counts[kind] / batch for kind in KINDS},
                "metrics": {},
            }

    def of_batch(self, batch: int) -> dict[str, Callable[[], Any]]:
        """The steps, each of other latents at every call."""
        steps: dict[str, Callable[..., Any]] = {
            "guided": self.guide.step(self.setting, SMALL),
            "unsteered": self.setting.sampler.transition,
        }
        if self.cfg is not None:
            tweedie = baselines.ESTIMATORS["tweedie"](self.world, self.reward, cfg=self.cfg)
            steps[CLASSIC] = self.guide.step(replace(self.setting, value=tweedie), SMALL)
        fresh = count(1)
        return {name: self._step(step, batch, fresh) for name, step in steps.items()}

    @property
    def weights(self) -> list[Tensor]:
        """What is there before a step: of world, reward and estimator."""
        value = self.setting.value
        parts = (self.world.backbone, self.reward, *(() if value is None else (value,)))
        return [tensor for part in parts for tensor in part.state_dict().values()]

    def _step(
        self, transition: Callable[..., Any], batch: int, fresh: Iterator[int]
    ) -> Callable[[], Any]:
        """A step of other latents at every call: nothing of an earlier one can be remembered."""
        k = self.guide.middle(self.setting)
        empty = self.world.backbone.empty_latents(batch)
        z = Streams.of(self.seed, "cost", rows=batch).normal(empty)
        t, s = self.setting.times[k], self.setting.times[k + 1]
        c = [self.world.prompts[k % len(self.world.prompts)] for k in range(batch)]
        step = partial(transition, t=t, s=s, c=c)
        return torch.no_grad()(lambda: step(z * (1 + 1e-3 * next(fresh))))
