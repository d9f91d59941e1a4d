"""Worlds that suites can name; each is built by `build(**settings)`."""

from collections.abc import Callable

import yaml

from bench.cell import Part
from bench.resolve import complete, resolve
from bench.worlds import gaussian
from bench.worlds.shapes import shapes
from stitchvm.reward import Reward
from stitchvm.world import World

JOINT = "+"  # between the names of rewards that are added up
WORLDS: dict[str, Callable[..., World]] = {
    "gaussian": gaussian.GaussianWorld,
    "shapes": shapes,
}


def make(world: Part, device: str = "cpu") -> World:
    """The world a specification names, built on a device."""
    return resolve(world.build, WORLDS, "world")(**world.settings, device=device)


def named(text: str) -> World:
    """A world with settings, as a command line names it: `shapes`, `shapes,generator=small`.

    Raises:
        UnknownName: for a world or setting nobody knows.
        ValueError: for a setting without a value, or of the wrong type.
    """
    name, *given = text.split(",")
    settings = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"expected WORLD,SETTING=VALUE, got {text!r}")
        settings[key.strip()] = yaml.safe_load(value)
    build = resolve(name, WORLDS, "world")
    return build(**complete(build, settings, f"world {name!r}"))


def rewards_of(reward: Part, world: World) -> list[Reward]:
    """The rewards whose sum a specification names: `clip+hps`, or one."""
    return [
        reward_of(reward.model_copy(update={"build": name}), world)
        for name in reward.build.split(JOINT)
    ]


def reward_of(reward: Part, world: World) -> Reward:
    """The reward a specification names: one of the world's, or a user's `build(world)`."""
    if reward.build in world.rewards:
        return world.reward(reward.build)
    return resolve(reward.build, {}, "reward")(world, **reward.settings)
