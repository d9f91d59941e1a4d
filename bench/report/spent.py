"""What value models took to make, beside the paper's Table 4, for a terminal."""

from collections.abc import Mapping

import pandas as pd

from bench.report import numbers
from bench.report.paper import printed
from bench.spent import Amount, Spent

HOUR = 3600
UNITS = {frozenset(("cpu",)): "core-hours", frozenset(("cuda",)): "GPU-hours"}
MIXED = "hours of several kinds of devices"
PARTS = ("search", "preparing", "training", "total", "tuning")


def text(found: Mapping[str, Spent]) -> str:
    """A line for each model, by its name."""
    rows = {
        name: {part: _hours(getattr(spent, part)) for part in PARTS}
        for name, spent in found.items()
    }
    units = {amount.devices for spent in found.values() for amount in spent if amount is not None}
    unit = UNITS.get(next(iter(units)), MIXED) if len(units) == 1 else MIXED
    own = pd.DataFrame(rows).T.to_string()
    return f"{unit}; total: without trials of learning rates\n{own}\n\n{_paper()}"


def _paper() -> str:
    """The paper's Table 4."""
    rows = {
        f"{reward}, {where}": {"search": search, "training": training, "total": total}
        for where, columns in printed("cost").items()
        for reward, (training, search, total) in columns.items()
    }
    return f"the paper, SD 3.5 Medium, GPU-hours\n{pd.DataFrame(rows).T.to_string()}"


def _hours(amount: Amount | None) -> str:
    return numbers.MISSING if amount is None else numbers.plain(amount.seconds / HOUR)
