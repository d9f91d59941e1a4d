"""Intervals, paired comparisons and minimum detectable differences.

The unit is the cluster, here the prompt: samples that share one are not independent, so they are
averaged first (`cluster_means`) and every function below takes one number per cluster
(Miller, 2024, arXiv:2411.00640).  With mean m, sample deviation s and se = s / sqrt(n),

    n < 50         m -+ t_{n-1} se                                                   Student
    n >= 50        BCa bootstrap                               (Efron, 1987, JASA 82:171-185)
    two methods    the same on their differences, cluster by cluster

and a difference is clear when its interval excludes 0 and its p, Holm-adjusted within its table,
is small; two intervals side by side say nothing.

Missing numbers (NaN or None) are left out and the count says how many remain.  What the data
cannot give, such as the interval of a single number, is NaN; a wrong call raises ValueError.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # loads scipy.stats, a slow import, at its first use and not here

Array = npt.NDArray[np.float64]
Numbers = npt.ArrayLike | Sequence[float | None]

ENOUGH_FOR_BCA = 50  # bootstrap intervals cover too little for few: 90 % for 95 % at n = 10
RESAMPLES = 9999
RESAMPLES_AT_ONCE = 1000  # bounds the bootstrap's memory
SEED = 0  # the same data give the same interval
ROUNDING: Final = 16 * float(np.finfo(np.float64).eps)  # relative; a spread below it is none


class Interval(NamedTuple):
    """An estimate, the ends of its confidence interval, and the number of clusters behind it."""

    mean: float
    lo: float
    hi: float
    n: int


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


def mean_interval(x: Numbers, confidence: float = 0.95, method: str | None = None) -> Interval:
    """The mean over clusters.

    Args:
        x: One number per cluster, (n,).  An infinite one leaves the ends NaN.
        confidence: Coverage asked for, in (0, 1).
        method: "t", "bca", or None: "t" below 50 clusters and "bca" from there on.

    Raises:
        ValueError: if x is not one-dimensional, or confidence or method is not as above.
    """
    _check_share("confidence", confidence)
    if method not in {None, *ENDS}:
        raise ValueError(f"expected method one of {sorted(ENDS)} or None, got {method!r}")
    present = _present(_vector("x", x))
    return _mean(present, confidence, ENDS[method or _suited(present.size)])


def share_interval(x: Numbers, confidence: float = 0.95) -> Interval:
    """A share of right answers, with Wilson's interval (1927, JASA 22:209-212).

    Args:
        x: 1 where right, 0 where wrong, one per item, (n,); a tie may be 1/2.
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if some number is outside [0, 1].
    """
    _check_share("confidence", confidence)
    present = _present(_vector("x", x))
    n = present.size
    if ((present < 0) | (present > 1)).any():
        raise ValueError(f"expected numbers in [0, 1], got {present.min()} to {present.max()}")
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    p, z2 = float(present.mean()), float(scipy.special.ndtri((1 + confidence) / 2)) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = float(np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))) / (1 + z2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)


def cluster_means(x: Numbers, clusters: Sequence[Hashable] | npt.NDArray[np.generic]) -> Array:
    """The mean of what is present in each cluster, NaN where nothing is.

    Args:
        x: Numbers, (n,).
        clusters: The label of each number's cluster, n of them.

    Returns:
        One mean per label, in order of first appearance, (clusters,).

    Raises:
        ValueError: if there is not one label per number.
    """
    numbers = _vector("x", x)
    if len(clusters) != numbers.size:
        raise ValueError(f"expected {numbers.size} cluster labels, got {len(clusters)}")
    position = {label: k for k, label in enumerate(dict.fromkeys(clusters))}
    cluster = np.array([position[label] for label in clusters], dtype=np.intp)
    here = ~np.isnan(numbers)
    total = np.bincount(cluster[here], weights=numbers[here], minlength=len(position))
    with np.errstate(invalid="ignore"):
        return total / np.bincount(cluster[here], minlength=len(position))


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
    _check_share("confidence", confidence)
    x = _differences(*_pairs(a, b))
    difference = _mean(x, confidence, ENDS[method or _suited(x.size)])
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
    values = _vector("p", p)
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
    _check_share("alpha", alpha)
    if not alpha < power < 1:
        raise ValueError(f"expected power in ({alpha}, 1), got {power}")
    present = _present(_vector("x", x))
    df = present.size - 1
    if df < 1:
        return float("nan")
    delta = scipy.special.nctdtrinc(df, 1 - power, _t_quantile(1 - alpha / 2, df))
    return float(delta) * _standard_error(present)


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
    _check_share("confidence", confidence)
    a, b = _pairs(a, b)
    n = a.size
    if n == 0 or b.mean() == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    with np.errstate(invalid="ignore"):  # inf - inf
        ratio = float(a.mean() / b.mean())
        residual = (a - ratio * b) / b.mean()
    error = _mean(residual, confidence, _t_ends)
    return Interval(ratio, ratio + error.lo, ratio + error.hi, n)


def log_ratio_interval(a: Numbers, b: Numbers, confidence: float = 0.95) -> Interval:
    """The geometric mean of paired ratios a / b, such as a speedup from paired times.

    A t interval on log a - log b, exponentiated.

    Args:
        a: Positive numbers, (n,).
        b: Positive numbers measured together with them, (n,).
        confidence: Coverage asked for, in (0, 1).

    Raises:
        ValueError: if the shapes differ or some number is not positive.
    """
    _check_share("confidence", confidence)
    a, b = _pairs(a, b)
    smallest = min(a.min(initial=np.inf), b.min(initial=np.inf))
    if smallest <= 0:
        raise ValueError(f"expected positive numbers, got {smallest}")
    log = _mean(_differences(np.log(a), np.log(b)), confidence, _t_ends)
    mean, lo, hi = np.exp(log[:3]).tolist()
    return Interval(mean, lo, hi, log.n)


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
    _check_share("confidence", confidence)
    ordered = np.sort(_present(_vector("x", x)))
    n = ordered.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    median = float(np.median(ordered))
    if n == 1:
        return Interval(median, np.nan, np.nan, n)
    below = scipy.special.bdtr(np.arange(n), n, 0.5)  # P(Binomial(n, 1/2) < k) for k = 1 ... n
    k = max(1, int(np.count_nonzero(below <= (1 - confidence) / 2)))
    return Interval(median, float(ordered[k - 1]), float(ordered[n - k]), n)


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
    _check_share("confidence", confidence)
    x, y = _pairs(x, y)
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
    half = _t_quantile((1 + confidence) / 2, df) * se
    return Interval(slope, slope - half, slope + half, n)


def _suited(n: int) -> str:
    return "t" if n < ENOUGH_FOR_BCA else "bca"


def _mean(
    x: Array, confidence: float, ends: Callable[[Array, float], tuple[float, float]]
) -> Interval:
    n = x.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    with np.errstate(invalid="ignore"):  # inf - inf
        mean = float(x.mean())
    if n == 1 or not np.isfinite(x).all():
        return Interval(mean, np.nan, np.nan, n)
    if _standard_error(x) == 0:
        return Interval(mean, mean, mean, n)
    return Interval(mean, *ends(x, confidence), n)


def _t_ends(x: Array, confidence: float) -> tuple[float, float]:
    half = _t_quantile((1 + confidence) / 2, x.size - 1) * _standard_error(x)
    return float(x.mean()) - half, float(x.mean()) + half


def _bca_ends(x: Array, confidence: float) -> tuple[float, float]:
    ends = scipy.stats.bootstrap(
        (x,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(ends.low), float(ends.high)


ENDS: dict[str, Callable[[Array, float], tuple[float, float]]] = {"t": _t_ends, "bca": _bca_ends}


def _t_test(x: Array) -> float:
    """Two-sided p-value of the mean being 0."""
    if x.size <= 1:
        return float("nan")
    se = _standard_error(x)
    if se == 0:
        return 0.0 if x.any() else 1.0
    return 2 * float(scipy.special.stdtr(x.size - 1, -abs(float(x.mean())) / se))


def _t_quantile(p: float, df: int) -> float:
    return float(scipy.special.stdtrit(df, p))


def _standard_error(x: Array) -> float:
    """Standard error of the mean; exactly 0 where x is constant up to rounding."""
    if _is_constant(x, scale=float(np.abs(x).max())):
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(x.std(ddof=1) / np.sqrt(x.size))


def _is_constant(x: Array, scale: float) -> bool:
    return bool(np.isfinite(x).all() and np.ptp(x) <= ROUNDING * scale)


def _differences(a: Array, b: Array) -> Array:
    """The differences a - b; one shared number, which may be 0, where they vary by rounding only.

    Rounding is relative to a and b, not to their difference: 0.1 + 0.2 equals 0.3.
    """
    with np.errstate(invalid="ignore"):  # inf - inf
        x = a - b
    scale = float(np.abs([a, b]).max(initial=0.0))
    if x.size == 0 or not _is_constant(x, scale):
        return x
    mean = float(x.mean())
    return np.full_like(x, mean if abs(mean) > ROUNDING * scale else 0.0)


def _pairs(a: Numbers, b: Numbers) -> tuple[Array, Array]:
    """Both as vectors, without the pairs that miss a member."""
    a, b = _vector("the first", a), _vector("the second", b)
    if a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape, got {a.shape} and {b.shape}")
    complete = ~(np.isnan(a) | np.isnan(b))
    return a[complete], b[complete]


def _present(x: Array) -> Array:
    return x[~np.isnan(x)]


def _vector(name: str, x: Numbers) -> Array:
    vector = np.asarray(x, dtype=np.float64)  # None becomes NaN
    if vector.ndim != 1:
        raise ValueError(f"expected {name} of shape (n,), got {vector.shape}")
    return vector


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"expected {name} in (0, 1), got {value}")
