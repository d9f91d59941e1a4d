r"""Mixtures of Gaussians noised along the rectified-flow path: every moment in closed form.

    p(z_0)   = sum_k pi_k N(m_k, C_k),          C_k = f_k I + U_k diag(l_k) U_k^T
    p_t(z_t) = sum_k pi_k N(a m_k, S_k),        S_k = a^2 C_k + t^2 I,   a = 1 - t
    z_0 | z_t, k ~ N(m_k + a C_k S_k^-1 d_k, t^2 C_k S_k^-1),   d_k = z_t - a m_k

C_k and S_k share the eigenvectors U_k, so each is a floor plus r directions and costs O(d r).
Latents are flat here, (B, d); weights are per row, (B, K), because prompts change only them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stitchvm.streams import Streams


@dataclass(frozen=True)
class Mixture:
    """Components of a mixture, without their weights.

    Attributes:
        means: m_k, (K, d).
        floors: f_k, variances outside the directions, (K,).
        directions: Orthonormal U_k, (K, d, r).
        spikes: l_k, extra variances along the directions, (K, r); f_k + l_k >= 0.
    """

    means: Tensor
    floors: Tensor
    directions: Tensor
    spikes: Tensor

    @classmethod
    def from_covariances(cls, means: Tensor, covariances: Tensor) -> "Mixture":
        """The same form from full covariances (K, d, d): floor = the smallest eigenvalue."""
        values, vectors = torch.linalg.eigh(covariances)
        return cls(means, values[:, 0], vectors, values - values[:, :1])

    def to(self, like: Tensor) -> "Mixture":
        """The mixture in another dtype and on another device."""
        return Mixture(*(getattr(self, f.name).to(like) for f in fields(self)))

    def covariances(self) -> Tensor:
        """C_k in full, (K, d, d)."""
        return self.scaled(self.spikes, self.floors)

    def scaled(self, spikes: Tensor, floors: Tensor) -> Tensor:
        """F I + U diag(l) U^T in full for other eigenvalues (K, r), (K,); (K, d, d)."""
        eye = torch.eye(self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        spread = torch.einsum("kdr,kr,ker->kde", self.directions, spikes, self.directions)
        return floors[:, None, None] * eye + spread

    def sample(self, log_weights: Tensor, rng: Streams) -> Tensor:
        """One draw per row, (B, d), under weights (B, K)."""
        means = self.means.expand(len(log_weights), -1, -1)
        floors = self.floors.expand(len(log_weights), -1)
        spikes = self.spikes.expand(len(log_weights), -1, -1)
        return self.draw(log_weights, means, floors, spikes, rng)

    def draw(
        self, log_weights: Tensor, means: Tensor, floors: Tensor, spikes: Tensor, rng: Streams
    ) -> Tensor:
        """One draw per row from sum_k w_k N(means_k, f_k I + U_k diag(l_k) U_k^T), (B, d)."""
        cdf = log_weights.softmax(-1).cumsum(-1)
        u = rng.uniform(cdf.dtype).to(cdf.device)[:, None]
        k = (u >= cdf).sum(-1).clamp(max=cdf.shape[1] - 1)
        rows = torch.arange(len(k), device=k.device)
        mean, floor, spike, u_k = (
            means[rows, k],
            floors[rows, k],
            spikes[rows, k],
            self.directions[k],
        )
        xi = rng.normal(mean)
        scale = (floor[:, None] + spike).clamp(min=0).sqrt() - floor[:, None].sqrt()
        along = torch.einsum("bd,bdr->br", xi, u_k) * scale
        return mean + floor[:, None].sqrt() * xi + torch.einsum("bdr,br->bd", u_k, along)


@dataclass(frozen=True)
class Noised:
    """Latents z_t seen by every component, without ever forming a (B, K, d) tensor.

    Time enters as (B, 1) or (1, 1); whatever depends on it alone keeps that leading size.

    Attributes:
        mixture: The clean mixture.
        z_t: Flat latents, (B, d).
        t: Times, (B, 1) or (1, 1).
        floors, spikes: Eigenvalues of S_k, (B or 1, K) and (B or 1, K, r).
        along: U_k^T d_k, (B, K, r).
        square: |d_k|^2, (B, K).
    """

    mixture: Mixture
    z_t: Tensor
    t: Tensor
    floors: Tensor
    spikes: Tensor
    along: Tensor
    square: Tensor

    @classmethod
    def of(cls, mixture: Mixture, z_t: Tensor, t: Tensor) -> "Noised":
        """Flat latents (B, d) at times () or (B,)."""
        t = t.to(z_t).reshape(-1, 1)
        a, m, u = 1 - t, mixture.means, mixture.directions
        along = torch.einsum("bd,kdr->bkr", z_t, u) - a[..., None] * torch.einsum(
            "kd,kdr->kr", m, u
        )
        square = z_t.square().sum(-1, keepdim=True) - 2 * a * (z_t @ m.T)
        square = square + a**2 * m.square().sum(-1)
        floors = a**2 * mixture.floors + t**2
        return cls(mixture, z_t, t, floors, a[..., None] ** 2 * mixture.spikes, along, square)

    def spread(self, rows: int) -> "Noised":
        """The same, with a row each where all rows share one."""
        return self.map(lambda x: x.expand(rows, *x.shape[1:]))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Noised":
        """A function of everything that has rows."""
        return Noised(self.mixture, *(function(getattr(self, f.name)) for f in fields(self)[1:]))

    def followed_by(self, other: "Noised") -> "Noised":
        """The rows of both, which must have all rows of their own."""
        theirs = iter([getattr(other, f.name) for f in fields(other)[1:]])
        return self.map(lambda x: torch.cat([x, next(theirs)]))

    def log_density(self) -> Tensor:
        """Log N(z_t; a m_k, S_k), (B, K)."""
        dim, r = self.mixture.directions.shape[1:]
        full = self.floors[..., None] + self.spikes
        log_det = (dim - r) * self.floors.log() + full.log().sum(-1)
        inside = self.along.square()
        mahalanobis = (self.square - inside.sum(-1)) / self.floors + (inside / full).sum(-1)
        return -0.5 * (mahalanobis + log_det + dim * math.log(2 * math.pi))

    def combine(self, weights: Tensor, floors: Tensor, spikes: Tensor) -> Tensor:
        """sum_k w_k (f_k I + U_k diag(l_k) U_k^T) d_k for w, f (B, K) and l (B, K, r); (B, d)."""
        even = weights * floors
        inside = weights[..., None] * spikes * self.along
        spread = torch.einsum("bkr,kdr->bd", inside, self.mixture.directions)
        return (
            even.sum(-1, keepdim=True) * self.z_t
            - (1 - self.t) * even @ self.mixture.means
            + spread
        )

    def score(self, rho: Tensor) -> Tensor:
        """-sum_k rho_k S_k^-1 d_k, (B, d): the score of p_t under responsibilities (B, K)."""
        return -self.combine(rho, *_inverse(self.floors, self.spikes))

    def mean(self, rho: Tensor) -> Tensor:
        """sum_k rho_k E[z_0 | z_t, k], (B, d)."""
        return rho @ self.mixture.means + (1 - self.t) * self.combine(rho, *self.gain())

    def gain(self) -> tuple[Tensor, Tensor]:
        """Floors and spikes of C_k S_k^-1, (B or 1, K) and (B or 1, K, r)."""
        m = self.mixture
        floors = m.floors / self.floors
        full = (m.floors[:, None] + m.spikes) / (self.floors[..., None] + self.spikes)
        return floors, full - floors[..., None]

    def residuals(self) -> Tensor:
        """Whitened residuals S_k^-1 d_k, (B, K, d): features, not on the way to the velocity."""
        d = self.z_t[:, None] - (1 - self.t)[..., None] * self.mixture.means
        return self.apply(d, *_inverse(self.floors, self.spikes))

    def means(self) -> Tensor:
        """E[z_0 | z_t, k], (B, K, d)."""
        d = self.z_t[:, None] - (1 - self.t)[..., None] * self.mixture.means
        return self.mixture.means + (1 - self.t)[..., None] * self.apply(d, *self.gain())

    def apply(self, d: Tensor, floors: Tensor, spikes: Tensor) -> Tensor:
        """(f I + U diag(l) U^T) d_k for the residuals d, (B, K, d)."""
        spread = torch.einsum("bkr,kdr->bkd", spikes * self.along, self.mixture.directions)
        return floors[..., None] * d + spread


def _inverse(floors: Tensor, spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Floors and spikes of (f I + U diag(l) U^T)^-1."""
    return 1 / floors, 1 / (floors[..., None] + spikes) - 1 / floors[..., None]


@dataclass(frozen=True)
class Posterior:
    """p(z_0 | z_t) = sum_k rho_k N(mu_k, f_k I + U_k diag(l_k) U_k^T), row by row.

    Attributes:
        mixture: The clean mixture (for its directions).
        log_rho: Log responsibilities, (B, K).
        means: mu_k, (B, K, d).
        floors: f_k, (B or 1, K).
        spikes: l_k, (B or 1, K, r).
    """

    mixture: Mixture
    log_rho: Tensor
    means: Tensor
    floors: Tensor
    spikes: Tensor

    @classmethod
    def of(cls, mixture: Mixture, log_weights: Tensor, z_t: Tensor, t: Tensor) -> "Posterior":
        """The posterior of flat latents z_t (B, d) at t, () or (B,), under weights (B, K)."""
        noised = Noised.of(mixture, z_t, t)
        log_rho = (log_weights + noised.log_density()).log_softmax(-1)
        floors, spikes = noised.gain()
        square = noised.t**2
        return cls(mixture, log_rho, noised.means(), square * floors, square[..., None] * spikes)

    def mean(self) -> Tensor:
        """E[z_0 | z_t], (B, d)."""
        return torch.einsum("bk,bkd->bd", self.log_rho.exp(), self.means)

    def covariance(self) -> Tensor:
        """Cov(z_0 | z_t), (B, d, d): within components plus between their means."""
        rho, u = self.log_rho.exp(), self.mixture.directions
        eye = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        within = (rho * self.floors).sum(-1)[:, None, None] * eye
        within = within + torch.einsum("kdr,bkr,ker->bde", u, rho[..., None] * self.spikes, u)
        apart = self.means - self.mean()[:, None]
        return within + torch.einsum("bk,bkd,bke->bde", rho, apart, apart)

    def project(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, K, q) and covariances (B, K, q, q) of E z_0 given k, for E (q, d)."""
        eu = torch.einsum("qd,kdr->kqr", e, self.mixture.directions)
        spread = torch.einsum("kqr,bkr,kpr->bkqp", eu, self.spikes, eu)
        return self.means @ e.T, self.floors[..., None, None] * (e @ e.T) + spread

    def sample(self, rng: Streams) -> Tensor:
        """One exact posterior draw per row, (B, d)."""
        rows = len(self.means)
        floors, spikes = self.floors.expand(rows, -1), self.spikes.expand(rows, -1, -1)
        return self.mixture.draw(self.log_rho, self.means, floors, spikes, rng)
