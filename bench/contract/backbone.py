"""The contract of backbones: `build(world)`, on noisy latents of the world."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.contract.checking import ROWS, close, expect, finite, gradient_of, refused, slopes
from stitchvm.backbone import NULL, Backbone, Prompts
from stitchvm.path import noise
from stitchvm.streams import Streams
from stitchvm.world import World


@dataclass(frozen=True)
class Case:
    """A backbone with latents to try it on.

    Attributes:
        backbone: Whom to check.
        z_0: Clean latents of the world, (ROWS, *latent).
        z_t: The same, noised.
        t: Their times, (ROWS,).
        c: Their prompts.
    """

    backbone: Backbone
    z_0: Tensor
    z_t: Tensor
    t: Tensor
    c: Prompts

    @property
    def blocks(self) -> range:
        """1 to depth."""
        return range(1, self.backbone.depth + 1)

    @torch.no_grad()
    def velocity(self) -> Tensor:
        """The velocity, without a graph."""
        return self.backbone.velocity(self.z_t, self.t, self.c)


@torch.no_grad()
def case(build: Callable[..., Backbone], world: World, _: Any = None, **settings: Any) -> Case:  # noqa: ANN401
    """A backbone built in a world, with latents of that world at several times."""
    c = [world.prompts[row % len(world.prompts)] for row in range(ROWS)]
    rng = Streams.of(0, "contract latents", rows=ROWS)
    z_0 = world.draw(c, rng.child("z_0"))
    t = torch.linspace(0.2, 0.9, ROWS).to(z_0)
    z_t = noise(z_0, t, rng.child("eps").normal(z_0))
    return Case(build(world, **settings), z_0, z_t, t, c)


def declares(case: Case) -> None:
    """It is a Backbone of the world's latents, frozen, with blocks, and makes room for them."""
    backbone, latent = case.backbone, tuple(case.z_t.shape[1:])
    expect(isinstance(backbone, Backbone), "a Backbone", type(backbone).__name__)
    got = getattr(backbone, "latent", None)
    expect(got is not None and tuple(got) == latent, f"`latent` {latent}", got)
    depth = getattr(backbone, "depth", None)
    expect(isinstance(depth, int) and depth >= 1, "`depth`, a number of blocks", depth)
    empty = backbone.empty_latents(len(case.z_t))
    told, wanted = ((x.shape, x.dtype, x.device) for x in (empty, case.z_t))
    expect(told == wanted, f"`empty_latents` of {wanted[1]}, as the world's latents", told)
    asking = [name for name, w in backbone.named_parameters() if w.requires_grad]
    expect(not asking, "frozen weights: `self.requires_grad_(False)`", f"gradients of {asking}")


def shape(case: Case) -> None:
    """The velocity has the latents' shape and is finite."""
    finite(case.velocity(), tuple(case.z_t.shape), "velocities")


def repeatable(case: Case) -> None:
    """The same latents give the same velocity."""
    close(case.velocity(), case.velocity())


@torch.no_grad()
def batch_of_one(case: Case) -> None:
    """A batch equals its rows one by one."""
    alone = [
        case.backbone.velocity(case.z_t[k : k + 1], case.t[k : k + 1], [case.c[k]])
        for k in range(ROWS)
    ]
    close(case.velocity(), torch.cat(alone))


@torch.no_grad()
def scalar_time(case: Case) -> None:
    """One time () for all rows equals it repeated (B,)."""
    t = case.t[0]
    one = case.backbone.velocity(case.z_t, t, case.c)
    close(one, case.backbone.velocity(case.z_t, t.expand(ROWS), case.c))


def leaves_inputs(case: Case) -> None:
    """The latents are not changed in place."""
    before = case.z_t.clone()
    case.velocity()
    close(before, case.z_t)


@torch.no_grad()
def resumes(case: Case) -> None:
    """Stopped after any block and resumed, it is the velocity."""
    for i in case.blocks:
        state = case.backbone.trunk(case.z_t, case.t, i, case.c)
        expect(state.i == i, f"a state after block {i}", state.i)
        expect(state.features.ndim == 4, f"features (B, C, H, W) of block {i}",  # noqa: PLR2004
               tuple(state.features.shape))  # fmt: skip
        close(case.velocity(), case.backbone.resume(state), f"the velocity from block {i}")


@torch.no_grad()
def advances(case: Case) -> None:
    """The state after block k is the same by way of block i."""
    for i in case.blocks:
        state = case.backbone.trunk(case.z_t, case.t, i, case.c)
        for k in range(i, case.backbone.depth + 1):
            straight = case.backbone.trunk(case.z_t, case.t, k, case.c).features
            close(straight, case.backbone.advance(state, k).features, f"one block {k}")


@torch.no_grad()
def null_prompt(case: Case) -> None:
    """Without prompts the trunk is that of the null prompt."""
    for i in case.blocks:
        without = case.backbone.trunk(case.z_t, case.t, i).features
        null = case.backbone.trunk(case.z_t, case.t, i, [NULL] * ROWS).features
        close(without, null)


@torch.no_grad()
def rows(case: Case) -> None:
    """Rows of a state can be selected, and states joined, and go on as they would have."""
    backbone, some = case.backbone, torch.tensor([3, 0, 0])
    z_t, t, c = case.z_t, case.t, case.c
    for i in case.blocks:
        first = backbone.trunk(z_t[:2], t[:2], i, c[:2])
        second = backbone.trunk(z_t[2:], t[2:], i, c[2:])
        both = backbone.join(first, second)
        close(case.velocity(), backbone.resume(both), "the velocity of joined states")
        close(case.velocity()[some], backbone.resume(backbone.select(both, some)),
              "the velocity of selected rows")  # fmt: skip


def gradient(case: Case) -> None:
    """Features of the first and of the last block have the gradient of central differences."""
    for i in sorted({1, case.backbone.depth}):

        def along(z_t: Tensor, i: int = i) -> Tensor:
            features = case.backbone.trunk(z_t, case.t, i, case.c).features.flatten(1)
            return features.mean(1) + features[:, ::3].mean(1)

        slopes(along, case.z_t, gradient_of(along, case.z_t))


@torch.no_grad()
def decodes(case: Case) -> None:
    """Latents decode to images (B, 3, H, W), and images encode to latents."""
    x = case.backbone.decode(case.z_0)
    expect(x.ndim == 4 and x.shape[1] == 3, "images (B, 3, H, W)", tuple(x.shape))  # noqa: PLR2004
    finite(x, tuple(x.shape), "images")
    finite(case.backbone.encode(x), tuple(case.z_0.shape), "latents")


def decoder_gradient(case: Case) -> None:
    """Decoding has the gradient of central differences."""

    def along(z_0: Tensor) -> Tensor:
        x = case.backbone.decode(z_0).flatten(1)
        return x.mean(1) + x[:, ::3].mean(1)

    slopes(along, case.z_0, gradient_of(along, case.z_0))


def weights(case: Case) -> None:
    """Weights of the trunk are tensors of the state dict, the first blocks' among all."""
    own = {weight.data_ptr() for weight in case.backbone.state_dict().values()}
    names: set[str] = set()
    for i in case.blocks:
        used = case.backbone.trunk_weights(i)
        for name, weight in used.items():
            expect(weight.data_ptr() in own, "a tensor of the state dict", repr(name))
        expect(names <= set(used), f"those of block {i - 1} as well", names - set(used))
        names = set(used)


def refuses(case: Case) -> None:
    """Blocks that it has not are refused."""
    for i in (0, case.backbone.depth + 1):
        refused(lambda i=i: case.backbone.trunk(case.z_t, case.t, i), f"i = {i}")  # type: ignore[misc]


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    batch_of_one,
    scalar_time,
    leaves_inputs,
    resumes,
    advances,
    null_prompt,
    rows,
    gradient,
    decodes,
    decoder_gradient,
    weights,
    refuses,
)
