"""The noisy latents on which every estimator of a suite is asked, the same for all of them.

Each latent has a stream of its own, named by seed, prompt, group and member, so it is the same
whatever the estimator, the batch size, or how many others there are.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.protocols import Levels, Protocol
from stitchvm.backbone import NULL
from stitchvm.path import match_snr, noise, time_grid
from stitchvm.reward import Reward
from stitchvm.sample import NU, Sde, sample
from stitchvm.streams import Streams, derive
from stitchvm.world import World

MADE_AT_ONCE = 32


@dataclass(frozen=True)
class Latents:
    """Latents at one noise level, prompt-major: B = P x G x M.

    Attributes:
        z_t: (B, *latent).
        sigma: Their noise level.
        t: The same as a tensor of theirs, ().
        c: Their prompts.
        z_0: Clean latents that they are noised from or finish in, (B, *latent).
        realised: Realised clean rewards, (B,).
        realises: The posterior that the realised rewards follow.
        keys: Names of the rows, from which their streams derive.
    """

    z_t: Tensor
    sigma: float
    t: Tensor
    c: list[str]
    z_0: Tensor
    realised: Tensor
    realises: str
    keys: list[tuple[str, int, int]]

    @property
    def digest(self) -> str:
        """Of z_t."""
        return digest(self.z_t)


def digest(z_t: Tensor) -> str:
    """SHA-256 of noisy latents, first 16 hex digits."""
    return hashlib.sha256(z_t.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def actual(sigma: float, protocol: Levels, world: World) -> float:
    """The noise level on this world's latents: matched by signal-to-noise on the snr grid."""
    if protocol.grid == "plain":
        return sigma
    _, height, width = world.backbone.latent
    return match_snr(sigma, height * width)


@torch.no_grad()
def make(world: World, reward: Reward, protocol: Protocol, sigma: float, seed: int) -> Latents:
    """Latents of the protocol at a noise level.

    They are made in batches of a size of their own: their last bits, and so their digest, depend
    on it, and must not depend on how many an estimator is then asked at once.

    Raises:
        ValueError: if the world has fewer prompts than the protocol asks for.
    """
    if protocol.prompts > len(world.prompts):
        raise ValueError(
            f"expected at most {len(world.prompts)} prompts in world {world.name!r}, "
            f"got {protocol.prompts}"
        )
    keys = [
        (c, group, member)
        for c in world.prompts[: protocol.prompts]
        for group in range(protocol.groups)
        for member in range(protocol.members)
    ]
    level = actual(sigma, protocol, world)
    maker = _Maker(world, reward, protocol, level, seed)
    parts = [
        maker.make(keys[first : first + MADE_AT_ONCE])
        for first in range(0, len(keys), MADE_AT_ONCE)
    ]
    return Latents(
        z_t=torch.cat([z_t for z_t, _, _ in parts]),
        sigma=level,
        t=parts[0][0].new_tensor(level),
        c=[c for c, _, _ in keys],
        z_0=torch.cat([z_0 for _, z_0, _ in parts]),
        realised=torch.cat([r for _, _, r in parts]),
        realises=maker.realises,
        keys=keys,
    )


class _Maker:
    """Makes latents at one noise level and finishes them."""

    def __init__(
        self, world: World, reward: Reward, protocol: Protocol, level: float, seed: int
    ) -> None:
        self.world, self.reward, self.protocol, self.seed = world, reward, protocol, seed
        self.level = level
        self.from_data = protocol.latents == "data"
        self.siblings = protocol.group == "siblings"
        self.start = min(1.0, level + 1 / protocol.steps) if self.siblings else level
        self.sampler = Sde(world.backbone.velocity, NU[protocol.kernel])
        self.finish_steps = max(1, round(protocol.steps * level))

    @property
    def realises(self) -> str:
        """What the realised rewards are draws of."""
        if self.from_data and not self.siblings:
            return "prompt" if self.protocol.pairing == "own" else "data"
        prompt = "" if self.protocol.pairing == "own" else ", null prompt"
        return f"{self.protocol.kernel}, {self.finish_steps} steps{prompt}"

    def make(self, keys: list[tuple[str, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and clean latents (b, *latent), and realised rewards (b,), of some rows."""
        c = [key[0] for key in keys]
        seen = c if self.protocol.pairing == "own" else [NULL] * len(c)
        own = Streams(derive(self.seed, "latent", *key) for key in keys)
        shared = Streams(derive(self.seed, "latent", *key[:2]) for key in keys)
        first = shared if self.siblings else own  # siblings descend from one parent
        z_0 = self.world.draw(seen, first.child("z_0"))
        eps = first.child("eps").normal(z_0)
        start = eps.new_tensor(self.start)
        if self.from_data:
            z_t = noise(z_0, start, eps)
        else:
            z_t = self._walk(eps, 1.0, self.start, seen, first.child("walk"))
        if self.siblings:
            level = eps.new_tensor(self.level)
            kernel = self.sampler.transition(z_t, start, level, seen)
            z_t = kernel.draw(own.child("sibling"))
        if not self.from_data or self.siblings:
            z_0 = self._walk(z_t, self.level, 0.0, seen, own.child("finish"))
        return z_t, z_0, self.reward(self.world.backbone.decode(z_0), c)

    def _walk(self, z: Tensor, start: float, stop: float, c: list[str], rng: Streams) -> Tensor:
        """Latents taken from one time to an earlier one by the protocol's sampler."""
        if start <= stop:
            return z
        steps = max(1, round(self.protocol.steps * (start - stop)))
        begin = z.new_tensor(start)
        return sample(self.sampler, z, time_grid(steps, begin, stop), c, rng)
