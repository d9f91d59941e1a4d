"""What is given, as vectors: missing numbers left out, rounding kept from looking like spread."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.ArrayLike | Sequence[float | None]

ROUNDING: Final = 16 * float(np.finfo(np.float64).eps)  # relative; a spread below it is none


def vector(name: str, x: Numbers) -> Array:
    """As numbers, (n,).

    Raises:
        ValueError: if it is not one-dimensional.
    """
    found = np.asarray(x, dtype=np.float64)  # None becomes NaN
    if found.ndim != 1:
        raise ValueError(f"expected {name} of shape (n,), got {found.shape}")
    return found


def present(x: Array) -> Array:
    """Those that are not missing."""
    return x[~np.isnan(x)]


def pairs(a: Numbers, b: Numbers) -> tuple[Array, Array]:
    """Both as vectors, without the pairs that miss a member.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b = vector("the first", a), vector("the second", b)
    if a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape, got {a.shape} and {b.shape}")
    complete = ~(np.isnan(a) | np.isnan(b))
    return a[complete], b[complete]


def differences(a: Array, b: Array) -> Array:
    """The differences a - b; one shared number, which may be 0, where they vary by rounding only.

    Rounding is relative to a and b, not to their difference: 0.1 + 0.2 equals 0.3.
    """
    with np.errstate(invalid="ignore"):  # inf - inf
        x = a - b
    scale = float(np.abs([a, b]).max(initial=0.0))
    if x.size == 0 or not is_constant(x, scale):
        return x
    mean = float(x.mean())
    return np.full_like(x, mean if abs(mean) > ROUNDING * scale else 0.0)


def is_constant(x: Array, scale: float) -> bool:
    """Whether finite numbers differ by no more than the rounding of numbers of that scale."""
    return bool(np.isfinite(x).all() and np.ptp(x) <= ROUNDING * scale)


def positive(*given: Array) -> None:
    """Refuse numbers that have no logarithm.

    Raises:
        ValueError: if some number is not positive.
    """
    smallest = min(x.min(initial=np.inf) for x in given)
    if smallest <= 0:
        raise ValueError(f"expected positive numbers, got {smallest}")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: if it is not in (0, 1).
    """
    if not 0 < value < 1:
        raise ValueError(f"expected {name} in (0, 1), got {value}")
