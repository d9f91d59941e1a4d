"""Worlds that suites can name; each is built by `build(**settings)`."""

from collections.abc import Callable

from bench.cell import Part
from bench.resolve import resolve
from bench.worlds import gaussian
from bench.worlds.shapes import shapes
from stitchvm.reward import Reward
from stitchvm.world import World

WORLDS: dict[str, Callable[..., World]] = {
    "gaussian": gaussian.GaussianWorld,
    "shapes": shapes,
}


def make(world: Part, device: str = "cpu") -> World:
    """The world a specification names, built on a device."""
    return resolve(world.build, WORLDS, "world")(**world.settings, device=device)


def reward_of(reward: Part, world: World) -> Reward:
    """The reward a specification names: one of the world's, or a user's `build(world)`."""
    if reward.build in world.rewards:
        return world.reward(reward.build)
    return resolve(reward.build, {}, "reward")(world, **reward.settings)
