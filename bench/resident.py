"""Memory of the paper's Table 1, under a statement of what lies in it; GB are 10^9 bytes.

    resident      generator and VAE in bfloat16, all text encoders in bfloat16, the reward's image
                  tower in float32; of StitchVM its layer and a finetuned copy of the tower as well
    graph         of all weights, which ask for gradients as `from_pretrained` leaves them; nothing
                  is recomputed in the backward pass
    step          one of DPS at 1024 px, batch 1, guidance 4.5, both branches as one batch

The paper says none of this.  That it gives the six rows of DPS was found by comparing such
statements with them: it is consistent with the paper, and no evidence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

import baselines
from baselines.terminal import Terminal
from bench.algorithms import Guide, Setting
from bench.asked import META
from bench.meter import Calls
from bench.numberless import Answers
from bench.predicted import Cost, cost
from bench.report.paper import printed
from bench.tasks.samples import kernel_of
from bench.tasks.steps import Steps
from bench.worlds import full
from stitchvm.align.guide import CFG
from stitchvm.memo import SharedTrunk
from stitchvm.path import time_grid
from stitchvm.reward import Reward
from stitchvm.value import ValueEstimator
from stitchvm.world import World

CFG_SCALE, STEPS = 4.5, 100  # of the paper's Table 1
MODELS = ("sd35-medium", "sd35-large")
REWARDS = ("clip", "hps", "aesthetic")
MEMORY, SECONDS = -2, -1  # columns of the paper's table


@dataclass(frozen=True)
class Row:
    """A reward's pair of rows.

    Attributes:
        reward: Which.
        encoders: Bytes of text encoders.
        dps, recomputed, stitched: What a step costs: of DPS, as stated and recomputed by block.
        paper_dps, paper_stitched: Printed memory in GB, and seconds a sample.
    """

    reward: str
    encoders: int
    dps: Cost
    recomputed: Cost
    stitched: Cost
    paper_dps: tuple[float, float]
    paper_stitched: tuple[float, float]

    def bytes_of(self, step: Cost) -> int:
        """Of all that is resident, and the peak above it."""
        return self.encoders + step.weights + step.live

    @property
    def flops_over(self) -> tuple[float, float]:
        """DPS over StitchVM: nothing recomputed, and by block."""
        return (
            self.dps.flops / self.stitched.flops,
            self.recomputed.flops / self.stitched.flops,
        )


def rows(
    model: str, answers: Answers, *, encoders: bool = True, blocks: int | None = None
) -> Iterator[Row]:
    """The rows of a model in Table 1.

    Args:
        model: One of `MODELS`.
        answers: Where to count.
        encoders: Whether text encoders are resident.
        blocks: The first ones of each stack alone.

    Raises:
        ValueError: for a model that the table does not have.
    """
    if model not in MODELS:
        raise ValueError(f"expected a model in {', '.join(MODELS)}, got {model!r}")
    from bench.worlds.full.encoders import resident  # noqa: PLC0415 - slow: transformers

    paper = printed("align")["table1"]["models"][model]
    held = resident(model) if encoders else 0
    for reward in REWARDS:
        said = {name: (row[MEMORY], row[SECONDS]) for name, row in paper[reward].items()}
        yield Row(
            reward,
            held,
            *steps(model, reward, answers, blocks),
            said["DPS"],
            said["DPS + StitchVM"],
        )


def steps(
    model: str, reward: str, answers: Answers, blocks: int | None = None
) -> tuple[Cost, Cost, Cost]:
    """A step of DPS as stated above, recomputed by block, and of DPS + StitchVM, trunk not shared.

    DPS gets the sampler's velocity from the one that its value computed, as all its forms do.
    """
    from bench.worlds.full import drawn  # noqa: PLC0415 - slow: diffusers

    with answers:
        world = full.BUILDS[model](blocks=blocks, device=META)
        target = drawn.reward(reward, torch.float32, blocks, META)
        value: ValueEstimator = baselines.ESTIMATORS["untrained"](world, target)
        stitched = _step(world, target, value)
        world.backbone = SharedTrunk(world.backbone)
        graphs = ("unfrozen", "blockwise")
        dps = [
            baselines.ESTIMATORS["tweedie"](world, target, cfg=CFG_SCALE, graph=graph)
            for graph in graphs
        ]
        classic, recomputed = (_step(world, target, form) for form in dps)
    return classic, recomputed, stitched


def _step(world: World, reward: Reward, value: ValueEstimator) -> Cost:
    calls = Calls()
    for part in (world.backbone, reward, value):
        calls.watch(part)
    setting = Setting(
        velocity=CFG(world.backbone.velocity, CFG_SCALE),
        kernel=kernel_of("square"),
        times=time_grid(STEPS).to(META),
        value=value,
        terminal=Terminal(world.backbone, reward),
    )
    of = Steps(world, reward, setting, Guide(), CFG_SCALE, (1,), 0, 0, calls)
    return cost(of.of_batch(1)["guided"], of.weights, calls, world.backbone)
