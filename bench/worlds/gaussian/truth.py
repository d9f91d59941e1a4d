r"""The exact value of a noisy latent, and the tilted target p*(z_0|c) ~ p(z_0|c) exp(lambda r).

    V~      = sum_k rho_k E[r | z_t, k]                                                (Eq. 49)
    V^lam   = (1 / lambda) log sum_k rho_k E[exp(lambda r) | z_t, k]              (Eqs. 3, 52)

with the gradient by autograd.  p* of a linear or quadratic reward is again a mixture,

    C*_k = (C_k^-1 - 2 lambda A)^-1,   m*_k = C*_k (C_k^-1 m_k + lambda w),

where every C_k^-1 - 2 lambda A is positive definite, and does not exist elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.worlds.gaussian.backbone import GaussianBackbone
from bench.worlds.gaussian.mixture import Mixture, Posterior
from bench.worlds.gaussian.rewards import GaussianReward, SigmoidReward
from stitchvm.backbone import NULL, Prompts
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator

TRIES = 10_000  # of rejection sampling: at a bounded reward's lambda of 5 one in 150 is accepted


def embedding_map(backbone: GaussianBackbone, reward: GaussianReward) -> Tensor:
    """E (q, d) with e = E z_0, from the network itself."""
    latent = backbone.latent
    d = latent[0] * latent[1] * latent[2]
    eye = torch.eye(d, dtype=backbone.means.dtype, device=backbone.means.device)
    x = backbone.decode(eye.unflatten(1, latent))
    return reward.features(x).embedding.T


class Truth(ValueEstimator):
    """The exact mean or soft value under the `data` or `prompt` posterior.

    Args:
        backbone: The world's backbone.
        reward: One of its rewards.
        target: What to compute.

    Raises:
        ValueError: for the `model` posterior, or a lambda at which no p* exists.
    """

    e: Tensor

    def __init__(self, backbone: GaussianBackbone, reward: GaussianReward, target: Target) -> None:
        super().__init__()
        if target.posterior == "model":
            raise ValueError(f"expected the data or prompt posterior, got {target}")
        self.backbone, self.reward, self.target = backbone, reward, target
        self.latent = backbone.latent
        self.register_buffer("e", embedding_map(backbone, reward))
        if target.lam is not None and not isinstance(reward, SigmoidReward):
            for text in reward.book.texts:
                tilted_precisions(backbone, reward, text, target.lam, self.e)

    def posterior(self, z_t: Tensor, t: Tensor, c: Prompts) -> Posterior:
        """The posterior this truth is about."""
        asked = c if self.target.posterior == "prompt" else [NULL] * len(z_t)
        weights = self.backbone.book.weights(asked)
        return Posterior.of(self.backbone.mixture, weights, z_t.flatten(1), t.to(z_t))

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The exact value, (B,)."""
        posterior = self.posterior(z_t, t, c)
        m, s = posterior.project(self.e)
        if self.target.lam is None:
            return (posterior.log_rho.exp() * self.reward.mean(m, s, c)).sum(-1)
        log_mgf = self.reward.log_mgf(m, s, c, self.target.lam)
        return (posterior.log_rho + log_mgf).logsumexp(-1) / self.target.lam


def tilted_precisions(
    backbone: GaussianBackbone, reward: GaussianReward, c: str, lam: float, e: Tensor
) -> Tensor:
    """C_k^-1 - 2 lambda A, (K, d, d).

    Raises:
        ValueError: if one of them is not positive definite: no p* exists at this lambda.
    """
    mixture, (a, _) = backbone.mixture, reward.forms([c])
    inverse = 1 / mixture.floors
    precisions = mixture.scaled(
        1 / (mixture.floors[:, None] + mixture.spikes) - inverse[:, None], inverse
    )
    precisions = precisions - 2 * lam * (e.T @ a[0] @ e)
    if bool(torch.linalg.cholesky_ex(precisions).info.any()):
        raise ValueError(
            f"expected lambda where every C^-1 - 2 lambda A is positive definite, got {lam:g} "
            f"for {c!r}: no tilted target exists"
        )
    return precisions


@dataclass(frozen=True)
class Tilted:
    """p*(z_0 | c): a mixture, thinned by acceptance where it has no closed form.

    Attributes:
        mixture: Its components over flat latents, or those of the prior.
        log_weights: Their log weights, (K,).
        reward: For a bounded reward: accept z_0 with probability exp(lambda (r - 1)).
        backbone: Decodes for that reward.
        c: The prompt.
        lam: Inverse temperature.
    """

    mixture: Mixture
    log_weights: Tensor
    backbone: GaussianBackbone
    reward: GaussianReward
    c: str
    lam: float

    @classmethod
    def of(
        cls, backbone: GaussianBackbone, reward: GaussianReward, c: str, lam: float
    ) -> "Tilted":
        """The tilted target of one prompt.

        Raises:
            ValueError: if it does not exist at this lambda.
        """
        if not lam > 0:
            raise ValueError(f"expected lambda > 0, got {lam:g}")
        mixture, log_weights = backbone.mixture, backbone.book.weights([c])[0]
        if isinstance(reward, SigmoidReward):
            return cls(mixture, log_weights, backbone, reward, c, lam)
        e = embedding_map(backbone, reward)
        covariances = torch.linalg.inv(tilted_precisions(backbone, reward, c, lam, e))
        w = reward.forms([c])[1][0] @ e
        prior = torch.linalg.solve(mixture.covariances(), mixture.means[..., None])[..., 0]
        means = torch.einsum("kde,ke->kd", covariances, prior + lam * w)
        z_1 = torch.zeros_like(mixture.means[:1])
        m, s = Posterior.of(mixture, log_weights[None], z_1, z_1.new_ones(())).project(e)
        tilt = reward.log_mgf(m, s, [c], lam)[0]
        tilted = Mixture.from_covariances(means, covariances)
        return cls(tilted, (log_weights + tilt).log_softmax(0), backbone, reward, c, lam)

    def mean(self) -> Tensor:
        """E*[z_0], (d,), of a target in closed form."""
        return self.log_weights.exp() @ self.mixture.means

    def covariance(self) -> Tensor:
        """Cov*(z_0), (d, d), of a target in closed form."""
        weights, apart = self.log_weights.exp(), self.mixture.means - self.mean()
        between = torch.einsum("k,kd,ke->de", weights, apart, apart)
        return torch.einsum("k,kde->de", weights, self.mixture.covariances()) + between

    def sample(self, rng: Streams) -> Tensor:
        """Exact draws, one per stream, (B, *latent)."""
        weights = self.log_weights.expand(len(rng), -1)
        if not isinstance(self.reward, SigmoidReward):
            return self.mixture.sample(weights, rng).unflatten(1, self.backbone.latent)
        out = torch.empty(len(rng), *self.backbone.latent).to(self.log_weights)
        waiting = torch.arange(len(rng), device=out.device)
        for attempt in range(TRIES):
            streams = Streams([rng.seeds[int(row)] for row in waiting]).child(attempt)
            z_0 = self.mixture.sample(weights[waiting], streams)
            z_0 = z_0.unflatten(1, self.backbone.latent)
            r = self.reward(self.backbone.decode(z_0), [self.c] * len(waiting))
            accepted = streams.uniform(r.dtype).to(r.device).log() < self.lam * (r - 1)
            out[waiting[accepted]] = z_0[accepted]
            waiting = waiting[~accepted]
            if not len(waiting):
                return out
        raise ValueError(f"expected lambda small enough for rejection sampling, got {self.lam:g}")
