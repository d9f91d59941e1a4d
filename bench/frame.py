"""The tidy frame: one row per cell and noise level, every metric with its interval.

Columns: `cell attempt suite quick isolation processes`; the coordinates; `estimator.<setting>` and
`world.<setting>`; `sigma`, `target`, `estimand`, `realises`; each metric with `_lo`, `_hi` and
`_by_prompt`; `rmse`, `rmse_centred`, `rmse_realised` and `skill`; `rmse_iqm`, the RMSE over the
middle half of prompts; `won`, the probability that the squared error on a prompt is below the
constant's; where the truth is an average itself, its effective `truth_members` and `truth_floor`,
the RMSE it adds to everyone's (the realised reward of the one clean latent, where nobody knows the
truth); seconds, peak bytes and calls per value; provenance.
"""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import repeats
from bench.cell import Task
from bench.metrics import METRICS, OWN
from bench.metrics.value import middle_rmse, rmse, skill
from bench.namesakes import shown, told_apart
from bench.stats import Interval, improvement_interval, mean_interval
from bench.store import Store

FACET = ["suite", "world", "reward", "latents", "pairing", "group", "grid", "variant", "estimand"]
ROOTS = {"rmse": "mse", "rmse_centred": "centred_mse", "rmse_realised": "mse_realised"}
REALISED = ("bias", "mse")  # that have a form against realised rewards
ONE = 1.0  # member: the clean latent that was noised; how far it adds to errors is not known
MEAN = "mean"  # the value that these are draws of
KEEP = ("quick", "isolation", "attempt", "suite", "started", "wall_seconds")
SHOWN = {  # what tables say of a cell without numbers, in its place
    "oom_gpu": "OOM",
    "oom_host": "OOM (host)",
    "timeout": "timeout",
    "diverged": "diverged",
    "error": "error",
    "skipped": "skipped",
    "interrupted": "interrupted",
    "invalid": "invalid",
}


def load(store: str | Path) -> pd.DataFrame:
    """The frame of a store's latest ok attempts at values; unreadable records are warned of.

    Raises:
        ValueError: if there is no store.
    """
    return tidy(latest(store, "value"))


def latest(store: str | Path, task: Task) -> list[dict[str, Any]]:
    """A store's latest records of a task, no two of one name; unreadable ones are warned of.

    Raises:
        ValueError: if there is no store.
    """
    found = Store(store)
    if not (found.path / "cells").is_dir():
        raise ValueError(f"expected a store with records at {store}, found none")
    records = [r for r in found.latest().values() if r["spec"]["task"] == task]
    for problem in found.problems:
        warnings.warn(problem, stacklevel=4)
    return shown(told_apart(records))


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The frame of some records; failed cells have no rows."""
    rows = [row for record in records if record["status"] == "ok" for row in _rows(record)]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else _with_skill(frame)


def failures(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells without an ok attempt: coordinates, status and its word, reason, when it was."""
    return [
        {
            "cell": r["id"],
            "status": r["status"],
            "word": SHOWN.get(r["status"], r["status"]),
            "reason": r.get("reason"),
            "started": r.get("started", ""),
            **_coordinates(r),
        }
        for r in records
        if r["status"] != "ok"
    ]


def _coordinates(record: dict[str, Any]) -> dict[str, Any]:
    return {"suite": record["suite"], **record["coordinates"]}


def provenance(record: dict[str, Any]) -> dict[str, Any]:
    """What is the same for all rows of a record: what was measured, where and with what."""
    spec, environment = record["spec"], record["environment"]
    return {
        "cell": record["id"],
        **{name: record.get(name) for name in KEEP},
        "processes": repeats.processes(record),
        **_coordinates(record),
        "estimator_build": spec["estimator"]["build"],
        **{f"estimator.{k}": v for k, v in spec["estimator"]["settings"].items()},
        **{f"world.{k}": v for k, v in spec["world"]["settings"].items()},
        "dtype": spec["world"]["settings"].get("dtype"),
        "seed": spec["seed"],
        **{k: environment[k] for k in ("device", "threads", "commit", "dirty")},
        "machine": environment["device_name"],
        "python": environment["versions"]["python"],
        "torch": environment["versions"]["torch"],
    }


def _rows(record: dict[str, Any]) -> Iterable[dict[str, Any]]:
    protocol = record["spec"]["protocol"]
    shared = provenance(record) | {"n_prompts": protocol["prompts"], "batch": protocol["batch"]}
    for row in map(_judged, record["rows"]):
        yield shared | _what(row) | _cost(row) | _figures(row["metrics"])


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose unknown mean values the realised rewards stand for, averages of one member.

    Their spread is in every squared error, and in no bias and no difference of squared errors.
    """
    metrics = row["metrics"]
    known = {name: metrics.get(f"{name}_realised") for name in REALISED}
    drawn = row["estimand"]["text"] == f"{MEAN} | {row['realises']}"
    judged = any(metrics.get(name) is not None for name in REALISED)
    if judged or not drawn or None in known.values():
        return row
    return row | {"metrics": metrics | known, "truth_members": ONE}


def _what(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "sigma": row["sigma"],
        "sigma_reference": row["sigma_reference"],
        "target": row["target"]["text"],
        "estimand": row["estimand"]["text"],
        "realises": row["realises"],
        "z_digest": row["z_digest"],
        "n_latents": row["latents"],
        "replicates": row["replicates"],
        "nonfinite": row["nonfinite"],
        "truth_members": row.get("truth_members", np.nan),
        "truth_floor": row.get("truth_floor", np.nan),
    }


def _cost(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds, bytes and calls, per value where that makes sense."""
    found: dict[str, Any] = {f"calls_{kind}": number for kind, number in row["calls"].items()}
    for prefix, kind in (("", "call"), ("gradient_", "gradient")):
        each = repeats.of(row, partial(_each, kind=kind))
        found |= spread(f"{prefix}seconds", repeats.seconds(each))
    for prefix in ("", "gradient_"):
        peak = row[f"{prefix}peak"] or {}
        for kind in ("live", "process", "allocated", "reserved"):
            found[f"{prefix}peak_{kind}_bytes"] = peak.get(kind)
    return found


def _each(row: Mapping[str, Any], kind: str) -> np.ndarray:
    """Seconds per latent of every call."""
    return np.array(row[f"{kind}_seconds"]) / np.array(row[f"{kind}_rows"])


def _figures(metrics: dict[str, list[float | None] | None]) -> dict[str, Any]:
    """Every metric with its interval and its numbers per prompt."""
    found: dict[str, Any] = {}
    for name in (*METRICS, *(name for name in metrics if name.startswith(OWN))):
        by_prompt = metrics.get(name)
        x = None if by_prompt is None else np.array(by_prompt, dtype=float)
        found[f"{name}_by_prompt"] = x
        found |= spread(name, None if x is None else mean_interval(x))
    for name, of in ROOTS.items():
        x = found[f"{of}_by_prompt"]
        found |= spread(name, None if x is None else rmse(x))
    mse = found["mse_by_prompt"]
    return found | spread("rmse_iqm", None if mse is None else middle_rmse(mse))


def spread(name: str, interval: Interval | None) -> dict[str, float]:
    """An interval as three columns, NaN where there is none."""
    mean, lo, hi = (np.nan,) * 3 if interval is None else interval[:3]
    return {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}


def _with_skill(frame: pd.DataFrame) -> pd.DataFrame:
    """Skill against the constant at the same latents, 1 - MSE / MSE(constant), and `won`."""
    constants = {
        (*row[FACET], row["z_digest"]): row["mse_by_prompt"]
        for _, row in frame[frame["estimator_build"] == "constant"].iterrows()
    }
    found = []
    for _, row in frame.iterrows():
        of = constants.get((*row[FACET], row["z_digest"]))
        mse = row["mse_by_prompt"]
        unknown = row["truth_members"] == ONE and np.isnan(row["truth_floor"])
        if of is None or mse is None or unknown:
            found.append(spread("skill", None) | spread("won", None))
            continue
        itself = row["estimator_build"] == "constant"
        won = None if itself else improvement_interval(-mse, -of)
        found.append(spread("skill", skill(mse, of)) | spread("won", won))
    return pd.concat([frame, pd.DataFrame(found, index=frame.index)], axis=1)
