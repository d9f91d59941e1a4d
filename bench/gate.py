"""Gates: what two compared stores must not show, such as `seconds.ratio.lo>1.05`.

    FIGURE.ratio[.lo|.hi] OP NUMBER           second store over first
    FIGURE.difference[.lo|.hi] OP NUMBER      second store minus first
    FIGURE.p OP NUMBER                        adjusted for the comparisons of the task
    failed OP NUMBER                          cells ok in the first and failed in the second
    missing OP NUMBER                         cells ok in the first that the second lacks

OP is one of < <= > >= == !=.  A gate fails where any comparison fulfils it.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bench.compare import Stores
from bench.comparison import Comparison
from bench.resolve import UnknownName

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
FORM = re.compile(
    rf"(\w+)(?:\.(ratio|difference|p))?(?:\.(lo|hi))?\s*(<=|>=|==|!=|<|>)\s*({NUMBER})"
)
COUNTS: dict[str, Callable[[Stores], Sequence[str]]] = {
    "failed": lambda stores: stores.failed,
    "missing": lambda stores: stores.missing,
}


class Gate(NamedTuple):
    """A gate as written.

    Attributes:
        text: As it was written.
        figure: Of comparisons, or a count of cells.
        quantity: ratio, difference or p; None of a count.
        end: lo or hi of the interval; None for its middle.
        holds: Whether a number fulfils it.
    """

    text: str
    figure: str
    quantity: str | None
    end: str | None
    holds: Callable[[float], bool]

    def of(self, comparison: Comparison) -> float | None:
        """The number that is judged; None where the comparison has none."""
        if self.quantity == "p":
            return comparison.adjusted
        interval = getattr(comparison, str(self.quantity))
        return None if interval is None else getattr(interval, self.end or "mean")


def parse(text: str) -> Gate:
    """A gate from its text.

    Raises:
        ValueError: if it has another form.
    """
    match = FORM.fullmatch(text.strip())
    figure, quantity, end, sign, number = match.groups() if match else (None,) * 5
    counted = figure in COUNTS
    if match is None or counted != (quantity is None) or (quantity in {None, "p"} and end):
        raise ValueError(
            f"expected --fail-if FIGURE.ratio.lo>1.05, FIGURE.difference.hi<0, FIGURE.p<0.05, "
            f"failed>0 or missing>0, got {text!r}"
        )
    compare, threshold = OPERATORS[str(sign)], float(str(number))
    return Gate(text.strip(), str(figure), quantity, end, lambda x: compare(x, threshold))


def judge(gate: Gate, stores: Stores) -> list[tuple[str, float]]:
    """Where a gate fails, and the number there; empty where it is passed.

    Raises:
        UnknownName: if nothing of that name was compared.
        ValueError: if no comparison has such a number: a gate that can't fail guards nothing.
    """
    if gate.quantity is None:
        cells = COUNTS[gate.figure](stores)
        return [(", ".join(cells) or "no cell", len(cells))] if gate.holds(len(cells)) else []
    numbers = _numbers(gate, stores)
    return [(where, x) for where, x in numbers.items() if gate.holds(x)]


def _numbers(gate: Gate, stores: Stores) -> Mapping[str, float]:
    mine = [c for c in stores.comparisons if c.figure == gate.figure]
    if not mine:
        known = {*COUNTS, *(c.figure for c in stores.comparisons)}
        raise UnknownName("figure of a gate", gate.figure, known)
    found = {c.where: gate.of(c) for c in mine}
    known_numbers = {where: x for where, x in found.items() if x is not None and x == x}  # noqa: PLR0124 - NaN
    if not known_numbers:
        raise ValueError(
            f"expected numbers for the gate {gate.text!r}, got none in {len(mine)} comparisons: "
            f"too few repeats or prompts for an interval, or a figure without one"
        )
    return known_numbers
