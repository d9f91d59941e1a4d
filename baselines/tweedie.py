"""Tweedie: the reward of the posterior mean, r(D(E[z_0 | z_t])).

One velocity, one decode, one reward.  Exact for a reward linear in z_0, and otherwise biased by
what the mean of the posterior cannot see (Jensen): -tr(A Cov(z_0 | z_t)) for z_0^T A z_0.

Two ways to make it cheap: `reuse` the velocity that a sampler has computed at z_t anyway - then
the gradient takes it as a constant (as MPGD does) - and a distilled `tiny` decoder.

The gradient of classic DPS runs through denoiser, decoder and reward.  What its graph keeps is
most of the memory: with weights that ask for gradients, as `from_pretrained` leaves them, every
layer's input; frozen, less; what is between blocks, the rest computed once more in the backward
pass (`blockwise`), less still; what is between denoiser, decoder and reward, their blocks computed
twice more (`checkpointed`), least.

Sources: Chung et al., 2022, arXiv:2209.14687; He et al., 2023, arXiv:2311.16424.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stitchvm.align.guide import CFG
from stitchvm.backbone import NULL, Backbone, Prompts, Velocity
from stitchvm.memo import Remembered
from stitchvm.path import denoise
from stitchvm.reward import Features, Reward
from stitchvm.value import EmbeddingEstimator, Target
from stitchvm.world import World

Graph = Literal["frozen", "unfrozen", "blockwise", "checkpointed"]


class Tweedie(EmbeddingEstimator):
    """The reward of the posterior mean.

    Args:
        backbone: Decodes.
        reward: The reward on clean images.
        posterior: `prompt` gives the velocity the prompt, `data` the null prompt.
        velocity: The backbone's own when None.
        graph: What a gradient keeps: see above.
    """

    def __init__(
        self,
        backbone: Backbone,
        reward: Reward,
        posterior: Literal["data", "prompt"] = "prompt",
        velocity: Velocity | None = None,
        graph: Graph = "frozen",
    ) -> None:
        super().__init__()
        self.backbone, self.reward, self.latent = backbone, reward, backbone.latent
        self.velocity = backbone.velocity if velocity is None else velocity
        self.target, self.graph = Target(value="mean", posterior=posterior), graph

    def features(self, z_t: Tensor, t: Tensor, c: Prompts) -> Features:
        """Those of the decoded posterior mean."""
        seen = c if self.target.posterior == "prompt" else [NULL] * len(z_t)
        with thawed(self if self.graph == "unfrozen" else None):
            z_0 = denoise(z_t, t, self._run(self.velocity, z_t, t, seen))
            x = self._run(self.backbone.decode, z_0)
            return self._run(self.reward.features, x, blocks=False)

    def _run(self, function: Callable[..., Any], *args: Any, blocks: bool = True) -> Any:  # noqa: ANN401
        """A function of its arguments, of which the graph keeps what it should.

        Args:
            function: A stage of the value.
            args: What it takes.
            blocks: Whether the backbone can recompute it block by block.
        """
        if self.graph == "checkpointed" or (self.graph == "blockwise" and not blocks):
            again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            return again(self._by_block, function, *args)
        return (self._by_block if self.graph == "blockwise" else called)(function, *args)

    def _by_block(self, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
        """A function of its arguments, whose blocks are computed again in the backward pass."""
        with self.backbone.recomputing():
            return function(*args)


def called(function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    """A function of its arguments."""
    return function(*args)


@contextmanager
def thawed(module: nn.Module | None) -> Iterator[None]:
    """Let all weights ask for gradients meanwhile, so that the graph keeps every layer's input."""
    weights = [] if module is None else [w for w in module.parameters() if not w.requires_grad]
    for weight in weights:
        weight.requires_grad = True
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad = False


def build(
    world: World,
    reward: Reward,
    *,
    posterior: Literal["data", "prompt"] = "prompt",
    decoder: Literal["full", "tiny"] = "full",
    reuse: bool = False,
    cfg: float = 1.0,
    graph: Graph = "frozen",
) -> Tweedie:
    """Tweedie in a world.

    Args:
        world: Where.
        reward: Of what.
        posterior: `prompt` gives the velocity the prompt, `data` the null prompt.
        decoder: The backbone's own, or the world's distilled one.
        reuse: Whether the velocity counts as computed already; the gradient then holds it fixed.
        cfg: Scale of classifier-free guidance of the velocity; 1 is without.
        graph: What a gradient keeps.

    Raises:
        ValueError: for a tiny decoder in a world without one.
    """
    backbone = world.backbone if decoder == "full" else world.tiny
    if backbone is None:
        raise ValueError(f"expected a world with a tiny decoder, got {world.name!r}")
    velocity: Velocity = world.backbone.velocity if cfg == 1 else CFG(world.backbone.velocity, cfg)
    return Tweedie(backbone, reward, posterior, Remembered(velocity) if reuse else velocity, graph)
