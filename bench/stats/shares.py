"""Shares of right answers, with Wilson's interval (1927, JASA 22:209-212)."""

import numpy as np
import scipy

from bench.stats.means import Interval
from bench.stats.vectors import Numbers, check_share, present, vector


def share_interval(x: Numbers, confidence: float = 0.95) -> Interval:
    """A share of right answers.

    Args:
        x: 1 where right, 0 where wrong, one per item, (n,); a tie may be 1/2.
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if some number is outside [0, 1].
    """
    check_share("confidence", confidence)
    known = present(vector("x", x))
    n = known.size
    if ((known < 0) | (known > 1)).any():
        raise ValueError(f"expected numbers in [0, 1], got {known.min()} to {known.max()}")
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    p, z2 = float(known.mean()), float(scipy.special.ndtri((1 + confidence) / 2)) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = float(np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))) / (1 + z2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)
