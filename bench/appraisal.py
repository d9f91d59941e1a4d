"""How good and how dear one trained value model is, on images that nothing is trained on.

    error at sigma    V(z_t | c) - r(D(z_0), c),   z_t the noised latent of a held-out image

Its root mean square is that of V against the value, in quadrature with the spread of r(z_0) given
z_t, which is the same for every estimator.  For the `data` posterior each latent is shown with the
prompt of another image, or, where images have none, with the world's in turn; for the `prompt`
posterior with its own.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from baselines import tweedie
from bench.images import at_once
from bench.interleaved import interleaved
from bench.meter import Clock
from bench.metrics.value import rmse
from bench.stats import Interval, log_ratio_interval, paired
from bench.stitching import CHECKED
from bench.tasks.cost import latents, value
from stitchvm.backbone import NULL
from stitchvm.calibrate import exchanged
from stitchvm.flops import count_flops
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import ValueEstimator, value_and_gradient
from stitchvm.world import World

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
IMAGES = 500
BATCHES, ROUNDS = (1, 16), 20
AT_ONCE = 100


class Level(NamedTuple):
    """Errors at one noise level.

    Attributes:
        sigma: The level.
        errors: RMSE against the realised reward, of `model`, `tweedie` and `constant`.
        gained: MSE of the model minus Tweedie's, paired by image.
    """

    sigma: float
    errors: dict[str, Interval]
    gained: Interval


class Cost(NamedTuple):
    """A call of the model beside one of Tweedie.

    Attributes:
        what: `value`, or `gradient` for both.
        batch: Latents a call.
        ratio: Of seconds.
        flops: Ratio that FLOPs predict.
    """

    what: str
    batch: int
    ratio: Interval
    flops: float


@torch.no_grad()
def accuracy(
    world: World,
    reward: Reward,
    model: ValueEstimator,
    images: int = IMAGES,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
) -> Iterator[Level]:
    """Errors at each noise level, of the model, Tweedie of the same posterior, and the constant.

    The constant is the mean reward, under a latent's prompt, of all other images.

    Args:
        world: Where.
        reward: Of what.
        model: Which value model.
        images: Held-out images, those left out by which picks and rates are chosen.
        sigmas: Noise levels.
        seed: Of the noise.

    Raises:
        ValueError: for a model of another value than the mean over data or given the prompt:
            noised latents do not realise it.
    """
    if not model.target.realised:
        raise ValueError(
            f"expected a model of the mean value over data or given the prompt, got one of "
            f"{model.target}"
        )
    seen: Literal["data", "prompt"] = "data" if model.target.posterior == "data" else "prompt"
    z_0, c, each = _unseen(world, images)
    if NULL in c:
        c = _any(world, len(c), seen)
    elif seen == "data":
        c = exchanged(c, seed)
    realised, constant = _realised(world, reward, z_0.split(each), c)
    rivals = {"model": model, "tweedie": tweedie.build(world, reward, posterior=seen)}
    eps = Streams.of(seed, "evaluation", rows=len(z_0)).normal(z_0)
    for sigma in sigmas:
        t = z_0.new_tensor(sigma)
        z_t = noise(z_0, t, eps)
        values = {name: _values(rival, z_t, t, c, each) for name, rival in rivals.items()}
        squared = {
            name: _numbers((v - realised).square())
            for name, v in {**values, "constant": constant}.items()
        }
        gained = paired(squared["model"], squared["tweedie"]).difference
        yield Level(sigma, {name: rmse(x) for name, x in squared.items()}, gained)


def _unseen(world: World, images: int) -> tuple[Tensor, list[str], int]:
    """Latents of held-out images beyond those by which anything was chosen, and their prompts.

    With them how many of that size are encoded or decoded together.
    """
    z_0, c, seen, each = list[Tensor](), list[str](), 0, AT_ONCE
    for shown in world.images("held", CHECKED + images):
        fresh = slice(max(0, CHECKED - seen), None)
        seen += len(shown.c)
        each = at_once((shown.x_0.shape[-2], shown.x_0.shape[-1]), AT_ONCE)
        if rest := shown.c[fresh]:
            z_0 += [world.backbone.encode(x) for x in shown.x_0[fresh].split(each)]
            c += rest
    return torch.cat(z_0), c, each


def _any(world: World, count: int, posterior: str) -> list[str]:
    """Prompts for images that have none.

    Raises:
        ValueError: if they must be true of their images.
    """
    if posterior == "prompt":
        raise ValueError(
            f"expected held-out images with prompts for a model that sees the prompt, got images "
            f"of {world.name!r}, which have none"
        )
    return [world.prompts[k % len(world.prompts)] for k in range(count)]


def _realised(
    world: World, reward: Reward, z_0: Sequence[Tensor], c: list[str]
) -> tuple[Tensor, Tensor]:
    """Rewards of clean latents under their prompts, and the mean of all others' under the same."""
    e = torch.cat([reward.features(world.backbone.decode(part)).embedding for part in z_0])
    realised = reward.score(e, c)
    total = torch.stack([reward.score(e, [text] * len(e)).sum() for text in c])
    return realised, (total - realised) / (len(c) - 1)


def _values(estimator: ValueEstimator, z_t: Tensor, t: Tensor, c: list[str], each: int) -> Tensor:
    rows = [slice(first, first + each) for first in range(0, len(c), each)]
    return torch.cat([estimator(z_t[part], t, c[part]) for part in rows])


def _numbers(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def costs(
    world: World,
    reward: Reward,
    model: ValueEstimator,
    clock: Clock,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
) -> Iterator[Cost]:
    """Calls of the model and of Tweedie, null prompt and full decoder, timed in turns.

    Args:
        world: Where.
        reward: Of what.
        model: Which value model.
        clock: Tells the time.
        batches: Latents a call.
        rounds: Timed calls of each.
    """
    rival = tweedie.build(world, reward, posterior="data")
    for batch in batches:
        given = latents(world, batch, 0.5, seed=0)
        for what, ask in (("value", value), ("gradient", value_and_gradient)):
            calls = {name: partial(ask, e, *given) for name, e in (("a", model), ("b", rival))}
            spent = interleaved(calls, rounds, clock)
            flops = [count_flops(partial(ask, e, *given), given[0].device) for e in (model, rival)]
            ratio = log_ratio_interval(spent["a"], spent["b"])
            yield Cost(what, batch, ratio, flops[0] / flops[1])
