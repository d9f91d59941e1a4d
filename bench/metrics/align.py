"""How far generated samples are from a target, and from each other: one number per prompt.

With x of the samples, y of the target, and all pairs of different members,

    energy      2 E |x - y| - E |x - x'| - E |y - y'|        Szekely & Rizzo, 2013, JSPI 143:1249
    mmd         E k(x, x') + E k(y, y') - 2 E k(x, y)        Gretton et al., 2012, JMLR 13:723
    diversity   E |x - x'|^2 / 2: 1 - cosine for vectors of unit length

Both distances are estimated without bias: 0 on average for samples of the target itself, below 0
half of the time.
"""

import torch
from torch import Tensor


def energy(x: Tensor, y: Tensor) -> float:
    """Energy distance of samples (S, D) and draws (Y, D), squared in Szekely's sense.

    Raises:
        ValueError: if either has fewer than two rows.
    """
    _check(x, y)
    return float(
        2 * torch.cdist(x, y).mean() - _pairs(torch.cdist(x, x)) - _pairs(torch.cdist(y, y))
    )


def mmd(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel as wide as the target's median pair.

    Raises:
        ValueError: if either has fewer than two rows.
    """
    _check(x, y)
    between = torch.cdist(y, y)
    off = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    width = between[off].median().clamp(min=torch.finfo(y.dtype).tiny)

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-(distance**2) / (2 * width**2))

    within = _pairs(kernel(torch.cdist(x, x))) + _pairs(kernel(between))
    return float(within - 2 * kernel(torch.cdist(x, y)).mean())


def diversity(x: Tensor) -> float:
    """Half the mean squared distance of different samples (S, D); NaN for one."""
    return float(_pairs(torch.cdist(x, x) ** 2) / 2) if len(x) > 1 else float("nan")


def _pairs(square: Tensor) -> Tensor:
    """The mean over pairs of different members of (n, n)."""
    n = len(square)
    return (square.sum() - square.diagonal().sum()) / (n * (n - 1))


def _check(x: Tensor, y: Tensor) -> None:
    if min(len(x), len(y)) < 2:  # noqa: PLR2004 - a distance within needs a pair
        raise ValueError(f"expected at least 2 samples and 2 draws, got {len(x)} and {len(y)}")
