"""The tidy frame of `train` cells: one row per evaluation of a run, and one of timed steps.

Columns: `cell attempt suite ...`; the coordinates; `estimator_build`, `estimator.<setting>` and
`algorithm.<setting>`; `budget`, what runs must have alike to be compared; `phase` (trial, pilot,
run, cost), `run` (which of the phase), `rate`, `chosen` of trials; `step`, `seconds` of training
so far and `samples`; all metrics with `_lo`, `_hi` and `_by_prompt`; `last` of a run's last
evaluation; what the training step before said, as `train_<figure>`.  Of timed steps
`over_published` with its interval, `<phase>_seconds` and `published_<phase>_seconds`, `memory` and
`over_published_memory`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import repeats
from bench.cell import digest
from bench.frame import latest, provenance, spread
from bench.namesakes import UNBUDGETED
from bench.stats import mean_interval

PHASES = ("rollout", "value", "update")
RUNS = ("pilot", "run")
POINTS = ("run", "step", "seconds", "samples", "last", "chosen", "kinds")  # of an evaluation


def load(store: str | Path) -> pd.DataFrame:
    """The frame of a store's latest ok attempts; unreadable records are warned of.

    Raises:
        ValueError: if there is no store.
    """
    return tidy(latest(store, "train"))


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The frame of some records; failed cells have no rows."""
    ok = [record for record in records if record["status"] == "ok"]
    ok.sort(key=lambda record: record["started"])
    rows = [row for record in ok for row in _rows(record)]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    absent = [name for name in POINTS if name not in frame]  # where all is cost
    return frame.assign(method=frame["estimator"], **dict.fromkeys(absent))


def _rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = record["spec"]
    shared = provenance(record) | {
        "algorithm_build": spec["algorithm"]["build"],
        **{f"algorithm.{k}": _plain(v) for k, v in spec["algorithm"]["settings"].items()},
        **{k: spec["protocol"][k] for k in ("steps", "updates", "prompts", "group", "rank")},
        "budget": budget(spec["protocol"]),
    }
    chosen = next((r["rate"] for r in record["rows"] if r["phase"] in RUNS), None)
    seen: dict[str, int] = {}
    for row in record["rows"]:
        if row["phase"] == "cost":
            yield shared | {"phase": "cost", "rate": row["rate"]} | _timed(row)
            continue
        run = seen.setdefault(row["phase"], 0)
        seen[row["phase"]] += 1
        about = {"phase": row["phase"], "run": run, "rate": row["rate"], "kinds": row.get("kinds")}
        for k, point in enumerate(row["curve"]):
            yield (
                shared
                | about
                | {
                    "chosen": row["rate"] == chosen,
                    "last": k == len(row["curve"]) - 1,
                    **{name: point[name] for name in ("step", "seconds", "samples")},
                    **_metrics(point["metrics"]),
                    **_said(row["records"], point["step"]),
                }
            )


def budget(protocol: dict[str, Any]) -> str:
    """What runs must have alike to be compared; `#` and a digest for what its words leave out."""
    rest = {k: v for k, v in protocol.items() if k not in UNBUDGETED}
    words = f"{rest['updates']} steps of {rest['prompts']} x {rest['group']}"
    return f"{words} #{digest(rest)[:4]}"


def _plain(value: Any) -> Any:
    return "-".join(map(str, value)) if isinstance(value, list) else value


def _metrics(metrics: dict[str, list[float | None]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, x in metrics.items():
        numbers = np.array(x, dtype=float)
        found[f"{name}_by_prompt"] = numbers
        found |= spread(name, mean_interval(numbers))
    return found


def _said(columns: dict[str, list[Any]], step: int) -> dict[str, Any]:
    """What training said at a step, and seconds by phase up to it."""
    told = {} if step == 0 else {
        f"train_{name}": np.nan if x[step - 1] is None else x[step - 1]
        for name, x in columns.items() if name not in PHASES
    }  # fmt: skip
    return told | {f"{name}_so_far": float(sum(columns[name][:step])) for name in PHASES}


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    """A training step beside one of the published method."""
    found: dict[str, Any] = {"unit": row["unit"]}
    whole = {name: repeats.of(row, partial(_whole, name=name)) for name in row["step_seconds"]}
    found |= spread("over_published", repeats.ratio(whole["this"], whole["published"]))
    for phase in PHASES:
        for name, prefix in (("this", ""), ("published", "published_")):
            found[f"{prefix}{phase}_seconds"] = float(np.median(row["step_seconds"][name][phase]))
    bytes_ = {name: peak["live"] or np.nan for name, peak in row["peaks"].items()}
    found["memory"] = bytes_["this"]
    found["over_published_memory"] = bytes_["this"] / bytes_["published"]
    return found


def _whole(row: dict[str, Any], name: str) -> np.ndarray:
    """Seconds of whole training steps."""
    return np.sum([row["step_seconds"][name][phase] for phase in PHASES], axis=0)


def log(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per training step of every run: all that trainers say, and seconds by phase."""
    out = []
    for record in records:
        if record["status"] != "ok" or record["spec"]["task"] != "train":
            continue
        seen: dict[str, int] = {}
        for row in record["rows"]:
            if row["phase"] == "cost":
                continue
            run = seen.setdefault(row["phase"], 0)
            seen[row["phase"]] += 1
            about = {"cell": record["id"], "method": record["coordinates"]["estimator"],
                     "phase": row["phase"], "run": run, "rate": row["rate"]}  # fmt: skip
            told = pd.DataFrame(row.get("records", {}))
            out.append(told.assign(step=range(1, len(told) + 1), **about))
    return pd.concat(out, ignore_index=True) if out else pd.DataFrame()


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of every run that is compared."""
    return frame[(frame["phase"] == "run") & (frame["last"] == True)]  # noqa: E712 - or missing


def together(rows: pd.DataFrame, metric: str) -> np.ndarray | None:
    """A metric by prompt, a mean over runs; None where it is missing."""
    name = f"{metric}_by_prompt"
    known = [x for x in rows[name] if isinstance(x, np.ndarray)] if name in rows else []
    return np.mean(known, axis=0) if known else None


def published_of(frame: pd.DataFrame, row: pd.Series) -> str | None:
    """The method with the clean reward that a row's is to be compared with; None for itself."""
    kin = frame[
        (frame["algorithm"] == row["algorithm"]) & (frame["estimator_build"] == "terminal")
    ]["method"]
    return None if kin.empty or kin.iloc[0] == row["method"] else str(kin.iloc[0])
