"""The least-squares slope, with an interval by Student's t."""

import numpy as np

from bench.stats.means import Interval, t_quantile
from bench.stats.vectors import Numbers, check_share, pairs


def slope_interval(x: Numbers, y: Numbers, confidence: float = 0.95) -> Interval:
    """The least-squares slope of y on x, with intercept, such as of log RMSE on log N.

    A t interval with n - 2 degrees of freedom; the ends are NaN at n = 2, and all is NaN where x
    takes one value only.

    Args:
        x: Abscissae, (n,).
        y: Ordinates, (n,).
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if the shapes differ.
    """
    check_share("confidence", confidence)
    x, y = pairs(x, y)
    n = x.size
    if np.unique(x).size <= 1 or not np.isfinite([x, y]).all():
        return Interval(np.nan, np.nan, np.nan, n)
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    df = n - 2
    if df < 1:
        return Interval(slope, np.nan, np.nan, n)
    residual = dy - slope * dx
    se = float(np.sqrt(residual @ residual / df / (dx @ dx)))
    half = t_quantile((1 + confidence) / 2, df) * se
    return Interval(slope, slope - half, slope + half, n)
