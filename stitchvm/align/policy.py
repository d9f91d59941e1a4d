"""Policy: a generator that is trained, beside what it was.

    current     the network with its weights: what gradients reach
    old         a slow average of it: what samples are drawn from
    averaged    a faster one: what is evaluated, and kept
    reference   before training: what it should stay near

Old and averaged are weights of their own for the one network; the reference needs none.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stitchvm.backbone import Backbone, Prompts, Velocity

Weights = Mapping[str, Tensor]


class Policy:
    """A velocity with trainable weights.

    Args:
        network: A generator, some of whose weights ask for gradients: on a denoiser, LoRA's.
        reference: The velocity before training.

    Attributes:
        weights: Those that are trained, by name.
        old, averaged: Values of theirs.

    Raises:
        ValueError: if no weight asks for gradients.
    """

    def __init__(self, network: Backbone, reference: Velocity) -> None:
        self.network, self.reference = network, reference
        self._asked = _Asked(network)
        self.weights = {n: w for n, w in self._asked.named_parameters() if w.requires_grad}
        if not self.weights:
            raise ValueError("expected a network with trainable weights, got none")
        self.old = {name: w.detach().clone() for name, w in self.weights.items()}
        self.averaged = {name: w.detach().clone() for name, w in self.weights.items()}

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.network.latent

    def everything(self) -> list[Tensor]:
        """All values of the weights that it holds, and the network's others."""
        return [*self.network.state_dict().values(), *self.old.values(), *self.averaged.values()]

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The current velocity, (B, *latent), differentiable in the weights."""
        return self.network.velocity(z_t, t, c)

    def holding(self, weights: Weights) -> Velocity:
        """The velocity with other values of the weights, without gradients."""
        return partial(self._with, weights)

    @torch.no_grad()
    def _with(self, weights: Weights, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        return functional_call(self._asked, dict(weights), (z_t, t, c))

    @torch.no_grad()
    def follow(self, values: Weights, keep: float) -> None:
        """Move old or averaged values towards the current ones, keeping a share of themselves."""
        for name, value in values.items():
            value.lerp_(self.weights[name].detach(), 1 - keep)

    @torch.no_grad()
    def become(self, weights: Weights) -> None:
        """Take values as the current weights."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


class _Asked(nn.Module):
    """A network whose `forward` is its velocity, as `functional_call` wants it."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity."""
        return self.network.velocity(z_t, t, c)
