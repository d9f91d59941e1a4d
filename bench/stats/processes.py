"""Times over a few processes: the unit is the process, the calls in it are repeats.

Call k in process p takes two methods, timed in turns, log times that differ by

    x_pk = log ratio + e_p + e_pk

where e_p is what the process has of its own (where its memory lies, which pages are cached, what
the machine did meanwhile) and every call in it shares.  More calls average e_pk away and never
e_p, so calls taken for independent make an interval too short; the means of processes are
independent, and a t interval on them holds for whatever the two parts are (Kalibera & Jones, 2013,
Rigorous benchmarking in reasonable time, ISMM, doi:10.1145/2464157.2464160).
"""

from collections.abc import Sequence

import numpy as np
import scipy

from bench.stats.means import Interval, interval_of, t_ends
from bench.stats.ratios import exponentiated
from bench.stats.vectors import (
    Array,
    Numbers,
    check_share,
    differences,
    pairs,
    positive,
    present,
    vector,
)


def process_ratio_interval(
    a: Sequence[Numbers], b: Sequence[Numbers], confidence: float = 0.95
) -> Interval:
    """The ratio of two methods' times, timed in turns in each of a few processes.

    Args:
        a: Seconds of the calls in each process, [(calls,), ...].
        b: Those of the other method, call by call.
        confidence: Coverage asked for, in (0, 1).

    Returns:
        The geometric mean ratio a / b, a t interval over processes, and their number.

    Raises:
        ValueError: if the numbers of processes or calls differ, or some time is not positive.
    """
    check_share("confidence", confidence)
    return exponentiated(interval_of(process_log_ratios(a, b), confidence, t_ends))


def process_seconds_interval(x: Sequence[Numbers], confidence: float = 0.95) -> Interval:
    """The time of a call in a typical process: the geometric mean of the processes' medians.

    Args:
        x: Seconds of the calls in each process, [(calls,), ...].
        confidence: Coverage asked for, in (0, 1).

    Returns:
        The mean, a t interval over the logarithms of the medians, and the number of processes.

    Raises:
        ValueError: if some time is not positive.
    """
    check_share("confidence", confidence)
    medians = [np.median(calls) for calls in map(present, map(_seconds, x)) if calls.size]
    positive(np.array(medians))
    return exponentiated(interval_of(np.log(medians), confidence, t_ends))


def _seconds(x: Numbers) -> Array:
    return vector("seconds of a process", x)


def process_log_ratios(a: Sequence[Numbers], b: Sequence[Numbers]) -> Array:
    """The mean log ratio of each process with a call that both methods have, (processes,).

    Raises:
        ValueError: as `process_ratio_interval`.
    """
    if len(a) != len(b):
        raise ValueError(f"expected as many processes of both, got {len(a)} and {len(b)}")
    found = []
    for one, other in zip(a, b, strict=True):
        x, y = pairs(one, other)
        positive(x, y)
        if x.size:
            found.append(float(differences(np.log(x), np.log(y)).mean()))
    return np.array(found, dtype=np.float64)


def rms_interval(x: Numbers, confidence: float = 0.95) -> Interval:
    """The spread about 0 of numbers whose true mean is 0: log ratios of a method to itself.

    The sum of n squares over their variance is chi-squared with n degrees of freedom, none of
    which goes to the mean, for normal numbers.

    Args:
        x: One number per process, (n,).
        confidence: Coverage asked for, in (0, 1).

    Returns:
        The root mean square (in `mean`), and the interval of the standard deviation.

    Raises:
        ValueError: if x is not one-dimensional.
    """
    check_share("confidence", confidence)
    known = present(vector("x", x))
    n = known.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, n)
    total = float(known @ known)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    lo, hi = np.sqrt(total / scipy.special.chdtri(n, tails)).tolist()
    return Interval(float(np.sqrt(total / n)), lo, hi, n)
