"""The median between two order statistics, whatever the distribution."""

import numpy as np
import scipy

from bench.stats.means import Interval
from bench.stats.vectors import Numbers, check_share, present, vector


def median_interval(x: Numbers, confidence: float = 0.95) -> Interval:
    """The median (in `mean`) between two order statistics, whatever the distribution.

    The k-th smallest and k-th largest of n numbers miss the median with probability
    2 P(Binomial(n, 1/2) < k); k is the largest that keeps this within 1 - confidence
    (David & Nagaraja, 2003, Order Statistics, section 7.1).  Where none does (n < 6 at 95 %)
    the ends are the smallest and the largest number and cover less than asked for.

    Args:
        x: One number per cluster or repeat, (n,); infinite ones are ranked like any other.
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if x is not one-dimensional.
    """
    check_share("confidence", confidence)
    ordered = np.sort(present(vector("x", x)))
    n = ordered.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    median = float(np.median(ordered))
    if n == 1:
        return Interval(median, np.nan, np.nan, n)
    below = scipy.special.bdtr(np.arange(n), n, 0.5)  # P(Binomial(n, 1/2) < k) for k = 1 ... n
    k = max(1, int(np.count_nonzero(below <= (1 - confidence) / 2)))
    return Interval(median, float(ordered[k - 1]), float(ordered[n - k]), n)
