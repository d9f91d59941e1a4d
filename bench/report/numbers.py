"""Numbers as a reader sees them: digits as the interval supports, a dash where missing.

Display only: files for machines keep every digit.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

Row = Mapping[Any, Any] | pd.Series

MISSING = "\u2013"  # never 0, never empty
SECOND_DIGIT = 3.55  # a half-width below it shows two digits, else one (Particle Data Group)
SMALLEST_PLAIN, LARGEST_PLAIN = 1e-4, 1e5  # numbers outside are written as 1.2e-17
CALLS = ("velocity", "trunk", "blocks", "decode", "reward", "tail")


def plain(x: float | None, digits: int = 3) -> str:
    """A number with some significant digits: 0.0123, 45.6, 1.2e-17, or a dash where missing."""
    if x is None or math.isnan(x):
        return MISSING
    if x == 0 or math.isinf(x):
        return f"{x:g}"
    rounded = float(f"{x:.{digits - 1}e}")
    if not SMALLEST_PLAIN <= abs(rounded) < LARGEST_PLAIN:
        return f"{x:.{min(digits, 2) - 1}e}"
    return _fixed(rounded, digits - 1 - math.floor(math.log10(abs(rounded))))


def fixed(x: float | None, decimals: int = 2) -> str:
    """A share or correlation: always that many decimals."""
    return MISSING if x is None or math.isnan(x) else _fixed(x, decimals)


def interval(mean: float, lo: float, hi: float, most: int = 6) -> str:
    """`0.123 [0.110, 0.136]`: digits follow the half-width; no brackets where there is no width.

    Args:
        mean: The estimate.
        lo: Lower end.
        hi: Upper end.
        most: Decimals at most.
    """
    if math.isnan(mean) or not math.isfinite(hi - lo) or hi <= lo:
        return plain(mean)
    decimals = min(most, _decimals((hi - lo) / 2))
    if max(abs(mean), abs(lo), abs(hi)) < SMALLEST_PLAIN:
        shown = [f"{x:.1e}" for x in (mean, lo, hi)]
    else:
        shown = [_fixed(x, decimals) for x in (mean, lo, hi)]
    return "{} [{}, {}]".format(*shown)


def margin(mean: float, lo: float, hi: float) -> str:
    """`0.123±0.013`, the wider side of the interval, for narrow places."""
    half = max(hi - mean, mean - lo)
    if math.isnan(mean) or not math.isfinite(half) or half <= 0:
        return plain(mean)
    if max(abs(mean), half) < SMALLEST_PLAIN:
        return f"{mean:.0e}"
    decimals = _decimals(half)
    return f"{_fixed(mean, decimals)}\u00b1{_fixed(half, decimals)}"


def of(row: Row, metric: str, most: int = 6) -> str:
    """A metric of a row, with its interval."""
    return interval(row[metric], row[f"{metric}_lo"], row[f"{metric}_hi"], most)


def scaled(row: Row, metric: str, scale: float) -> str:
    """The same in other units: 100 for per cent."""
    mean, lo, hi = (scale * float(row[f"{metric}{end}"]) for end in ("", "_lo", "_hi"))
    return interval(mean, lo, hi)


def percent(row: Row, metric: str) -> str:
    """A share in per cent, `62 [54, 70] %`, or a dash where missing."""
    return MISSING if math.isnan(row[metric]) else f"{scaled(row, metric, 100)} %"


def seconds(x: float | None) -> str:
    """A duration: 12 us, 3.4 ms, 5.6 s."""
    if x is None or math.isnan(x):
        return MISSING
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6)):
        if x >= scale:
            return f"{plain(x / scale, 2)} {unit}"
    return f"{plain(x / 1e-9, 2)} ns"


def seconds_interval(mean: float, lo: float, hi: float) -> str:
    """A duration with its interval in one unit: `3.40 [3.20, 3.60] ms`."""
    if math.isnan(mean) or not math.isfinite(hi - lo) or hi <= lo:
        return seconds(mean)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6), ("ns", 1e-9)):
        if mean >= scale or unit == "ns":
            break
    return f"{interval(mean / scale, lo / scale, hi / scale)} {unit}"


def size(x: float | None) -> str:
    """Bytes: 12 kB, 3.4 MB, 5.6 GB (powers of 1000)."""
    if x is None or math.isnan(x):
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if x >= scale:
            return f"{plain(x / scale, 2)} {unit}"
    return f"{plain(x, 2)} B"


def calls(row: Row) -> str:
    """What one value asks of the models: `512 velocity, 16 decode, 16 reward`."""
    made = {kind: row[f"calls_{kind}"] for kind in CALLS}
    if all(pd.isna(number) for number in made.values()):
        return MISSING
    if not pd.isna(made["velocity"]) and made["velocity"] > 0 and not made["trunk"]:
        made["blocks"] = 0  # a velocity runs them all
    shown = [f"{n:g} {kind}" for kind, n in made.items() if not pd.isna(n) and n > 0]
    return ", ".join(shown) or "none"


def times(x: float) -> str:
    """A factor: 0.12 x, 38 x, 1200 x."""
    return MISSING if math.isnan(x) else f"{plain(x, 2)}\u00d7"


def p_value(p: float) -> str:
    """A p-value: `p = 0.023`, `p < 0.001`."""
    if math.isnan(p):
        return f"p {MISSING}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"  # noqa: PLR2004


def _decimals(half: float) -> int:
    """Decimals that an interval of this half-width supports; integers stay whole."""
    exponent = math.floor(math.log10(half))
    return max(0, (half < SECOND_DIGIT * 10.0**exponent) - exponent)


def _fixed(x: float, decimals: int) -> str:
    """With that many decimals, negative ones round before the point; never `-0.00`."""
    text = f"{round(x, decimals):.{max(decimals, 0)}f}"
    return text.removeprefix("-") if float(text) == 0 else text
