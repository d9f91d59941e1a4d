"""The tidy frame of `robustness` cells: one row per cell, noise level and figure.

Columns: `cell attempt suite quick isolation seed device threads`; the coordinates;
`estimator_build` and `estimator.<setting>`; `sigma_reference` as asked for and `sigma` on this
latent; `figure`; its `value`, its ratio `of_ceiling` to the Bayes ceiling's and `of_clean` to the
clean images', each with `_lo` and `_hi`; the count `n` and numbers `items` behind them; mean
`length` of the embeddings; seconds and calls per embedding.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import repeats
from bench.frame import latest, provenance, spread
from bench.metrics.robustness import FIGURES
from bench.stats import Interval

TABLE = ("suite", "world", "reward", "grid", "variant", "figure")  # what may stand in one table
RUN = ("quick", "seed", "device", "threads")  # one store may hold several; they don't mix
REFERENCES = {"of_ceiling": ("ceiling", None), "of_clean": ("clean", "pixels")}
SETTINGS = "estimator."
KNOWN = (
    0.5  # of a reference its interval must exceed: a ratio to what is hardly known says nothing
)


def load(store: str | Path) -> pd.DataFrame:
    """The frame of a store's latest ok attempts; unreadable records are warned of.

    Raises:
        ValueError: if there is no store.
    """
    return tidy(latest(store, "robustness"))


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The frame of some records; failed cells have no rows."""
    ok = [record for record in records if record["status"] == "ok"]
    frame = pd.DataFrame([row for record in ok for row in _rows(record)])
    return frame if frame.empty else _with_ratios(frame)


def _rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    shared = provenance(record)
    for row in record["rows"]:
        at = {name: row[name] for name in ("sigma", "sigma_reference", "z_digest", "length")}
        for figure, items in row["marks"].items():
            x = np.array(items, dtype=float)
            found = spread("value", FIGURES[figure].estimate(x)) | {"n": len(x), "items": x}
            yield shared | at | {"figure": figure} | found | _cost(row)


def _cost(row: Mapping[str, Any]) -> dict[str, Any]:
    each = repeats.of(row, lambda one: np.array(one["call_seconds"]) / one["call_rows"])
    calls = {f"calls_{kind}": number for kind, number in row["calls"].items()}
    return calls | spread("seconds", repeats.seconds(each))


def _with_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Ratios to both references on the same items; NaN where there is none, or hardly known."""
    keys = [*TABLE, *RUN, "sigma_reference", "z_digest"]
    out = frame.copy()
    for name, (build, source) in REFERENCES.items():
        rows = frame[frame["estimator_build"] == build]
        if source is not None:
            rows = rows[rows[f"{SETTINGS}source"] == source] if len(rows) else rows
        of = {tuple(row[keys]): row for _, row in rows.iterrows()}
        found = [_ratio(row, of.get(tuple(row[keys]))) for _, row in frame.iterrows()]
        out = pd.concat([out, pd.DataFrame(
            [spread(name, ratio) for ratio in found], index=frame.index)], axis=1)  # fmt: skip
    return out


def _ratio(row: pd.Series, of: pd.Series | None) -> Interval | None:
    if of is None or not of["value_lo"] > KNOWN * of["value"]:
        return None
    return FIGURES[row["figure"]].ratio(row["items"], of["items"])
