"""Stitched: a trained StitchVM of a world (Eq. 6), as `stitchvm.stitch` defines it."""

from baselines.trained import load, weights
from stitchvm.reward import Reward
from stitchvm.stitch import Stitched
from stitchvm.world import World

__all__ = ["Stitched", "build", "weights"]


def build(world: World, reward: Reward, *, model: str = "stitched") -> Stitched:
    """A trained StitchVM.

    Args:
        world: Where.
        reward: Of what.
        model: Name of one that ships with the world, or a folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    return load(Stitched, world, reward, model)
