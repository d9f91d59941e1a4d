"""The contract of rewards: `build(world)`, on clean images of a world."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.contract import images
from bench.contract.checking import ROWS, close, expect, gradient_of, refused, slopes
from bench.contract.images import batch_of_one, leaves_inputs, repeatable, shape, shown
from stitchvm.backbone import Prompts
from stitchvm.reward import Reward
from stitchvm.world import World


@dataclass(frozen=True)
class Case(images.Case):
    """A reward with images to try it on.

    Attributes:
        reward: Whom to check.
    """

    called: ClassVar = "rewards"
    reward: Reward

    def ask(self, x: Tensor, c: Prompts) -> Tensor:
        """Rewards, (B,)."""
        return self.reward(x, c)


def case(build: Callable[..., Reward], world: World, _: Any = None, **settings: Any) -> Case:  # noqa: ANN401
    """A reward built in a world, with images of that world."""
    return Case(*shown(world), build(world, **settings))


def declares(case: Case) -> None:
    """It is a Reward of some blocks, whose weights ask for no gradients."""
    reward = case.reward
    expect(isinstance(reward, Reward), "a Reward", type(reward).__name__)
    depth = getattr(reward, "depth", None)
    expect(isinstance(depth, int) and depth >= 1, "`depth`, a number of blocks", depth)
    asking = [name for name, w in reward.named_parameters() if w.requires_grad]
    expect(not asking, "frozen weights: `self.requires_grad_(False)`", f"gradients of {asking}")


@torch.no_grad()
def entered_anywhere(case: Case) -> None:
    """Entered at any block it is the same: score(tail(head(x, j), j)) for every j."""
    reward, expected = case.reward, case.value()
    for j in range(1, reward.depth + 1):
        features = reward.tail(reward.head(case.x, j), j)
        expect(features.tokens.ndim == 3, f"tokens (B, L, D) at j = {j}",  # noqa: PLR2004
               tuple(features.tokens.shape))  # fmt: skip
        close(expected, reward.score(features.embedding, case.c), f"the same reward at j = {j}")


@torch.no_grad()
def advances(case: Case) -> None:
    """What enters block k is the same by way of block j: advance(head(x, j), j, k)."""
    reward = case.reward
    for j in range(1, reward.depth + 1):
        h = reward.head(case.x, j)
        for k in range(j, reward.depth + 1):
            close(reward.head(case.x, k).map, reward.advance(h, j, k).map, f"one map at {k}")


@torch.no_grad()
def scores(case: Case) -> None:
    """All embeddings under all prompts score as each under each."""
    e = case.reward.features(case.x).embedding
    square = case.reward.scores(e, case.c)
    for k, text in enumerate(case.c):
        close(case.reward.score(e, [text] * ROWS), square[:, k])


def gradient(case: Case) -> None:
    """Its gradient in the images equals central differences."""

    def value(x: Tensor) -> Tensor:
        return case.reward(x, case.c)

    slopes(value, case.x, gradient_of(value, case.x))


def weights(case: Case) -> None:
    """Weights of head and tail are its own, by their names in the state dict."""
    own = case.reward.state_dict()
    for j in range(1, case.reward.depth + 1):
        for name, weight in {**case.reward.head_weights(), **case.reward.tail_weights(j)}.items():
            expect(name in own, f"a name of the state dict, {sorted(own)}", repr(name))
            close(own[name], weight.detach(), f"the weight {name!r} itself")


def refuses(case: Case) -> None:
    """Blocks that it has not are refused."""
    for j in (0, case.reward.depth + 1):
        refused(lambda j=j: case.reward.head(case.x, j), f"j = {j}")  # type: ignore[misc]


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    batch_of_one,
    leaves_inputs,
    entered_anywhere,
    advances,
    scores,
    gradient,
    weights,
    refuses,
)
