"""Records made by hand, one of each task, whose numbers are known."""

import copy
import json

from bench.cell import SCHEMA, Part, Spec
from bench.protocols import PROTOCOLS

PEAK = {"live": 1000, "process": None, "allocated": None, "reserved": None}
VALUE = {
    "sigma": 0.25,
    "sigma_reference": 0.25,
    "target": {"text": "mean | prompt"},
    "estimand": {"text": "mean | prompt"},
    "realises": "prompt",
    "z_digest": "z0",
    "latents": 12,
    "replicates": 1,
    "nonfinite": 0,
    "metrics": {"bias": [0.1, -0.1, 0.2], "mse": [0.04, 0.01, 0.09], "gradient_cosine": None},
    "call_seconds": [2.0, 2.2, 2.4, 2.1],
    "call_rows": [10, 10, 10, 10],
    "gradient_seconds": [],
    "gradient_rows": [],
    "peak": PEAK,
    "gradient_peak": None,
    "calls": {"velocity": 1.0},
}
TESTED = {
    "sigma": 0.1,
    "sigma_reference": 0.25,
    "z_digest": "z0",
    "length": 1.0,
    "marks": {"preference": [1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.0]},
    "call_seconds": [1.0, 1.1],
    "call_rows": [4, 4],
    "calls": {"trunk": 1.0},
}
PAIR = {
    "i": 2,
    "j": 1,
    "picked": ["cheap"],
    **dict.fromkeys(("loss", "normalised", "r2", "held_loss", "held_normalised", "held_r2"), 0.5),
    "cost": 1.0,
    "seconds": 3.0,
    "clean_recall": 0.9,
    "metrics": {
        **{"recall": [1.0, 0.0, 1.0], "recall_before": [0.0, 0.0, 1.0]},
        **{"error": [0.1, 0.2, 0.3], "error_before": [0.3, 0.4, 0.5]},
    },
}
COST = {
    "what": "value",
    "batch": 16,
    "against": "Tweedie",
    "unit": "CPU-second",
    "seconds": [1.0, 1.2, 1.1],
    "against_seconds": [4.0, 4.1, 4.2],
    "flops": 10,
    "against_flops": 40,
    "peak": PEAK,
    "against_peak": PEAK,
}
JUDGED = {"prompts": ["a", "b", "c"], "kinds": ["one", "one", "two"]}
MADE = JUDGED | {"samples": 12, "seconds": [1.0, 1.1], "rows": [6, 6], "calls": {"velocity": 2.0}}
EVALUATED = MADE | {
    "phase": "eval",
    "strength": 1.0,
    "metrics": {"target": [1.0, 2.0, 3.0]},
}
STEP = {
    "phase": "cost",
    "batch": 8,
    "unit": "CPU-second",
    "metrics": {},
    "step_seconds": {
        "guided": [1.0, 1.1, 1.2],
        **dict.fromkeys(("unsteered", "classic DPS"), [0.5, 0.5, 0.5]),
    },
    "flops": {"guided": 20, "unsteered": 10, "classic DPS": 40},
    "peaks": dict.fromkeys(("guided", "unsteered", "classic DPS"), PEAK),
    "calls": {"velocity": 2.0},
}
TRIAL = MADE | {"phase": "tune", "strength": 2.0, "metrics": {"target": [0.0, 0.0, 0.0]}}
SPENT = {"rollout": [1.0, 1.1], "value": [0.5, 0.5], "update": [2.0, 2.1]}
SAID = ("reward", "loss", "gradient", "skipped", "old", "kl", "norm", "flat", *SPENT)
TRAINED = JUDGED | {
    "phase": "run",
    "rate": 1e-3,
    "seed": 0,
    "curve": [
        {"step": 0, "seconds": 0.0, "samples": 0, "metrics": {"target": [0.0, 0.0, 0.0]}},
        {"step": 10, "seconds": 30.0, "samples": 80, "metrics": {"target": [1.0, 2.0, 4.0]}},
    ],
    "records": dict.fromkeys(SAID, [1.0] * 10),
}
TRAINING_STEP = {
    "phase": "cost",
    "rate": 1e-3,
    "unit": "CPU-second",
    "step_seconds": {"this": SPENT, "published": SPENT},
    "peaks": {"this": PEAK, "published": PEAK},
}
ROWS = {
    "value": [VALUE],
    "robustness": [TESTED],
    "interface": [PAIR],
    "cost": [COST],
    "align": [TRIAL, EVALUATED, STEP],
    "train": [TRAINED, TRAINING_STEP],
}
ENVIRONMENT = {
    "versions": {"python": "3.12.0", "torch": "2.13.0"},
    "commit": "a" * 40,
    "dirty": False,
    "device": "cpu",
    "device_name": "a processor",
    "threads": 1,
}


def record(task="value", estimator="tweedie", rows=None, **changes):
    """A record of a task; `changes` are put over its own keys."""
    given = {"i": 2} if task == "interface" else {}
    spec = Spec(
        task=task,
        world=Part(build="gaussian"),
        reward=Part(build="linear"),
        estimator=Part(build=estimator),
        protocol=PROTOCOLS[task](**given),
        prompts="p0",
        algorithm=Part(build="guide") if task in {"align", "train"} else None,
    )
    made = {
        "schema": SCHEMA,
        "id": spec.id,
        "spec": spec.model_dump(mode="json"),
        "suite": "made",
        "coordinates": {"estimator": estimator, "world": "gaussian", "reward": "linear"}
        | _place(spec),
        "quick": False,
        "isolation": "inline",
        "started": "2026-01-01T10:00:00.000+00:00",
        "environment": ENVIRONMENT,
        "status": "ok",
        "reason": None,
        "rows": ROWS[task] if rows is None else rows,
        "phases": {"build": 1.0},
        "wall_seconds": 2.0,
    }
    return copy.deepcopy(made | changes)


def _place(spec):
    """The coordinates that its task adds."""
    found = {name: str(getattr(spec.protocol, name)) for name in spec.protocol.SHOWN}
    return found | ({} if spec.algorithm is None else {"algorithm": "guide"}) | {"variant": ""}


def failed(status="error", reason="ValueError: no", **changes):
    """A record without rows."""
    return record(rows=[], status=status, reason=reason, **changes)


def put(folder, *records):
    """A store of these records, attempts in their order."""
    for one in records:
        cell = folder / "cells" / one["id"]
        attempt = cell / f"{1 + len(list(cell.glob('[0-9]*'))):04d}"
        attempt.mkdir(parents=True)
        (attempt / "result.json").write_text(json.dumps(one))
    return folder


def only_row(made):
    """The one row of a record."""
    [row] = made["rows"]
    return row
