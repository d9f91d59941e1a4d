"""The interquartile mean: the mean of the middle half, which a few extreme clusters cannot move.

Agarwal et al., 2021, Deep reinforcement learning at the edge of the statistical precipice,
arXiv:2108.13264, section 4.3: the mean after a quarter of the numbers, rounded down, is cut off
at each end.  With g = floor(n / 4) cut off, h = n - 2 g left, and s_w the sample deviation of all
n once each cut one is replaced by the nearest kept one,

    IQM -+ t_{h-1} s_w sqrt((n - 1) / (h (h - 1)))

(Tukey & McLaughlin, 1963, Sankhya A 25:331-352; the standard error as in Yuen, 1974, Biometrika
61:165-170).  It is a closed form where that paper bootstraps.
"""

import numpy as np

from bench.stats.means import Interval, t_quantile
from bench.stats.vectors import Numbers, check_share, is_constant, present, vector

ENOUGH = 30  # clusters: of skewed numbers, ten are covered at 91 to 93 % for 95 %, 30 at 94 %


def iqm_interval(x: Numbers, confidence: float = 0.95) -> Interval:
    """The interquartile mean over clusters (in `mean`).

    Args:
        x: One number per cluster, (n,); infinite ones may be cut off like any other.
        confidence: Coverage asked for, in (0, 1).

    Returns:
        Its interval is of the interquartile mean of the distribution, which is not the mean
        where that is skewed.  The ends are NaN below 30 clusters.

    Raises:
        ValueError: if x is not one-dimensional.
    """
    check_share("confidence", confidence)
    ordered = np.sort(present(vector("x", x)))
    n = ordered.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    cut = n // 4
    middle = ordered[cut : n - cut]
    with np.errstate(invalid="ignore"):  # inf - inf
        mean = float(middle.mean())
    if n < ENOUGH or not np.isfinite(middle).all():
        return Interval(mean, np.nan, np.nan, n)
    if is_constant(middle, scale=float(np.abs(middle).max())):
        return Interval(mean, mean, mean, n)
    h = middle.size
    deviation = float(np.clip(ordered, middle[0], middle[-1]).std(ddof=1))
    half = t_quantile((1 + confidence) / 2, h - 1) * deviation * np.sqrt((n - 1) / (h * (h - 1)))
    return Interval(mean, mean - half, mean + half, n)
