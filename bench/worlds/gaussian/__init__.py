"""The Gaussian world: a mixture of Gaussians in latents, where every value is known exactly."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.worlds.gaussian.backbone import GaussianBackbone
from bench.worlds.gaussian.mixture import Mixture, Posterior
from bench.worlds.gaussian.prompts import PromptBook
from bench.worlds.gaussian.rewards import (
    GAIN,
    GaussianReward,
    LinearReward,
    Network,
    QuadraticReward,
    SigmoidReward,
)
from bench.worlds.gaussian.trainable import trainable
from bench.worlds.gaussian.truth import Tilted, Truth, embedding_map
from stitchvm.backbone import NULL, Prompts
from stitchvm.reward import Reward
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import Drawn, Finish, Shown, Split, World

PIXELS = 12  # numbers in the 2 x 2 pixels of 3 channels that a latent position decodes to
CHANNELS, EMBEDDING = 16, 16  # of the rewards' network
FLOOR = 0.1  # variance outside a component's directions
SPIKES = (4.0, 0.25)  # largest and smallest variance along them: signal at every noise level
APART = 0.06  # standard deviation of the components' means, per coordinate
CONTRAST = 1.5  # standard deviation of a prompt's log weights
CURVATURE = 0.6  # 2 max(A C): the quadratic reward tilts up to lambda = 1 / CURVATURE
AT_ONCE = 256  # images
CONSTANTS = (CHANNELS, EMBEDDING, FLOOR, SPIKES, APART, CONTRAST, CURVATURE, GAIN)


class GaussianWorld(World):
    """A mixture prior, its flow, a linear decoder, and three rewards.

    Args:
        components: K.
        latent: Shape of one latent, (C, H, W).
        rank: Directions of a component's anisotropy.
        prompts: How many prompts there are.
        seed: Of the world itself.
        dtype: float64 or float32.
        device: Where to compute.
    """

    name = "gaussian"
    rewards = ("linear", "quadratic", "sigmoid")
    backbone: GaussianBackbone
    tiny = None

    def __init__(
        self,
        *,
        components: int = 8,
        latent: Sequence[int] = (4, 8, 8),
        rank: int = 8,
        prompts: int = 64,
        seed: int = 0,
        dtype: str = "float64",
        device: str = "cpu",
    ) -> None:
        if len(latent) != 3 or min(latent) < 1:  # noqa: PLR2004
            raise ValueError(f"expected latent (C, H, W) of positive sizes, got {tuple(latent)}")
        for name, count in (("components", components), ("rank", rank), ("prompts", prompts)):
            if count < 1:
                raise ValueError(f"expected {name} >= 1, got {count}")
        if latent[0] > PIXELS:
            raise ValueError(f"expected at most {PIXELS} latent channels, got {latent[0]}")
        if dtype not in {"float64", "float32"}:
            raise ValueError(f"expected dtype float64 or float32, got {dtype!r}")
        c, h, w = latent
        recipe = (components, tuple(latent), rank, prompts, seed, dtype, *CONSTANTS)
        self.digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
        self._make = _Maker(derive(seed, "gaussian"))
        self._to: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
        mixture = self._mixture(components, c * h * w, min(rank, c * h * w))
        self.book = PromptBook(
            (CONTRAST * self._make.normal("prompts", prompts, components)).log_softmax(-1)
        )
        self.prompts = self.book.texts
        decoder = self._make.orthonormal("decoder", PIXELS, c)
        self.flow = GaussianBackbone(mixture, self.book, (c, h, w), decoder).to(**self._to)
        self.backbone = self.flow  # what is asked; it may be wrapped, the truth stays with its own
        self.book.to(**self._to)
        self._pool = torch.eye(h * w * CHANNELS, dtype=torch.float64).unflatten(
            1, (h * w, CHANNELS)
        )
        self._pool = self._embedding(
            min(EMBEDDING, c * h * w, components * (min(rank, c * h * w) + 1))
        )

    def _mixture(self, components: int, d: int, rank: int) -> Mixture:
        directions = [
            self._make.orthonormal(f"directions {k}", d, rank) for k in range(components)
        ]
        largest, smallest = torch.tensor(SPIKES, dtype=torch.float64).log()
        spikes = torch.linspace(largest, smallest, rank, dtype=torch.float64).exp()
        return Mixture(
            means=APART * self._make.normal("means", components, d),
            floors=torch.full((components,), FLOOR, dtype=torch.float64),
            directions=torch.stack(directions),
            spikes=spikes.expand(components, rank).contiguous(),
        )

    def _embedding(self, q: int) -> Tensor:
        """A pooling (q, tokens, channels) whose embedding of data has unit covariance.

        It reads what varies: random combinations of the components' directions and means.
        """
        tokens = embedding_map(self.flow, self._plain()).double().cpu()
        mixture = self.flow.mixture.to(tokens)
        varies = torch.cat([*mixture.directions.unbind(), mixture.means.T], 1)
        e = self._make.normal("embedding", q, varies.shape[1]) @ varies.T
        weights = self.book.weights([NULL])[0].double().cpu().exp()
        apart = mixture.means - weights @ mixture.means
        total = torch.einsum("k,kde->de", weights, mixture.covariances())
        total = e @ (total + torch.einsum("k,kd,ke->de", weights, apart, apart)) @ e.T
        e = torch.linalg.solve_triangular(torch.linalg.cholesky(total), e, upper=False)
        return (e @ torch.linalg.pinv(tokens)).unflatten(1, self._pool.shape[1:])

    def _plain(self) -> GaussianReward:
        """The network with the pooling as it stands, for its linear map."""
        w = torch.zeros(len(self.book.texts), len(self._pool))
        return LinearReward(self._network(), w).to(**self._to)

    def _network(self) -> Network:
        make = self._make
        return Network(
            patch=make.normal("patch", CHANNELS, 3, 2, 2) / 12**0.5,
            blocks=tuple(make.orthonormal(f"block {j}", CHANNELS, CHANNELS) for j in (1, 2)),
            pool=self._pool,
            book=self.book,
        )

    def reward(self, name: str) -> GaussianReward:
        """The reward of that name: linear, quadratic or sigmoid.

        Raises:
            ValueError: for any other name.
        """
        count, q = len(self.book.texts), len(self._pool)
        w = torch.nn.functional.normalize(self._make.normal("w", count, q), dim=-1)
        kinds: dict[str, Callable[[], GaussianReward]] = {
            "linear": lambda: LinearReward(self._network(), w),
            "quadratic": lambda: QuadraticReward(self._network(), self._curvature(count, q)),
            "sigmoid": lambda: SigmoidReward(self._network(), w, self._make.normal("b", count)),
        }
        if name not in kinds:
            raise ValueError(f"expected a reward in {self.rewards}, got {name!r}")
        return kinds[name]().to(**self._to)

    def _curvature(self, count: int, q: int) -> Tensor:
        """Curvatures a_cm of either sign, positive on average, scaled by CURVATURE."""
        a = 0.5 + self._make.normal("a", count, q)
        e = embedding_map(self.flow, self._plain()).double().cpu()
        covariances = self.flow.mixture.to(e).covariances()
        largest = torch.linalg.eigvalsh(e @ covariances @ e.T).max()
        return a * CURVATURE / (2 * largest * a.abs().max())

    def draw(self, c: Prompts, rng: Streams) -> Tensor:
        """Clean latents of prompts, (B, C, H, W)."""
        mixture = self.flow.mixture
        return mixture.sample(self.book.weights(c), rng).unflatten(1, self.flow.latent)

    def admit(self, c: Prompts) -> None:
        """Refuse what is none of its scenes.

        Raises:
            ValueError: naming one.
        """
        self.book.own(c)

    def images(self, split: Split, count: int) -> Iterator[Shown]:
        """Decoded draws under the prompts in turn, so that all together are the data."""
        for first in range(0, count, AT_ONCE):
            rows = range(first, min(first + AT_ONCE, count))
            c = [self.prompts[row % len(self.prompts)] for row in rows]
            rng = Streams(derive(0, "images", split, row) for row in rows)
            yield Shown(self.flow.decode(self.draw(c, rng)), c)

    def training(self, count: int) -> tuple[str, ...]:
        """The prompts themselves: of a mixture there is nothing to generalise from."""
        return self.prompts[:count]

    def trainable(self, rank: int, seed: int) -> GaussianBackbone:
        """Its means and its prompts' log weights, as they are: no rank, nothing drawn."""
        del rank, seed
        return trainable(self.flow)

    def pictures(self, z_0: Tensor) -> None:
        """None: a Gaussian decodes to noise."""

    def seen(self, z_0: Tensor) -> Tensor:
        """The latent itself, flat."""
        return z_0.flatten(1)

    def tilted_draws(self, reward: Reward, c: str, lam: float, rng: Streams) -> Drawn | None:
        """Exact draws; None for a foreign reward."""
        if not isinstance(reward, GaussianReward):
            return None
        z_0 = self.tilted(reward, c, lam).sample(rng)
        return Drawn(self.seen(z_0), reward(self.flow.decode(z_0), [c] * len(z_0)))

    def truth(self, reward: Reward, target: Target) -> ValueEstimator | None:
        """The exact value; None for the `model` posterior or a foreign reward: no closed form."""
        if target.posterior == "model" or not isinstance(reward, GaussianReward):
            return None
        return Truth(self.flow, reward, target)

    def certainty(
        self, reward: Reward, target: Target, z_t: Tensor, t: Tensor, c: Prompts
    ) -> None:
        """None: the truth is exact."""

    def posterior(self, posterior: str) -> Finish:
        """Exact draws from the `data` or `prompt` posterior.

        Raises:
            ValueError: for another.
        """
        if posterior not in {"data", "prompt"}:
            raise ValueError(f"expected the data or prompt posterior, got {posterior!r}")

        def finish(z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None) -> Tensor:
            if rng is None:
                raise ValueError("expected rng, one stream per latent, got None")
            weights = self.book.weights(c if posterior == "prompt" else [NULL] * len(z_t))
            exact = Posterior.of(self.flow.mixture, weights, z_t.flatten(1), t.to(z_t))
            return exact.sample(rng).unflatten(1, self.flow.latent)

        return finish

    def tilted(self, reward: GaussianReward, c: str, lam: float) -> Tilted:
        """The tilted target p*(z_0 | c) ~ p(z_0 | c) exp(lambda r)."""
        return Tilted.of(self.flow, reward, c, lam)


class _Maker:
    """Named random tensors in float64: adding one changes no other."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal."""
        generator = torch.Generator().manual_seed(derive(self.seed, name))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def orthonormal(self, name: str, rows: int, columns: int) -> Tensor:
        """Orthonormal columns, (rows, columns)."""
        return torch.linalg.qr(self.normal(name, rows, columns)).Q
