"""What suites can name, of each kind: names and one-line descriptions; nothing slow is made."""

import sys
from collections.abc import Callable, Iterator

from bench import suite as suites_

Lines = Iterator[tuple[str, str]]


def worlds() -> Lines:
    """Of full size each by its model, else by its file."""
    from bench.worlds import WORLDS, full  # noqa: PLC0415 - imports torch

    for name, build in WORLDS.items():
        yield name, full.ABOUT.get(name) or _first(sys.modules[build.__module__].__doc__)


def rewards() -> Lines:
    """Those of each world."""
    from bench.worlds import rewards as of_worlds  # noqa: PLC0415 - imports torch

    for world, names in of_worlds().items():
        yield world, ", ".join(names)


def estimators() -> Lines:
    """Each by its own file, whoever makes its build."""
    from baselines import ESTIMATORS  # noqa: PLC0415 - imports torch

    for name in ESTIMATORS:
        yield name, _first(sys.modules[f"baselines.{name}"].__doc__)


def algorithms() -> Lines:
    """Those that steer, and those that train."""
    from bench.algorithms import ALGORITHMS  # noqa: PLC0415 - imports torch
    from bench.trainers import TRAINERS  # noqa: PLC0415

    for name, way in [*ALGORITHMS.items(), *TRAINERS.items()]:
        yield name, (way.__doc__ or "").strip().partition("\n")[0]


def suites() -> Lines:
    """Those that ship."""
    for name in suites_.shipped():
        suite = suites_.load(name)
        yield name, f"{suite.about} (about {suite.minutes:g} min on {suite.where})"


def metrics() -> Lines:
    """Of values, and of embeddings."""
    from bench.metrics import METRICS  # noqa: PLC0415
    from bench.metrics.robustness import FIGURES  # noqa: PLC0415

    for name, metric in METRICS.items():
        yield name, f"{metric.about} [{metric.unit}]"
    for name, figure in FIGURES.items():
        yield name, f"{figure.about} [{'%' if figure.percent else '1'}]"


def _first(doc: str | None) -> str:
    """The first paragraph of a docstring, in a line."""
    return " ".join((doc or "").strip().partition("\n\n")[0].split())


LISTS: dict[str, Callable[[], Lines]] = {
    "worlds": worlds,
    "rewards": rewards,
    "estimators": estimators,
    "algorithms": algorithms,
    "suites": suites,
    "metrics": metrics,
}
