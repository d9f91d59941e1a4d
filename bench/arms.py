"""The learned estimators that are trained side by side: one entry each, all on the same images.

An arm says what it starts from and how its recipe differs from the paper's; everything else -
images, batches, times, noise, optimiser steps, learning rates tried - is the same for all.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from baselines.feature_head import FeatureHead, Head
from baselines.noisy_student import NoisyStudent
from baselines.vae_stitch import Latent
from stitchvm.backbone import Backbone
from stitchvm.distill import Student
from stitchvm.path import match_snr
from stitchvm.reward import Reward
from stitchvm.search import Search, Source
from stitchvm.stitch import Condition, Norm, Stitched, StitchLayer
from stitchvm.value import Target

SOFT = 1.0  # lambda of the soft value, in units of a reward
SECONDS = 3.75  # steps of a VAE stitch that take as long as one of StitchVM at (4, 1), measured
TAPS = 3  # blocks a feature head reads, evenly spaced up to three quarters of the depth


@dataclass(frozen=True)
class Given:
    """What an arm is begun from.

    Attributes:
        backbone: The frozen backbone, or what is stitched instead.
        reward: The pretrained reward.
        search: Stage 1 on the trunk that the arm stitches.
        pair: The (i, j) to stitch.
        x_0: Clean images of the probe set, (B, 3, H, W).
    """

    backbone: Backbone
    reward: Reward
    search: Search
    pair: tuple[int, int]
    x_0: torch.Tensor


Trunk = Literal["backbone", "latent"]
TRUNKS: dict[str, Callable[[Backbone], Backbone]] = {
    "backbone": lambda backbone: backbone,
    "latent": Latent,  # the rival that stitches the noisy latent itself
}


@torch.no_grad()
def stitched(
    given: Given,
    *,
    norm: Norm = "unit",
    condition: Condition = "null",
    lam: float | None = None,
) -> Stitched:
    """The value model after stage 1, its tail a copy of the reward's.

    Args:
        given: What it is begun from.
        norm: `unit` (published), or `free`, whose gain makes clean embeddings of unit length on
            average.
        condition: What the trunk sees.
        lam: Lambda of the soft value, where that is what it aims at.
    """
    i, j = given.pair
    entering = given.reward.head(given.x_0, j)
    interface = given.search.interfaces[given.pair]
    height, width = entering.map.shape[-2:]
    layer = StitchLayer(interface.fit, (height, width), interface.cls).to(entering.map)
    gain = _gain(given) if norm == "free" else None
    tail = copy.deepcopy(given.reward)
    target = None
    if lam is not None:
        target = Target("soft", "data" if condition == "null" else "prompt", lam)
    return Stitched(
        given.backbone, i, layer, tail, j, condition=condition, gain=gain, target=target
    )


def noisy_student(given: Given, *, norm: Norm = "unit") -> NoisyStudent:
    """The reward model as it is, about to see decoded noisy latents."""
    gain = _gain(given) if norm == "free" else None
    return NoisyStudent(given.backbone, copy.deepcopy(given.reward), gain=gain)


@torch.no_grad()
def feature_head(given: Given, *, norm: Norm = "unit") -> FeatureHead:
    """An untrained head on blocks up to three quarters of the depth."""
    depth = given.backbone.depth
    taps = sorted({max(1, round(0.75 * depth * k / TAPS)) for k in range(1, TAPS + 1)})
    z_0 = given.backbone.encode(given.x_0[:1])
    state = given.backbone.trunk(z_0, torch.tensor(0.5).to(z_0), taps[0])
    channels = []
    for i in taps:
        state = given.backbone.advance(state, i)
        channels.append(state.features.shape[1])
    out = given.reward.features(given.x_0[:1]).embedding.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(tuple(channels), out).to(z_0)
    return FeatureHead(given.backbone, tuple(taps), head, given.reward, unit=norm == "unit")


@torch.no_grad()
def _gain(given: Given) -> float:
    """What makes clean embeddings of unit length on average."""
    out = given.reward.features(given.x_0)
    return 1 / (out.embedding if out.raw is None else out.raw).norm(dim=-1).mean().item()


@dataclass(frozen=True)
class Arm:
    """One learned estimator.

    Attributes:
        about: What it is, for a table.
        begin: Makes it, untrained.
        settings: Of `begin`.
        trunk: What its search stitches.
        recipe: Fields of its recipe that differ from the others'.
        centred: Whether noise levels are centred where a 128 x 128 latent has signal-to-noise 1.
        source: What its teacher sees.
        rates: Whose learning rate it takes; its own trials when empty.
        longer: How many times the others' steps it is trained for.
        after: The arm whose result it goes on from, on the generator's own rollouts.
    """

    about: str
    begin: Callable[..., Student]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trunk: Trunk = "backbone"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    centred: bool = False
    source: Source = "pixels"
    rates: str = ""
    longer: float = 1.0
    after: str = ""

    def changes(self, latent: tuple[int, ...]) -> dict[str, Any]:
        """Its recipe's fields on latents of a shape, (C, H, W)."""
        _, height, width = latent
        centre = {"median": match_snr(0.5, height * width)} if self.centred else {}
        return {**self.recipe, **centre}


PROMPTED = {"norm": "free", "condition": "prompt"}
ARMS: dict[str, Arm] = {
    "stitched": Arm("StitchVM as published", stitched),
    "stitched_free": Arm("an embedding of any length", stitched, {"norm": "free"}),
    "stitched_snr": Arm(
        "noise centred by SNR", stitched, {"norm": "free"}, centred=True, rates="stitched_free"
    ),
    "stitched_latents": Arm(
        "targets from decoded latents",
        stitched,
        {"norm": "free"},
        source="latents",
        rates="stitched_free",
    ),
    "stitched_prompt": Arm(
        "a trunk that sees the prompt",
        stitched,
        PROMPTED,
        rates="stitched_free",
    ),
    "stitched_soft": Arm(
        "the soft value, lambda 1",
        stitched,
        {"norm": "free", "lam": SOFT},
        recipe={"loss": "soft", "lam": SOFT},
        rates="stitched_free",
    ),
    "stitched_rollouts": Arm(
        "finetuned on the generator's own rollouts",
        stitched,
        PROMPTED,
        rates="stitched_free",
        longer=0.5,
        after="stitched_prompt",
    ),
    "vae_stitch": Arm("the noisy latent itself stitched", stitched, trunk="latent"),
    "vae_stitch_long": Arm(
        "the same with more steps", stitched, trunk="latent", longer=SECONDS, rates="vae_stitch"
    ),
    "noisy_student": Arm("the reward on decoded noisy latents", noisy_student),
    "feature_head": Arm("a head on backbone features", feature_head, recipe={"token_weight": 0.0}),
}
