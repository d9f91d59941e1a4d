r"""The bank: clean latents with their rewards' embeddings, and the exact posterior over them.

    w_m(z_t) ~ p_m N(z_t; (1 - t) z_m, t^2),   V(z_t | c) = sum_m w_m r(z_m, c)      (Eqs. 3, 49)

with p_m = p(c | scene m) in a bank of scenes of which c is true (`prompt`), and equal in a bank
of all scenes (`data`).  If the tested latent is one of the members, V of the bank is an unbiased
but noisy V of the continuous world: signed biases and differences of mean squared errors carry
over, and every mean squared error is too large by one and the same variance.  From half of the
members to all of them the value moves by

    E (V_half - V)^2 = E sum_h w_h (V_h - V)^2,   h either half, w_h its posterior weight,

which is that variance if it falls like 1 / members, and is reported as such.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stitchvm.path import expand_time
from stitchvm.streams import Streams

AT_ONCE = 4_000_000  # weights in flight: 32 MB of float64


@dataclass(frozen=True)
class Bank:
    """M clean latents.

    Attributes:
        latents: (M, *latent), float64.
        log_weights: Log p_m up to a constant, (M,), float64.
        embeddings: Of the decoded latents, by reward tower, (M, D).
    """

    latents: Tensor
    log_weights: Tensor
    embeddings: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.latents)

    def log_posterior(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Log weights of the members given noisy latents, (B, M), normalised."""
        z, z_m = z_t.double().flatten(1), self.latents.flatten(1)
        t = expand_time(t, z)
        alpha = 1 - t
        near = alpha * (z @ z_m.T) - alpha**2 / 2 * z_m.pow(2).sum(1)
        # Clean latents are members themselves: as t -> 0 the nearest takes all.
        return (self.log_weights + near / t.clamp(min=1e-4) ** 2).log_softmax(1)

    def value(self, z_t: Tensor, t: Tensor, rewards: Tensor, lam: float | None) -> Tensor:
        """The mean or soft value, (B,), differentiable in z_t; memory does not grow with B.

        Args:
            z_t: Noisy latents, (B, *latent).
            t: Their times, () or (B,).
            rewards: Of the members, (M,), or for each row, (B, M).
            lam: Lambda of the soft value, or None for the mean.
        """
        parts = [
            checkpoint(
                self._value, z_t[rows], t if t.ndim == 0 else t[rows], r, lam, use_reentrant=False
            )
            for rows, r in self._rows(rewards, len(z_t))
        ]
        return torch.cat(parts).to(z_t.dtype)

    def _value(self, z_t: Tensor, t: Tensor, rewards: Tensor, lam: float | None) -> Tensor:
        log_w = self.log_posterior(z_t, t)
        if lam is None:
            return (log_w.exp() * rewards).sum(1)
        return (log_w + lam * rewards).logsumexp(1) / lam

    @torch.no_grad()
    def certainty(
        self, z_t: Tensor, t: Tensor, rewards: Tensor, lam: float | None
    ) -> tuple[Tensor, Tensor]:
        """Effective members, and the squared move from half the members to all, (B,) each."""
        members, moves = [], []
        for rows, r in self._rows(rewards, len(z_t)):
            log_w = self.log_posterior(z_t[rows], t if t.ndim == 0 else t[rows])
            members.append(torch.exp(-(2 * log_w).logsumexp(1)))
            moves.append(_move(log_w, r, lam))
        return torch.cat(members), torch.cat(moves)

    def joined(self, tested: Tensor) -> "Bank":
        """This bank, of equally likely members, with further ones, (B, *latent); no embeddings."""
        weights = self.log_weights[:1].expand(len(tested))
        return Bank(
            torch.cat([self.latents, tested.to(self.latents)]),
            torch.cat([self.log_weights, weights]),
            {},
        )

    def mean(self, z_t: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """The posterior mean (B, D), float64, of what members have, (M, D) in float64."""
        return torch.cat(
            [
                self.log_posterior(z_t[rows], t if t.ndim == 0 else t[rows]).exp() @ e
                for rows, _ in self._rows(self.log_weights, len(z_t))
            ]
        )

    def draw(self, z_t: Tensor, t: Tensor, rng: Streams) -> Tensor:
        """One member per row from the posterior, (B, *latent)."""
        picked = []
        for rows, _ in self._rows(self.log_weights, len(z_t)):
            log_w = self.log_posterior(z_t[rows], t if t.ndim == 0 else t[rows])
            picked.append(pick(log_w.exp(), rng[rows]))
        return self.latents[torch.cat(picked)].to(z_t)

    def prior(self, rng: Streams) -> Tensor:
        """One member per stream from the prior, (B, *latent), float64."""
        p = self.log_weights.softmax(0)
        return self.latents[pick(p.expand(len(rng), -1), rng)]

    def _rows(self, rewards: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows whose weights fit, with the rewards of each."""
        size = max(1, AT_ONCE // len(self))
        for first in range(0, rows, size):
            here = slice(first, min(first + size, rows))
            yield here, rewards if rewards.ndim == 1 else rewards[here]


def _move(log_w: Tensor, rewards: Tensor, lam: float | None) -> Tensor:
    """sum_h w_h (V_h - V)^2 over the halves of even and odd members, (B,)."""
    r = rewards.expand_as(log_w) if rewards.ndim == 1 else rewards

    def value(w: Tensor, r: Tensor) -> Tensor:
        w = w.log_softmax(1)
        return (w.exp() * r).sum(1) if lam is None else (w + lam * r).logsumexp(1) / lam

    whole = value(log_w, r)
    return sum(
        (
            log_w[:, h::2].logsumexp(1).exp() * (value(log_w[:, h::2], r[:, h::2]) - whole) ** 2
            for h in (0, 1)
        ),
        torch.zeros_like(whole),
    )


def pick(p: Tensor, rng: Streams) -> Tensor:
    """One index per row with probabilities p (B, M), from that row's stream, (B,)."""
    edges = p.cumsum(1)
    u = rng.uniform(torch.float64).to(edges)[:, None] * edges[:, -1:]
    return torch.searchsorted(edges, u, right=True)[:, 0].clamp(max=p.shape[1] - 1)
