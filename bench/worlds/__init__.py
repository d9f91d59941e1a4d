"""Worlds that suites can name; each is built by `build(**settings)`."""

from collections.abc import Callable

from bench.worlds import gaussian
from stitchvm.world import World

WORLDS: dict[str, Callable[..., World]] = {
    "gaussian": gaussian.GaussianWorld,
}
