"""Ratios of paired numbers: of their means, and the geometric mean of each."""

import numpy as np

from bench.stats.means import Interval, interval_of, t_ends
from bench.stats.vectors import Numbers, check_share, differences, pairs, positive


def ratio_interval(a: Numbers, b: Numbers, confidence: float = 0.95) -> Interval:
    """The ratio of two means, mean(a) / mean(b), over paired clusters.

    By linearisation: the ratio's error is the mean of (a - ratio b) / mean(b), hence a t interval
    with the standard error of that (Cochran, 1977, Sampling Techniques, section 6.4).  It holds
    where mean(b) lies many standard errors from 0, and is NaN where mean(b) is 0.

    Args:
        a: One number per cluster, (n,).
        b: The same for the denominator, (n,).
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if the shapes differ.
    """
    check_share("confidence", confidence)
    a, b = pairs(a, b)
    n = a.size
    if n == 0 or b.mean() == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    with np.errstate(invalid="ignore"):  # inf - inf
        ratio = float(a.mean() / b.mean())
        residual = (a - ratio * b) / b.mean()
    error = interval_of(residual, confidence, t_ends)
    return Interval(ratio, ratio + error.lo, ratio + error.hi, n)


def log_ratio_interval(a: Numbers, b: Numbers, confidence: float = 0.95) -> Interval:
    """The geometric mean of paired ratios a / b, such as a speedup from paired times.

    A t interval on log a - log b, exponentiated.  Calls in one process share whatever is
    particular to it: over several processes, `process_ratio_interval`.

    Args:
        a: Positive numbers, (n,).
        b: Positive numbers measured together with them, (n,).
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if the shapes differ or some number is not positive.
    """
    check_share("confidence", confidence)
    a, b = pairs(a, b)
    positive(a, b)
    return exponentiated(interval_of(differences(np.log(a), np.log(b)), confidence, t_ends))


def exponentiated(log: Interval) -> Interval:
    """The interval of what a logarithm was taken of."""
    mean, lo, hi = np.exp(log[:3]).tolist()
    return Interval(mean, lo, hi, log.n)
