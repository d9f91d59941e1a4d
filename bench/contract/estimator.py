"""The contract of value estimators: `build(world, reward)`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.contract.checking import ROWS, close, slopes
from stitchvm.backbone import Prompts
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator, value_and_gradient
from stitchvm.world import World


@dataclass(frozen=True)
class Case:
    """An estimator with inputs to try it on.

    Attributes:
        estimator: Whom to check.
        z_t: Latents, (ROWS, *latent), float64.
        t: Their times, (ROWS,).
        c: Their prompts.
    """

    estimator: ValueEstimator
    z_t: torch.Tensor
    t: torch.Tensor
    c: Prompts

    def rng(self) -> Streams:
        """The same streams at every call."""
        return Streams.of(0, "contract", rows=ROWS)

    def value(self) -> torch.Tensor:
        """The values, without a graph."""
        with torch.no_grad():
            return self.estimator(self.z_t, self.t, self.c, self.rng())


def case(
    build: Callable[..., ValueEstimator], world: World, reward: Reward, **settings: Any
) -> Case:
    """An estimator built in a world, with latents of that world at several times."""
    c = [world.prompts[row % len(world.prompts)] for row in range(ROWS)]
    rng = Streams.of(0, "contract latents", rows=ROWS)
    z_0 = world.draw(c, rng.child("z_0"))
    t = torch.linspace(0.2, 0.9, ROWS).to(z_0)
    z_t = noise(z_0, t, rng.child("eps").normal(z_0))
    return Case(build(world, reward, **settings), z_t, t, c)


def declares(case: Case) -> None:
    """It is a ValueEstimator with a latent shape and a Target."""
    estimator = case.estimator
    if not isinstance(estimator, ValueEstimator):
        raise AssertionError(f"expected a ValueEstimator, got {type(estimator).__name__}")
    if not isinstance(getattr(estimator, "target", None), Target):
        raise AssertionError("expected `target`, a stitchvm.value.Target: what is estimated")
    if tuple(getattr(estimator, "latent", ())) != tuple(case.z_t.shape[1:]):
        raise AssertionError(
            f"expected `latent` {tuple(case.z_t.shape[1:])}, "
            f"got {getattr(estimator, 'latent', None)}"
        )


def shape(case: Case) -> None:
    """Values have shape (B,) and are finite."""
    value = case.value()
    if value.shape != (ROWS,):
        raise AssertionError(f"expected values of shape ({ROWS},), got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise AssertionError(f"expected finite values, got {value.tolist()}")


def repeatable(case: Case) -> None:
    """The same rng gives the same values."""
    close(case.value(), case.value())


def batch_of_one(case: Case) -> None:
    """A batch equals its rows one by one."""
    rng, together = case.rng(), case.value()
    with torch.no_grad():
        alone = [
            case.estimator(case.z_t[i : i + 1], case.t[i : i + 1], [case.c[i]], rng[i : i + 1])
            for i in range(ROWS)
        ]
    close(together, torch.cat(alone))


def scalar_time(case: Case) -> None:
    """One time () for all rows equals it repeated (B,)."""
    t = case.t[0]
    with torch.no_grad():
        one = case.estimator(case.z_t, t, case.c, case.rng())
        many = case.estimator(case.z_t, t.expand(ROWS), case.c, case.rng())
    close(one, many)


def leaves_inputs(case: Case) -> None:
    """The latents are not changed in place."""
    before = case.z_t.clone()
    case.value()
    close(before, case.z_t)


def gradient(case: Case) -> None:
    """Where it says it is differentiable, its gradient equals central differences."""
    if not case.estimator.differentiable:
        return
    found = value_and_gradient(case.estimator, case.z_t, case.t, case.c, case.rng())
    close(found.value, case.value())
    slopes(lambda z: case.estimator(z, case.t, case.c, case.rng()), case.z_t, found.gradient)


def refuses(case: Case) -> None:
    """Times outside [0, 1], latents of a wrong shape and missing prompts are refused."""
    wrong = (
        (case.z_t, case.t + 1, case.c),
        (case.z_t, case.t[:2], case.c),
        (case.z_t[:, :, :-1], case.t, case.c),
        (case.z_t, case.t, list(case.c)[:-1]),
    )
    for z_t, t, c in wrong:
        try:
            case.estimator(z_t, t, c, case.rng())
        except ValueError:
            continue
        raise AssertionError(
            f"expected a ValueError for z_t {tuple(z_t.shape)}, t {tuple(t.shape)} up to "
            f"{float(t.max()):g} and {len(c)} prompts; was super().__init__() called?"
        )


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    batch_of_one,
    scalar_time,
    leaves_inputs,
    gradient,
    refuses,
)
