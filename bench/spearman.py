"""Rank correlation with intervals.

Of few numbers by a formula; over many items by a bootstrap that draws the same for everyone.

A resample counts how often each item was drawn, n in all.  Weighted mid-ranks, read off the
cumulated counts in the order of the numbers, give the rank correlation of every resample without
sorting it again.  As the counts depend on n and the seed alone, two scores of the same items are
resampled together, and their difference and ratio are paired.

Ends are percentiles; p-values take the resamples' standard deviation for the standard error.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy

from bench.stats import Interval, Paired

Array = npt.NDArray[np.float64]

RESAMPLES = 1000
SEED = 0  # the same data give the same interval
EIGHTY = 2.8016  # standard errors found 80 % of the time at 0.05: the quantiles 0.975 and 0.8
CONFIDENCE = 0.95
EXACT = 1e-12  # as near to 1 as a correlation of ranks in full agreement comes
ENOUGH_FOR_RANKS = 5


def srcc(items: Array) -> Interval:
    """Spearman's rank correlation of scores and ratings, (n, 2); NaN where either is constant."""
    found, drawn = _correlations(items)
    return Interval(found, *_ends(drawn), len(items))


def srcc_ratio(a: Array, b: Array) -> Interval:
    """The ratio of two scores' rank correlations with the same ratings, (n, 2) each."""
    (one, ones), (other, others) = _correlations(a), _correlations(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Interval(float(np.divide(one, other)), *_ends(ones / others), len(a))


def srcc_paired(a: Array, b: Array) -> Paired:
    """The difference of two scores' rank correlations with the same ratings, (n, 2) each."""
    (one, ones), (other, others) = _correlations(a), _correlations(b)
    gap, gaps = one - other, ones - others
    error = float(gaps.std(ddof=1))
    difference = Interval(gap, *_ends(gaps), len(a))
    if error == 0:
        return Paired(difference, float(gap == 0), 0.0)
    return Paired(difference, 2 * float(scipy.special.ndtr(-abs(gap) / error)), EIGHTY * error)


def rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> Interval:
    """Spearman's rank correlation.

    A normal interval on its inverse hyperbolic tangent, with variance (1 + rho^2 / 2) / (n - 3)
    (Bonett & Wright, 2000, Psychometrika 65:23-28).  The ends are NaN below n = 5 and where the
    ranks agree or disagree in full; all is NaN where x or y takes one value only.

    Args:
        x: Numbers, (n,).
        y: Numbers measured together with them, (n,).

    Raises:
        ValueError: if the shapes differ.
    """
    x, y = (np.asarray(z, dtype=np.float64) for z in (x, y))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two arrays of one shape (n,), got {x.shape} and {y.shape}")
    n = x.size
    if min(np.unique(x).size, np.unique(y).size) <= 1:
        return Interval(np.nan, np.nan, np.nan, n)
    rho = float(scipy.stats.spearmanr(x, y).statistic)
    if n < ENOUGH_FOR_RANKS or 1 - abs(rho) <= EXACT:
        return Interval(rho, np.nan, np.nan, n)
    half = scipy.special.ndtri((1 + CONFIDENCE) / 2) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    lo, hi = np.tanh([np.arctanh(rho) - half, np.arctanh(rho) + half]).tolist()
    return Interval(rho, lo, hi, n)


def _correlations(items: Array) -> tuple[float, Array]:
    """The rank correlation, and those of the resamples, (RESAMPLES,)."""
    items = np.asarray(items, dtype=np.float64)
    if items.ndim != 2 or items.shape[1] != 2:  # noqa: PLR2004
        raise ValueError(f"expected scores and ratings of shape (n, 2), got {items.shape}")
    every = _known(*(column.tobytes() for column in items.T))
    return float(every[0]), every[1:]


@lru_cache(maxsize=1024)
def _known(score: bytes, rating: bytes) -> Array:
    """The rank correlation of what was drawn each time, (1 + RESAMPLES,): a table asks often."""
    x, y = (_centred_ranks(numbers) for numbers in (score, rating))
    counts = _counts(len(x))
    with np.errstate(invalid="ignore"):  # a resample of equal numbers has none
        return (counts * x * y).sum(0) / np.sqrt((counts * x**2).sum(0) * (counts * y**2).sum(0))


@lru_cache(maxsize=4)
def _counts(n: int) -> Array:
    """How often each of n items is drawn: once in the first column, then in every resample."""
    drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return np.concatenate([np.ones((1, n)), drawn]).T.copy()


@lru_cache(maxsize=4)
def _centred_ranks(numbers: bytes) -> Array:
    """Mid-ranks of n numbers in resamples, less their mean, (n, 1 + RESAMPLES)."""
    values, place = np.unique(np.frombuffer(numbers), return_inverse=True)
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(values.size))
    equal = np.add.reduceat(_counts(place.size)[order], first, axis=0)
    return (equal.cumsum(0) - equal / 2 - place.size / 2)[place]


def _ends(drawn: Array) -> tuple[float, float]:
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    lo, hi = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(lo), float(hi)
