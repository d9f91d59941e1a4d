r"""Rewards on one linear network e = E x, with the moments of r under a Gaussian e in closed form.

    linear      r = w_c . e
    quadratic   r = sum_m a_cm e_m^2
    sigmoid     r = 1 / (1 + exp(-(GAIN w_c . e + b_c)))

For e ~ N(m, S) each gives E[r] and log E[exp(lambda r)]: linear and quadratic in closed form, the
sigmoid by quadrature of its one-dimensional score.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.worlds.gaussian.prompts import PromptBook
from stitchvm.backbone import Prompts
from stitchvm.reward import Features, Hidden, Reward

GAIN = 2.0  # steep enough that the sigmoid saturates on a third of the data
# The trapezoid rule on a Gaussian converges like exp(-2 pi a / h), a = pi / std the distance of
# the sigmoid's pole: spacing 0.05 keeps the value to 1e-8 up to a score of
# standard deviation 20 (soft ones up to lambda = 5).
QUADRATURE_SPACING, QUADRATURE_REACH = 0.05, 9.0


class Network(NamedTuple):
    """Weights that all rewards share.

    Attributes:
        patch: 2 x 2 patch embedding, (channels, 3, 2, 2).
        blocks: Channel mixings, each (channels, channels).
        pool: Tokens to embedding, (q, tokens, channels).
        book: The prompts.
    """

    patch: Tensor
    blocks: tuple[Tensor, ...]
    pool: Tensor
    book: PromptBook


class GaussianReward(Reward):
    """Patch embedding, two channel-mixing blocks, a linear pooling to an embedding (B, q).

    Args:
        network: Its weights.
    """

    depth = 2
    patch: Tensor
    pool: Tensor
    mixings: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.book = network.book
        self.register_buffer("patch", network.patch)
        self.register_buffer("pool", network.pool)
        self.register_buffer("mixings", torch.stack(network.blocks))

    def head(self, x: Tensor, j: int) -> Hidden:
        """What enters block j: the patch embedding through the first j - 1 mixings.

        Raises:
            ValueError: if j is not in 1..2.
        """
        return self.advance(Hidden(functional.conv2d(x, self.patch, stride=2)), 1, j)

    def advance(self, h: Hidden, j: int, k: int) -> Hidden:
        """What enters block k, of what enters block j.

        Raises:
            ValueError: unless 1 <= j <= k <= 2.
        """
        if not 1 <= j <= k <= self.depth:
            raise ValueError(f"expected j in {j}..{self.depth}, got {k}")
        out = h.map
        for block in self.mixings[j - 1 : k - 1]:
            out = torch.einsum("bchw,dc->bdhw", out, block)
        return Hidden(out)

    def tail(self, h: Hidden, j: int) -> Features:
        """Mixings j to the end, then the pooling."""
        tokens = h.map.flatten(2).transpose(1, 2)
        for block in self.mixings[j - 1 :]:
            tokens = tokens @ block.T
        return Features(tokens, torch.einsum("blc,qlc->bq", tokens, self.pool))

    def tail_weights(self, j: int) -> dict[str, Tensor]:
        """The pooling, and all mixings, which are one tensor."""
        del j
        return {"pool": self.pool, "mixings": self.mixings}

    def head_weights(self) -> dict[str, Tensor]:
        """The patch embedding."""
        return {"patch": self.patch}

    @abstractmethod
    def mean(self, m: Tensor, s: Tensor, c: Prompts) -> Tensor:
        """E[r] for e ~ N(m, S): m (B, K, q), S (B, K, q, q); (B, K)."""

    @abstractmethod
    def log_mgf(self, m: Tensor, s: Tensor, c: Prompts, lam: float) -> Tensor:
        """Log E[exp(lambda r)] for e ~ N(m, S), (B, K)."""

    @abstractmethod
    def forms(self, c: Prompts) -> tuple[Tensor, Tensor]:
        """A (B, q, q) and w (B, q) with r = e^T A e + w . e.

        Raises:
            ValueError: if the reward is no quadratic form.
        """


class LinearReward(GaussianReward):
    """r = w_c . e; w has one row per prompt, (P, q)."""

    w: Tensor

    def __init__(self, network: Network, w: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("w", w)

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of embeddings (B, q), (B,)."""
        return (e * self.w[self.book.own(c)]).sum(-1)

    def mean(self, m: Tensor, s: Tensor, c: Prompts) -> Tensor:
        """W . m."""
        return torch.einsum("bkq,bq->bk", m, self.w[self.book.own(c)])

    def log_mgf(self, m: Tensor, s: Tensor, c: Prompts, lam: float) -> Tensor:
        """Lambda w . m + lambda^2 / 2 w^T S w."""
        w = self.w[self.book.own(c)]
        spread = torch.einsum("bq,bkqp,bp->bk", w, s, w)
        return lam * self.mean(m, s, c) + lam**2 / 2 * spread

    def forms(self, c: Prompts) -> tuple[Tensor, Tensor]:
        """A = 0 and w."""
        w = self.w[self.book.own(c)]
        return w.new_zeros(*w.shape, w.shape[-1]), w


class QuadraticReward(GaussianReward):
    """r = sum_m a_cm e_m^2; a has one row per prompt, (P, q)."""

    a: Tensor

    def __init__(self, network: Network, a: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("a", a)

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of embeddings (B, q), (B,)."""
        return (e.square() * self.a[self.book.own(c)]).sum(-1)

    def mean(self, m: Tensor, s: Tensor, c: Prompts) -> Tensor:
        """m^T A m + tr(A S)."""
        second = m.square() + s.diagonal(dim1=-2, dim2=-1)
        return torch.einsum("bkq,bq->bk", second, self.a[self.book.own(c)])

    def log_mgf(self, m: Tensor, s: Tensor, c: Prompts, lam: float) -> Tensor:
        """Lambda m^T A (I - 2 lambda S A)^-1 m - log det(I - 2 lambda S A) / 2."""
        a = self.a[self.book.own(c)][:, None]
        eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
        inner = eye - 2 * lam * s * a[..., None, :]
        solved = torch.linalg.solve(inner, m[..., None])[..., 0]
        return lam * (a * m * solved).sum(-1) - torch.linalg.slogdet(inner).logabsdet / 2

    def forms(self, c: Prompts) -> tuple[Tensor, Tensor]:
        """A = diag(a) and w = 0."""
        a = self.a[self.book.own(c)]
        return torch.diag_embed(a), torch.zeros_like(a)


class SigmoidReward(GaussianReward):
    """r = sigmoid(GAIN w_c . e + b_c), bounded by 0 and 1; w (P, q), b (P,)."""

    w: Tensor
    b: Tensor

    def __init__(self, network: Network, w: Tensor, b: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("w", w)
        self.register_buffer("b", b)

    def score(self, e: Tensor, c: Prompts) -> Tensor:
        """The reward of embeddings (B, q), (B,)."""
        p = self.book.own(c)
        return torch.sigmoid(GAIN * (e * self.w[p]).sum(-1) + self.b[p])

    def mean(self, m: Tensor, s: Tensor, c: Prompts) -> Tensor:
        """By quadrature."""
        r, log_weights = self._quadrature(m, s, c)
        return (r * log_weights.exp()).sum(-1)

    def log_mgf(self, m: Tensor, s: Tensor, c: Prompts, lam: float) -> Tensor:
        """By quadrature."""
        r, log_weights = self._quadrature(m, s, c)
        return (lam * r + log_weights).logsumexp(-1)

    def forms(self, c: Prompts) -> tuple[Tensor, Tensor]:
        """Not a quadratic form."""
        raise ValueError("expected a linear or quadratic reward, got the sigmoid")

    def _quadrature(self, m: Tensor, s: Tensor, c: Prompts) -> tuple[Tensor, Tensor]:
        """The reward at nodes (B, K, nodes), and log weights (nodes,)."""
        p = self.book.own(c)
        w = GAIN * self.w[p]
        mean = torch.einsum("bkq,bq->bk", m, w) + self.b[p][:, None]
        std = torch.einsum("bq,bkqp,bp->bk", w, s, w).clamp(min=0).sqrt()
        half = math.ceil(QUADRATURE_REACH / QUADRATURE_SPACING)
        x = torch.arange(-half, half + 1, dtype=m.dtype, device=m.device) * QUADRATURE_SPACING
        return torch.sigmoid(mean[..., None] + std[..., None] * x), (-x.square() / 2).log_softmax(
            0
        )
