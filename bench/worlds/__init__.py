"""Worlds that suites can name; each is built by `build(**settings)`."""

from collections.abc import Callable
from typing import Any

import torch

from bench.cell import digest, label
from bench.part import JOINT, Part
from bench.parts import written
from bench.prompts import build_of, checked
from bench.resolve import Build, complete, place, resolve
from bench.worlds import full, gaussian
from bench.worlds.quiet import quietly
from bench.worlds.shapes import shapes
from stitchvm.backbone import Backbone
from stitchvm.reward import Reward
from stitchvm.world import World

WORLDS: dict[str, Callable[..., World]] = {
    "gaussian": gaussian.GaussianWorld,
    "shapes": shapes,
    **full.BUILDS,
}


def rewards() -> dict[str, tuple[str, ...]]:
    """Names of every world's rewards as it is by default; no weights are read."""
    with quietly():
        from bench.worlds.full.drawn import DrawnParts  # noqa: PLC0415 - slow: diffusers
        from bench.worlds.shapes.world import ShapesWorld  # noqa: PLC0415

    own = {"gaussian": gaussian.GaussianWorld.rewards, "shapes": ShapesWorld.rewards}
    return own | dict.fromkeys(full.BUILDS, DrawnParts.rewards)


def make(world: Part, device: str = "cpu") -> World:
    """The world a specification names, built on a device.

    Raises:
        ValueError: for what does not fit, or an error in a user's file.
    """
    build = resolve(world.build, WORLDS, "world")
    built = _called(build, "world", world, device=device)
    if not isinstance(built, World):
        raise ValueError(f"expected {label(world.build)!r} to build a World, got {built!r:.80}")
    if "prompts" in world.parts:
        _ask(built, world.parts["prompts"])
    if "backbone" in world.parts:
        _generate_by(built, world.parts["backbone"])
    return built


def _ask(world: World, prompts: Part) -> None:
    """Let a user's list be the world's prompts; none of it is tuned on."""
    found = _called(build_of(prompts.build), "prompts", prompts, world)
    world.prompts = checked(found, world)
    world.tuning = tuple(text for text in world.tuning if text not in world.prompts)


def _generate_by(world: World, backbone: Part) -> None:
    """Let a user's generator make the samples; data and truth stay the world's own.

    Raises:
        ValueError: if it is no generator of the world's latents.
    """
    made = _called(resolve(backbone.build, {}, "backbone"), "backbone", backbone, world)
    if not isinstance(made, Backbone):
        raise ValueError(
            f"expected {label(backbone.build)!r} to build a Backbone, got {made!r:.80}"
        )
    if tuple(made.latent) != tuple(world.backbone.latent):
        raise ValueError(
            f"expected a generator of latents {tuple(world.backbone.latent)}, as the world "
            f"{world.name!r} has, got {tuple(made.latent)}"
        )
    world.backbone, world.tiny = made, None
    world.digest = f"{world.digest}-{digest([backbone.source, backbone.settings])}"


def _called(build: Build, kind: str, of: Part, *given: Any, **more: Any) -> Any:  # noqa: ANN401
    """What a build returns; whatever goes wrong in a user's file is said in one sentence."""
    try:
        return build(*given, **of.settings, **more)
    except (ValueError, FileNotFoundError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if of.source is None:
            raise
        why = f"{type(error).__name__}: {error}{place(error)}"
        raise ValueError(f"expected {kind} {label(of.build)!r} to build, got {why}") from error


def named(text: str, device: str | None = None) -> World:
    """A world with settings, as a command line names it: `shapes`, `shapes,generator=small`.

    Args:
        text: The name, and settings.
        device: Where to compute; as the settings say, or the CPU, when None.

    Raises:
        UnknownName: for a world or setting nobody knows.
        ValueError: for a setting without a value, or of the wrong type.
    """
    settings = written(text)
    name = settings.pop("build")
    settings.pop("name", None)
    build = resolve(name, WORLDS, "world")
    if device is not None:
        settings["device"] = device
    return build(**complete(build, settings, f"world {name!r}"))


def names_of(reward: Part, world: World) -> list[str]:
    """The names of the rewards whose sum a specification names: `clip+hps`, or one."""
    return [reward.build] if reward.build in world.rewards else reward.build.split(JOINT)


def rewards_of(reward: Part, world: World) -> list[Reward]:
    """The rewards whose sum a specification names."""
    return [
        reward_of(reward.model_copy(update={"build": name}), world)
        for name in names_of(reward, world)
    ]


def reward_of(reward: Part, world: World) -> Reward:
    """The reward a specification names: one of the world's, or a user's `build(world)`.

    Raises:
        ValueError: if a user's file builds none.
    """
    if reward.build in world.rewards:
        return world.reward(reward.build)
    made = _called(resolve(reward.build, {}, "reward"), "reward", reward, world)
    if not isinstance(made, Reward):
        raise ValueError(f"expected {label(reward.build)!r} to build a Reward, got {made!r:.80}")
    return made


def expect_meaning(world: World, what: str, instead: str) -> None:
    """Refuse to judge what random weights make.

    Args:
        world: Where.
        what: What would be judged.
        instead: What to do, in words.

    Raises:
        ValueError: if what its networks say means nothing.
    """
    if not world.meaningful:
        raise ValueError(
            f"expected trained weights for {what}, got random ones of {world.name!r}: {instead}"
        )
