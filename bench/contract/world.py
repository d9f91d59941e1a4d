"""The contract of worlds: `build()`, where estimators are built and judged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.contract import backbone, reward
from bench.contract.checking import ROWS, check, close, expect, finite, refused
from stitchvm.path import noise
from stitchvm.streams import Streams
from stitchvm.value import Target
from stitchvm.world import World

DRAWS, ERRORS = 64, 5.0  # of the truth's check: draws a prompt, and standard errors allowed


@dataclass(frozen=True)
class Case:
    """A world, and how it is built again."""

    world: World
    again: Callable[[], World]

    @property
    def c(self) -> list[str]:
        """A few of its prompts."""
        return [self.world.prompts[row % len(self.world.prompts)] for row in range(ROWS)]

    def rng(self) -> Streams:
        """The same streams at every call."""
        return Streams.of(0, "contract", rows=ROWS)


def case(build: Callable[..., World], *_: Any, **settings: Any) -> Case:  # noqa: ANN401
    """A world as it is built by default."""
    return Case(build(**settings), lambda: build(**settings))


def declares(case: Case) -> None:
    """It is a World with a name, a digest, rewards and prompts, none of which it tunes on."""
    world = case.world
    expect(isinstance(world, World), "a World", type(world).__name__)
    for name in ("name", "digest"):
        text = getattr(world, name, None)
        expect(isinstance(text, str) and bool(text), f"`{name}`, some words", repr(text))
    for name in ("rewards", "prompts"):
        several = getattr(world, name, ())
        expect(bool(several) and len(set(several)) == len(several), f"different `{name}`", several)
    both = sorted(set(world.tuning) & set(world.prompts))
    expect(not both, "prompts to tune on that are not judged", both)
    world.admit(world.prompts)


def repeatable(case: Case) -> None:
    """Built again it has the same digest, prompts and latents."""
    again = case.again()
    for name in ("digest", "prompts", "rewards"):
        mine, other = getattr(case.world, name), getattr(again, name)
        expect(mine == other, f"the same {name}", other)
    close(case.world.draw(case.c, case.rng()), again.draw(case.c, case.rng()))


def draws(case: Case) -> None:
    """Clean latents have the generator's shape, each from its own stream."""
    world, rng = case.world, case.rng()
    z_0 = world.draw(case.c, rng)
    finite(z_0, (ROWS, *world.backbone.latent), "latents")
    alone = [world.draw([case.c[k]], rng[k : k + 1]) for k in range(ROWS)]
    close(z_0, torch.cat(alone))


def images(case: Case) -> None:
    """Images to learn from come as asked, each with a prompt, the same whenever asked."""
    for split in ("train", "held"):
        first, again = (list(case.world.images(split, ROWS)) for _ in range(2))
        x = torch.cat([part.x_0 for part in first])
        expect(x.ndim == 4 and len(x) == ROWS, f"{ROWS} images", tuple(x.shape))  # noqa: PLR2004
        expect(sum(len(part.c) for part in first) == ROWS, "a prompt each", "another number")
        close(x, torch.cat([part.x_0 for part in again]))


@torch.no_grad()
def shows(case: Case) -> None:
    """Pictures, where there are any, are within [-1, 1]; what is seen is a vector each."""
    z_0 = case.world.draw(case.c, case.rng())
    pictures, seen = case.world.pictures(z_0), case.world.seen(z_0)
    if pictures is not None:
        expect(
            float(pictures.abs().max()) <= 1, "pictures in [-1, 1]", float(pictures.abs().max())
        )
    expect(seen.ndim == 2 and len(seen) == ROWS, "vectors (B, D)", tuple(seen.shape))  # noqa: PLR2004


def unknown(case: Case) -> None:
    """A reward that it has not is refused."""
    refused(lambda: case.world.reward("no such reward"), "a reward that it has not")


def generator(case: Case) -> None:
    """Its generator keeps the contract of backbones."""
    _kept(backbone, lambda world: world.backbone, case.world)


def rewards(case: Case) -> None:
    """Its rewards and judges keep the contract of rewards."""
    for name in (*case.world.rewards, *case.world.judges):
        _kept(reward, lambda world, name=name: world.reward(name), case.world)


@torch.no_grad()
def truth(case: Case) -> None:
    """What it says is true on average is, of latents that are noised: E[V - r(z_0)] = 0."""
    world = case.world
    c = [text for text in case.c for _ in range(DRAWS)]
    rng = Streams.of(0, "contract truth", rows=len(c))
    z_0 = world.draw(c, rng.child("z_0"))
    t = z_0.new_tensor(0.5)
    z_t = noise(z_0, t, rng.child("eps").normal(z_0))
    for name in world.rewards:
        r = world.reward(name)
        known = world.truth(r, Target("mean", "prompt"))
        if known is None:
            continue
        gap = (known(z_t, t, c) - r(world.backbone.decode(z_0), c)).double()
        error = float(gap.std() / len(gap) ** 0.5)
        expect(abs(float(gap.mean())) <= ERRORS * error, f"no bias of {name} beyond {ERRORS:g} "
               f"standard errors of {error:.2g}", f"{float(gap.mean()):.2g}")  # fmt: skip


def _kept(contract: Any, build: Callable[..., Any], world: World) -> None:  # noqa: ANN401
    """Fail a check where another contract is broken."""
    for about, problem in check(contract.case(build, world), contract.CHECKS):
        expect(problem is None, about.rstrip(".").lower(), problem)


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    repeatable,
    draws,
    images,
    shows,
    unknown,
    generator,
    rewards,
    truth,
)
