"""Fast paths of a model, each beside the same step without any: see `bench.worlds.full.fast`.

The two were measured in processes of their own, not in turns, so a ratio's interval goes from the
one's lower end over the other's upper end to the reverse: wider than of pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.report import held, numbers
from bench.report.facets import Facet
from bench.report.places import by_cell
from bench.report.sheet import Table

GAIN = 0.9  # of the time or the memory: what a path must come to, to be worth having
FAST, WORLD = "world.fast", "world"
SAME = ("reward", "method", "batch", "kernel", "cfg", "steps")  # and all settings of the world
MEMORY = {"allocated": held.WITH_WEIGHTS, "memory": "memory"}  # where a GPU says it, the first


def across(facets: Sequence[Facet]) -> list[Table]:
    """The table of all worlds and rewards; none where no world has a fast path."""
    frame = pd.concat([facet.frame for facet in facets], ignore_index=True)
    lines = list(_lines(frame)) if FAST in frame else []
    if not lines:
        return []
    return [
        Table(
            "paths",
            "Fast paths, over the same step without them",
            "Measured in processes of their own, not in turns: the interval of a ratio goes from "
            "the lower end of the one over the upper end of the other to the reverse. Gains: at "
            "least 10 % of the time, by the whole interval, or of the memory.",
            by_cell(lines),
        )
    ]


def _lines(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    costs = frame[frame["phase"] == "cost"]
    costs = costs.assign(**{FAST: [_paths(x) for x in costs[FAST]]})
    of_world = [name for name in costs if f"{name}".startswith(f"{WORLD}.") and name != FAST]
    same = [name for name in (*SAME, f"{WORLD}_build", *of_world) if name in costs]
    keys = costs[same].astype(str).agg(tuple, axis=1)
    for _, rows in costs.groupby(keys, sort=False):
        plain = rows[rows[FAST] == ""]
        for _, row in rows[rows[FAST] != ""].iterrows() if len(plain) else ():
            yield _line(row, plain.iloc[0])


def _paths(given: Any) -> str:  # noqa: ANN401 - a list; a record of before there were any has NaN
    return ", ".join(given) if isinstance(given, list | tuple) else ""


def _line(row: pd.Series, plain: pd.Series) -> dict[str, Any]:
    """A step on fast paths over a plain one."""
    time = row["step"] / plain["step"]
    lo, hi = row["step_lo"] / plain["step_hi"], row["step_hi"] / plain["step_lo"]
    meaning = "memory" if np.isnan(row["allocated"]) else "allocated"
    memory = row[meaning] / plain[meaning]
    gains = [name for name, at in (("time", hi), ("memory", memory)) if at <= GAIN]
    return {
        "cell": row["cell"],
        WORLD: plain[WORLD],
        "reward": row["reward"],
        "method": row["method"],
        "batch": f"{row['batch']:g}",
        "paths": row[FAST],
        "time": numbers.interval(time, lo, hi),
        MEMORY[meaning]: numbers.plain(memory),
        "gains": " and ".join(gains) or numbers.MISSING,
    }
