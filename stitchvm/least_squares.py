"""Least squares whose rows arrive in portions, as accurate as one QR of all of them (Eq. 62)."""

import torch
from torch import Tensor


class LeastSquares:
    """Least squares of several targets on the same features, rows arriving in any portions.

    Of [1 X] = Q R it keeps R and Q^T Y, in float64: as accurate as one QR of all rows at once.

    Args:
        features: p, columns of X.
        targets: q, columns of Y.
        device: Where to compute.
    """

    def __init__(self, features: int, targets: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._r = torch.zeros(0, 1 + features, dtype=torch.float64, device=device)
        self._qty = torch.zeros(0, targets, dtype=torch.float64, device=device)
        self._beyond = self._r.new_zeros(targets)  # |Y|^2 outside the span of Q

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take rows of features (n, p) and targets (n, q)."""
        x, y = x.to(self._r), y.to(self._r)
        ones = x.new_ones(len(x), 1)
        stacked = torch.cat([self._r, torch.cat([ones, x], 1)])
        known = torch.cat([self._qty, y])
        q, self._r = torch.linalg.qr(stacked)
        self._qty = q.T @ known
        self._beyond += (known.square().sum(0) - self._qty.square().sum(0)).clamp(min=0)
        self.rows += len(x)

    def solve(self, ridge: float = 0.0) -> tuple[Tensor, Tensor, int]:
        """Weight (q, p), bias (q,) and the rank of the centred features.

        Where they lack full rank, the weight is of least norm.

        Args:
            ridge: Penalty on the squared weights, in units of the features' mean squared singular
                value; 0 for none.

        Raises:
            ValueError: unless there are more rows than features.
        """
        columns = self._r.shape[1] - 1
        if self.rows <= columns:
            raise ValueError(
                f"expected more rows (tokens) than the {columns} features, got {self.rows}"
            )
        u, s, vt = torch.linalg.svd(self._r[1:, 1:])  # the first row holds the means
        kept = s > s[0] * self.rows * torch.finfo(s.dtype).eps
        inverse = torch.where(kept, s / (s.square() + ridge * s.square().mean()), 0)
        weight = (vt.T @ (inverse[:, None] * (u.T @ self._qty[1:]))).T
        x_mean, y_mean = self._r[0, 1:] / self._r[0, 0], self._qty[0] / self._r[0, 0]
        return weight, y_mean - weight @ x_mean, int(kept.sum())

    def errors(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error and variance of each target, (q,) each."""
        wanted = torch.cat([bias[None], weight.T])
        inside = (self._qty - self._r @ wanted).square().sum(0)
        spread = self._qty[1:].square().sum(0) + self._beyond
        return (inside + self._beyond) / self.rows, spread / self.rows
