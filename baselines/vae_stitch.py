"""VAE stitching: StitchVM without a backbone, the reward's tail on the noisy latent itself.

The same layer, tail, search and finetuning (with more epochs, in the paper); only u^{<=i} is the
identity.  What it lacks against StitchVM is all that the first blocks know, and the noise level.

Source: arXiv:2605.19804, section 5, which names VIST3A and VGGRPO as its origin.
"""

from dataclasses import replace
from pathlib import Path
from typing import Self

from torch import Tensor

from baselines.trained import build_of
from stitchvm.backbone import NULL, Backbone, Prompts, State
from stitchvm.reward import Reward
from stitchvm.stitch import Stitched


class Latent(Backbone):
    """A backbone of one block that leaves the latent as it is.

    Args:
        inner: Whose latents, encoder and decoder; its velocity is what it goes on to.
    """

    depth = 1

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner, self.latent = inner, inner.latent

    def velocity(self, z_t: Tensor, t: Tensor, c: Prompts) -> Tensor:
        """The velocity of the backbone inside, (B, *latent)."""
        return self.inner.velocity(z_t, t, c)

    def trunk(self, z_t: Tensor, t: Tensor, i: int, c: Prompts | None = None) -> State:
        """The latent itself as a map.

        Raises:
            ValueError: unless i is 1.
        """
        return self.advance(State(z_t, 1, z_t, t, c, None), i)

    def advance(self, state: State, i: int) -> State:
        """The same state.

        Raises:
            ValueError: unless i is 1.
        """
        if i != 1:
            raise ValueError(f"expected i in 1..1, got {i}")
        return replace(state)

    def resume(self, state: State) -> Tensor:
        """The velocity of the backbone inside, from the start."""
        c = [NULL] * len(state.z_t) if state.c is None else state.c
        return self.inner.velocity(state.z_t, state.t, c)

    def select(self, state: State, rows: Tensor) -> State:
        """Some rows of a state."""
        return state.of_rows(rows, None)

    def join(self, first: State, second: State) -> State:
        """Two states as one batch."""
        return first.with_rows(second, None)

    def trunk_weights(self, i: int) -> dict[str, Tensor]:
        """None: latents of another autoencoder are told apart by their shape alone."""
        del i
        return {}

    def encode(self, x: Tensor) -> Tensor:
        """As the backbone inside."""
        return self.inner.encode(x)

    def decode(self, z_0: Tensor) -> Tensor:
        """As the backbone inside."""
        return self.inner.decode(z_0)


class VaeStitched(Stitched):
    """A StitchVM on the latent itself."""

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: Backbone, reward: Reward) -> Self:
        """As `Stitched`, given the backbone whose latents it reads."""
        return super().from_pretrained(folder, Latent(backbone), reward)


build = build_of(VaeStitched, "vae_stitch")
