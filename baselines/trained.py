"""Where trained estimators come from: those that ship with a world, or a folder of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from stitchvm.backbone import Backbone
from stitchvm.identity import file_digest
from stitchvm.reward import Reward
from stitchvm.value import ValueEstimator
from stitchvm.world import World

E_co = TypeVar("E_co", bound=ValueEstimator, covariant=True)


class Loads(Protocol[E_co]):
    """A class of estimators that can be loaded."""

    def from_pretrained(self, folder: Path, backbone: Backbone, reward: Reward) -> E_co:
        """A saved one."""
        ...


def folder_of(world: World, reward: str | None, model: str) -> Path:
    """The folder of a model that ships with a world, or the given one.

    Args:
        world: Where.
        reward: Name of what it is of; None where the world has no name for it.
        model: Name of one that ships, or a folder.

    Raises:
        FileNotFoundError: if it is neither, naming those that ship.
    """
    shipped = {} if reward is None else world.trained(reward)
    if model in shipped:
        return shipped[model]
    if not Path(model).is_dir():
        known = ", ".join(sorted(shipped)) or "none"
        raise FileNotFoundError(
            f"expected a folder, or a value model that ships with the world {world.name!r} for "
            f"this reward ({known}), got {model!r}"
        )
    return Path(model)


def build_of(kind: Loads[E_co], name: str) -> Callable[..., E_co]:
    """The `build` of a kind of trained estimator.

    Args:
        kind: Its class.
        name: Of the model that it takes by default.
    """

    def build(
        world: World, reward: Reward, *, model: str = name, generator: str | None = None
    ) -> E_co:
        """A trained estimator of a world.

        Args:
            world: Where.
            reward: Of what.
            model: Name of one that ships with the world, or a folder.
            generator: What it was made of, where that is another generator on the same latents.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is of another backbone or reward.
        """
        folder = folder_of(world, world.called(reward), model)
        backbone = world.backbone if generator is None else world.other(generator)
        return kind.from_pretrained(folder, backbone, reward)

    return build


def weights(world: World, reward: str, *, model: str, generator: str | None = None) -> str:
    """Which weights a model has, 16 hexadecimal digits: trained again, it is another estimator.

    Beside a `build`, a function of this name says so to whoever keeps results.  It takes the
    reward's name, for to plan reads no reward.

    Raises:
        FileNotFoundError: if there is no such model.
    """
    del generator  # its identity is in the configuration
    (config,) = folder_of(world, reward, model).glob("*.json")
    return file_digest(config.read_bytes())[:16]  # it holds the digests of all other files
