r"""The analytic velocity of a mixture as a Backbone of four honest blocks.

    1 residuals          S_k^-1 (z_t - a m_k)                              K C channels
    2 responsibilities   rho_k, beside the residuals they weight           K + K C channels
    3 posterior mean     D = sum_k rho_k E[z_0 | z_t, k], and the score    2 C channels
    4 velocity           u = -D - t score                                  C channels

It needs no division by t, so it is exact from t = 0 to t = 1.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.worlds.gaussian.mixture import Mixture, Noised
from bench.worlds.gaussian.prompts import PromptBook
from stitchvm.backbone import NULL, Backbone, Prompts, State


class Work(NamedTuple):
    """What the blocks leave behind; None before the block that makes it has run.

    Attributes:
        noised: Block 1.
        rho: Responsibilities, (B, K), block 2.
        mean: Posterior mean, (B, d), block 3.
        score: (B, d), block 3.
        velocity: (B, C, H, W), block 4.
    """

    noised: Noised
    rho: Any = None
    mean: Any = None
    score: Any = None
    velocity: Any = None


class GaussianBackbone(Backbone):
    """The exact flow of a mixture of Gaussians, with a linear decoder.

    Args:
        mixture: Components, over flat latents.
        book: The prompts, which weight them.
        latent: Shape of one latent, (C, H, W).
        decoder: Orthonormal columns, (12, C): a position becomes 2 x 2 pixels of 3 channels.
    """

    depth = 4
    latent: tuple[int, int, int]
    means: Tensor
    floors: Tensor
    directions: Tensor
    spikes: Tensor

    def __init__(
        self, mixture: Mixture, book: PromptBook, latent: tuple[int, int, int], decoder: Tensor
    ) -> None:
        super().__init__()
        self.latent, self.book = latent, book
        for name in ("means", "floors", "directions", "spikes"):
            self.register_buffer(name, getattr(mixture, name))
        channels = latent[0]
        self.decoder = nn.ConvTranspose2d(channels, 3, 2, 2, bias=False, dtype=decoder.dtype)
        with torch.no_grad():
            self.decoder.weight.copy_(decoder.T.reshape(channels, 3, 2, 2))
        self.requires_grad_(requires_grad=False)

    @property
    def mixture(self) -> Mixture:
        """The components, on this module's device."""
        return Mixture(self.means, self.floors, self.directions, self.spikes)

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The exact velocity, (B, C, H, W)."""
        return self._go_on(Work(self._residuals(z_t, t)), len(z_t), c, 1, self.depth).velocity

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """The state after i of the four blocks.

        Raises:
            ValueError: if i is not in 1..4.
        """
        if not 1 <= i <= self.depth:
            raise ValueError(f"expected i in 1..{self.depth}, got {i}")
        work = self._go_on(Work(self._residuals(z_t, t)), len(z_t), c, 1, i)
        return State(self._features(work), i, z_t, t, c, work)

    def advance(self, state: State, i: int) -> State:
        """The state after i of the four blocks, from an earlier one.

        Raises:
            ValueError: if i is not in state.i..4.
        """
        if not state.i <= i <= self.depth:
            raise ValueError(f"expected i in {state.i}..{self.depth}, got {i}")
        work = self._go_on(state.hidden, len(state.z_t), state.c, state.i, i)
        return replace(state, features=self._features(work), i=i, hidden=work)

    def resume(self, state: State) -> Tensor:
        """The rest of the velocity, (B, C, H, W)."""
        rows, work = len(state.z_t), state.hidden
        return self._go_on(work, rows, state.c, state.i, self.depth).velocity

    def select(self, state: State, rows: Tensor) -> State:
        """Some rows of a state."""
        size = len(state.z_t)
        noised = state.hidden.noised.spread(size).map(lambda x: x[rows])
        done = (x if x is None else x[rows] for x in state.hidden[1:])
        return state.of_rows(rows, Work(noised, *done))

    def join(self, first: State, second: State) -> State:
        """Two states as one batch.

        Raises:
            ValueError: if they are not after the same block.
        """
        first.meets(second)
        a, b = (state.hidden.noised.spread(len(state.z_t)) for state in (first, second))
        done = (
            x if x is None else torch.cat([x, y])
            for x, y in zip(first.hidden[1:], second.hidden[1:], strict=True)
        )
        return first.with_rows(second, Work(a.followed_by(b), *done))

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """All of the mixture, whatever i."""
        del i
        return {name: getattr(self, name) for name in ("means", "floors", "directions", "spikes")}

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images (B, 3, 2 H, 2 W): the transpose of the decoder, and its inverse."""
        return nn.functional.conv2d(x, self.decoder.weight, stride=2)

    def decode(self, z_0: Tensor) -> Tensor:
        """Images (B, 3, 2 H, 2 W), linear in z_0."""
        return self.decoder(z_0)

    def _go_on(self, work: Work, rows: int, c: Prompts | None, done: int, i: int) -> Work:
        """Blocks done + 1 to i."""
        for block in (self._responsibilities, self._posterior_mean, self._velocity)[
            done - 1 : i - 1
        ]:
            work = block(work, [NULL] * rows if c is None else c)
        return work

    def _residuals(self, z_t: Tensor, t: Tensor) -> Noised:
        return Noised.of(self.mixture, z_t.flatten(1), t)

    def _responsibilities(self, work: Work, c: Prompts) -> Work:
        log_rho = self.book.weights(c) + work.noised.log_density()
        return work._replace(rho=log_rho.softmax(-1))

    def _posterior_mean(self, work: Work, _c: Prompts) -> Work:
        return work._replace(mean=work.noised.mean(work.rho), score=work.noised.score(work.rho))

    def _velocity(self, work: Work, _c: Prompts) -> Work:
        flat = -work.mean - work.noised.t * work.score
        return work._replace(velocity=flat.unflatten(1, self.latent))

    def _features(self, work: Work) -> Tensor:
        """The output of the last block run as a map, (B, channels, H, W)."""
        if work.velocity is not None:
            return work.velocity
        if work.mean is not None:
            flat = torch.stack([work.mean, work.score], 1)
            return flat.unflatten(2, self.latent).flatten(1, 2)
        residuals = work.noised.residuals()
        if work.rho is None:
            return residuals.unflatten(2, self.latent).flatten(1, 2)
        weighted = (work.rho[..., None] * residuals).unflatten(2, self.latent).flatten(1, 2)
        spread = work.rho[..., None, None].expand(-1, -1, *self.latent[1:])
        return torch.cat([weighted, spread], 1)
