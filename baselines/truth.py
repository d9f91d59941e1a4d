"""Truth: the exact value, in worlds that know it; the other end of every table."""

from typing import Literal

from stitchvm.reward import Reward
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World


def build(
    world: World,
    reward: Reward,
    *,
    value: Literal["mean", "soft"] = "mean",
    posterior: Literal["data", "prompt"] = "prompt",
    lam: float | None = None,
) -> ValueEstimator:
    """The exact value of a target.

    Raises:
        ValueError: if the world does not know it, or it does not exist.
    """
    truth = world.truth(reward, Target(value, posterior, lam))
    if truth is None:
        raise ValueError(f"expected a world whose truth is known, got {world.name!r}")
    return truth
