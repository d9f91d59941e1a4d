"""How a frame was measured, and what a reader should be warned of."""

import pandas as pd

from bench.report import numbers
from bench.report.facets import strangers
from bench.report.lettering import capital


def measured(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Suite and world to what a methods section says of them, by heading."""
    return {
        f"{suite}{' (quick)' if quick else ''}: {capital(world)} world": _suite(rows)
        for (suite, quick, world), rows in frame.groupby(["suite", "quick", "world"], sort=False)
    }


def warnings(frame: pd.DataFrame) -> list[str]:
    """Rows left out of comparisons, and values that were not finite."""
    if frame.empty:
        return []
    bad = frame[frame["nonfinite"].fillna(0) > 0]
    return strangers(frame) + [
        f"{row.estimator} at sigma {row.sigma:g} ({row.reward} reward, cell {row.cell}): "
        f"{row.nonfinite:g} values were not finite, and the prompts that hold them are missing"
        for row in bad.itertuples()
    ]


def _suite(rows: pd.DataFrame) -> dict[str, str]:
    return {
        "prompts": _values(rows["n_prompts"]),
        "latents per noise level": _values(rows["n_latents"]),
        "replicates of stochastic estimators": _values(rows["replicates"][rows["replicates"] > 1]),
        "noise levels": _values(rows["sigma"]),
        "batch": _values(rows["batch"]),
        **provenance(rows),
    }


def provenance(rows: pd.DataFrame) -> dict[str, str]:
    """Where and with what rows were measured, by heading."""
    if rows.empty:
        return {}
    isolation = {
        "inline": "one warm process for all cells: timings are indicative",
        "process": _fresh(rows["processes"]),
    }
    return {
        "seed": _values(rows["seed"]),
        "number format": _values(rows["dtype"]),
        "device": _values(rows["device"]),
        "machine": _values(rows["machine"]),
        "threads": _values(rows["threads"]),
        "Python": _values(rows["python"]),
        "torch": _values(rows["torch"]),
        "commit": _commits(rows),
        "measured": _period(rows["started"]),
        "cells": str(rows["cell"].nunique()),
        "time of all cells": numbers.seconds(rows.drop_duplicates("cell")["wall_seconds"].sum()),
        "isolation": "; ".join(isolation[i] for i in rows["isolation"].drop_duplicates()),
    }


def _values(column: pd.Series) -> str:
    """Distinct values, sorted."""
    found = sorted(column.dropna().unique().tolist())
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in found]
    return ", ".join(shown) or numbers.MISSING


def _fresh(processes: pd.Series) -> str:
    """How cells were measured that each had a process of its own, or several."""
    fewest, most = int(processes.min()), int(processes.max())
    if most == 1:
        return "a fresh process per cell"
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{count} fresh processes per cell, in turns"


def _commits(rows: pd.DataFrame) -> str:
    """Commits, and whether the code was changed since."""
    pairs = rows[["commit", "dirty"]].drop_duplicates().itertuples(index=False)
    shown = [
        numbers.MISSING if pd.isna(commit)
        else f"{commit[:12]}{' with uncommitted changes' if dirty is True else ''}"
        for commit, dirty in pairs
    ]  # fmt: skip
    return ", ".join(shown)


def _period(started: pd.Series) -> str:
    """First to last day."""
    days = sorted({str(day)[:10] for day in started.dropna()})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else numbers.MISSING
