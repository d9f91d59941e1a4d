"""Two methods on the same clusters, many such comparisons, and what they could have found."""

from typing import NamedTuple

import numpy as np
import scipy

from bench.stats.means import ENDS, Interval, interval_of, standard_error, suited, t_quantile
from bench.stats.vectors import Array, Numbers, check_share, differences, pairs, present, vector


class Paired(NamedTuple):
    """A paired comparison of two methods.

    Attributes:
        difference: Mean of a - b, with its interval.
        p: Two-sided p-value of the paired t-test.
        detectable: Smallest true difference found 80 % of the time at alpha 0.05.
    """

    difference: Interval
    p: float
    detectable: float


def paired(a: Numbers, b: Numbers, confidence: float = 0.95, method: str | None = None) -> Paired:
    """Compare two methods on the same clusters.

    Args:
        a: One number per cluster, (n,).
        b: The other method's numbers on the same clusters, (n,).
        confidence: Coverage asked for, in (0, 1).
        method: As in `mean_interval`.

    Returns:
        The comparison.  Differences that are all equal, up to rounding, have p = 1 if they are
        0, and else p = 0.

    Raises:
        ValueError: if the shapes differ.
    """
    check_share("confidence", confidence)
    x = differences(*pairs(a, b))
    difference = interval_of(x, confidence, ENDS[method or suited(x.size)])
    if not np.isfinite(x).all():
        return Paired(difference, np.nan, np.nan)
    return Paired(difference, _t_test(x), minimum_detectable_difference(x))


def holm(p: Numbers) -> Array:
    """Adjust p-values for there being several (Holm, 1979, Scand. J. Statist. 6:65-70).

    Args:
        p: p-values, (m,).  NaN stays NaN and is not counted as a test.

    Returns:
        Adjusted p-values in the same order, (m,).

    Raises:
        ValueError: if some p is outside [0, 1].
    """
    values = vector("p", p)
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"expected p-values in [0, 1], got {values.tolist()}")
    tests = np.count_nonzero(~np.isnan(values))
    order = np.argsort(values)[:tests]  # NaN sorts last
    stepped = np.maximum.accumulate(values[order] * np.arange(tests, 0, -1))
    adjusted = np.full_like(values, np.nan)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def minimum_detectable_difference(x: Numbers, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided paired t-test would find with the given power.

    delta se, where a noncentral t with n - 1 degrees of freedom and noncentrality delta exceeds
    t_{1 - alpha/2} with probability `power` (Cohen, 1988, Statistical Power Analysis, ch. 2; a
    rejection with the wrong sign isn't counted).  For many clusters delta is 2.80.

    Args:
        x: Paired differences, one per cluster, (n,).
        power: Chance of finding it, in (alpha, 1).
        alpha: Level of the test, in (0, 1).

    Returns:
        The difference, in the units of x; NaN below two clusters.

    Raises:
        ValueError: if x is not one-dimensional, or power or alpha is not as above.
    """
    check_share("alpha", alpha)
    if not alpha < power < 1:
        raise ValueError(f"expected power in ({alpha}, 1), got {power}")
    known = present(vector("x", x))
    df = known.size - 1
    if df < 1:
        return float("nan")
    delta = scipy.special.nctdtrinc(df, 1 - power, t_quantile(1 - alpha / 2, df))
    return float(delta) * standard_error(known)


def _t_test(x: Array) -> float:
    """Two-sided p-value of the mean being 0."""
    if x.size <= 1:
        return float("nan")
    se = standard_error(x)
    if se == 0:
        return 0.0 if x.any() else 1.0
    return 2 * float(scipy.special.stdtr(x.size - 1, -abs(float(x.mean())) / se))
