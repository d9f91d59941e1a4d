"""The tidy frame of `align` cells: one row per set of samples, per timed step, per timed walk.

Columns: `cell attempt suite ...`; the coordinates; `estimator_build`, `estimator.<setting>` and
`algorithm.<setting>`; `phase` (unsteered tune, unsteered, tune, eval, cost); `strength`, `lam`,
the `spread` whose inverse is the unit of strengths; `chosen` and `interior` of trials; all metrics
with `_lo`, `_hi` and `_by_prompt`, and their interquartile means, `_iqm`; `seconds` a sample and
`calls_<kind>`; of timed steps `batch`, `step_seconds`, ratios `over_unsteered` and `over_classic`
with intervals, those of FLOPs and of peak bytes, and `stage_<stage>`, the seconds of a stage over
those of an unsteered step.  Of walks the seconds of a whole sample of `steps` are put together
from its kinds of steps: `walk_seconds`, `over_unsteered`, and of each kind its median seconds,
`kind_<kind>`, and how many a sample has, `count_<kind>`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import repeats
from bench.frame import latest, provenance, spread
from bench.report import held
from bench.stats import iqm_interval, mean_interval

CLASSIC = "classic DPS"
STAGE, PLAIN_STAGE = "stage_", "unsteered_stage_"
YARDSTICKS = {"over_unsteered": "unsteered", "over_classic": CLASSIC}
APART = {
    "algorithm.particles": "N = {:g}",
    "algorithm.proposals": "M = {:g}",
    "algorithm.first": "from {:g}",
    "algorithm.last": "to {:g}",
    "steps": "{:g} steps",
    "kernel": "{}",
}
SAMPLES = ("strength", "lam", "spread", "samples", "nonfinite", "diverged", "feasible", "judge")
LISTS = ("kinds", "log", "prompts")


def load(store: str | Path) -> pd.DataFrame:
    """The frame of a store's latest ok attempts; unreadable records are warned of.

    Raises:
        ValueError: if there is no store.
    """
    return tidy(latest(store, "align"))


def tidy(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The frame of some records; failed cells have no rows."""
    ok = [record for record in records if record["status"] == "ok"]
    ok.sort(key=lambda record: record["started"])  # the order of the suite
    rows = [row for record in ok for row in _rows(record)]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    absent = [name for name in (*SAMPLES, *LISTS) if name not in frame]  # where all is cost
    return frame.assign(method=_methods(frame), **dict.fromkeys(absent))


def _methods(frame: pd.DataFrame) -> list[str]:
    """What tables call each row: its estimator's name, and whatever else tells cells apart."""
    cells = frame.drop_duplicates("cell")
    names = {}
    for _, cell in cells.iterrows():
        kin = cells[cells["estimator"] == cell["estimator"]]
        told = [text.format(cell[name]) for name, text in APART.items()
                if name in cells and kin[name].nunique() > 1]  # fmt: skip
        names[cell["cell"]] = ", ".join([str(cell["estimator"]), *told])
    return [names[cell] for cell in frame["cell"]]


def _rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = record["spec"]
    shared = provenance(record) | {
        "algorithm_build": spec["algorithm"]["build"],
        "world_build": spec["world"]["build"],
        **{f"algorithm.{k}": v for k, v in spec["algorithm"]["settings"].items()},
        **{k: spec["protocol"][k] for k in ("steps", "cfg", "trials")},
    }
    trials = [row for row in record["rows"] if row["phase"] == "tune"]
    tried = sorted(row["strength"] for row in trials)
    final = [row["strength"] for row in record["rows"] if row["phase"] == "eval"]
    for row in record["rows"]:
        if row["phase"] == "error":
            yield shared | {"phase": "error", "sigma": row["sigma"]} | _metrics(row)
            continue
        if row["phase"] == "cost":
            yield shared | {"phase": "cost"} | _step(row)
            continue
        if row["phase"] == "walk":
            yield shared | {"phase": "walk"} | _walk(row, spec["protocol"]["steps"])
            continue
        mine = row["phase"] == "tune" and row["strength"] in final
        inside = bool(tried) and tried[0] < row["strength"] < tried[-1] if mine else None
        judged_by = {
            f"judge {name}": np.mean(judge["scores"][row["phase"]], 1)
            for name, judge in record.get("judges", {}).items()
            if row["phase"] in judge["scores"]
        }
        scored = row | {"metrics": row["metrics"] | judged_by}
        yield shared | _samples(scored) | {"chosen": mine, "interior": inside}


def _samples(row: dict[str, Any]) -> dict[str, Any]:
    """A set of samples: what it is worth and what it took."""
    found = {name: row.get(name) for name in ("phase", *SAMPLES)}
    found |= {name: row.get(name) for name in LISTS} | _metrics(row)
    if row.get("seconds"):
        each = repeats.of(row, lambda one: np.array(one["seconds"]) / one["rows"])
        found |= spread("seconds", repeats.seconds(each))
        found["seconds_all"] = float(np.sum(row["seconds"])) / row["samples"]
        found |= {f"calls_{kind}": number for kind, number in row["calls"].items()}
    return found


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, x in row["metrics"].items():
        numbers = np.array(x, dtype=float)
        found[f"{name}_by_prompt"] = numbers
        found |= spread(name, mean_interval(numbers))
        found |= spread(f"{name}_iqm", iqm_interval(numbers))
    return found


def _step(row: dict[str, Any]) -> dict[str, Any]:
    """A guided step beside an unsteered one and, where it was timed, one of classic DPS."""
    found: dict[str, Any] = {"batch": row["batch"], "unit": row["unit"]}
    spent = {name: repeats.of(row, partial(_of_step, name=name)) for name in row["step_seconds"]}
    found |= spread("step", repeats.seconds(spent["guided"]))
    peaks = defaultdict(dict, row["peaks"])
    for name, other in YARDSTICKS.items():
        timed = other in spent
        found |= spread(name, repeats.ratio(spent["guided"], spent[other]) if timed else None)
        flops = row["flops"][other] if timed else np.nan
        found[f"{name}_flops"] = row["flops"]["guided"] / flops
        theirs = _bytes(peaks[other])
        found[f"{name}_memory"] = _bytes(peaks["guided"]) / theirs if theirs else np.nan
    found["memory"] = _bytes(peaks["guided"])
    found["classic_memory"] = _bytes(peaks[CLASSIC])
    found["allocated"] = _bytes(peaks["guided"], "allocated")
    found["over_classic_allocated"] = found["allocated"] / _bytes(peaks[CLASSIC], "allocated")
    found |= held.columns([row["peaks"]["guided"]], held.DRIVER)
    found["gflop"] = row["flops"]["guided"] / 1e9
    found |= {f"calls_{kind}": number for kind, number in row["calls"].items()}
    return found | _stages(row.get("stages", {}))


def _walk(row: dict[str, Any], steps: int) -> dict[str, Any]:
    """A whole steered sample beside an unsteered one, put together from kinds of steps."""
    sample, plain = row["kinds"], {"unsteered": steps}
    spent, others = (repeats.of(row, partial(_of_kinds, kinds=kinds)) for kinds in (sample, plain))
    flops = [sum(n * row["flops"][kind] for kind, n in kinds.items()) for kinds in (sample, plain)]
    found: dict[str, Any] = {"unit": row["unit"], "gflop": flops[0] / 1e9}
    found |= spread("walk_seconds", repeats.seconds(spent))
    found |= spread("over_unsteered", repeats.ratio(spent, others))
    found["over_unsteered_flops"] = flops[0] / flops[1]
    found["memory"] = max(_bytes(row["peaks"][kind]) for kind in sample)
    found |= held.columns((row["peaks"][kind] for kind in sample), held.ALLOCATED, held.DRIVER)
    found |= {f"kind_{kind}": float(np.median(x)) for kind, x in row["kind_seconds"].items()}
    return found | {f"count_{kind}": number for kind, number in sample.items()}


def _of_kinds(row: dict[str, Any], kinds: dict[str, int]) -> np.ndarray:
    """Seconds in every round of a sample that has so many steps of each kind."""
    return np.sum([n * np.array(row["kind_seconds"][kind]) for kind, n in kinds.items()], axis=0)


def _of_step(row: dict[str, Any], name: str) -> list[float]:
    """Seconds of steps of one kind."""
    seconds: list[float] = row["step_seconds"][name]
    return seconds


def _stages(spent: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Medians by stage, over that of a whole unsteered step; none where a record has none."""
    if not spent:
        return {}
    whole = float(np.median(np.sum(list(spent["unsteered"].values()), axis=0)))
    return {
        f"{prefix}{stage}": float(np.median(x)) / whole
        for name, prefix in (("guided", STAGE), ("unsteered", PLAIN_STAGE))
        for stage, x in spent[name].items()
    }


def _bytes(peak: dict[str, int | None], meaning: str = "live") -> float:
    """A peak in bytes, by a meaning of `bench.meter`; NaN where a device has none."""
    found = peak.get(meaning)
    return np.nan if found is None else float(found)


def staged(frame: pd.DataFrame) -> pd.DataFrame:
    """Timed steps whose stages are known."""
    rows = frame[frame["phase"] == "cost"]
    known = f"{STAGE}rest"
    return rows[rows[known].notna()] if known in rows else rows.iloc[:0]


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The samples that count: of each method, and unsteered ones of the algorithm `sample`."""
    plain = (frame["phase"] == "unsteered") & (frame["algorithm_build"] == "sample")
    return frame[(frame["phase"] == "eval") | plain]


def unsteered_of(frame: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    """The unsteered samples of the same cell: the same sampler, prompts and noise."""
    rows = frame[(frame["cell"] == row["cell"]) & (frame["phase"] == "unsteered")]
    return None if rows.empty else rows.iloc[0]
