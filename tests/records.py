"""Records made by hand, whose numbers are known: one of each task, and many of values."""

import copy
import json

import numpy as np

from bench.cell import SCHEMA, Part, Spec
from bench.metrics import METRICS
from bench.protocols import PROTOCOLS
from bench.store import Store

SIGMAS = (0.25, 0.75)
PROMPTS = 6
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

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</td></tr></table><iframe src='https://example.org'></iframe>",
    "&lt;b&gt; & 'quotes' \"double\"",
    "{{ 7 * 7 }} {% raw %}",
    "50 % of $x_1^2$ # {a} \\input{/etc/passwd} ~ \\\\ [1ex]",
    "a | b \\| c `code` [link](javascript:alert(1)) ![x](http://example.org/x.png)",
    "line one\nline two\r\nline three\u2028line four\ttab",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 and then \u202eturned\u202c",
    "\x1b[31mred\x1b[0m \x00 \x07",
    "=cmd|' /C calc'!A0, \"quoted\"; two",
    "\U0001f600 \u4f60\u597d \u00e9\u00df\u0142",
    "w " * 5_000,
)


def record(task="value", estimator="tweedie", rows=None, *, name=None, reward="linear", **changes):
    """A record of a task, its estimator under a name; `changes` are put over its own keys."""
    given, shown = {"i": 2} if task == "interface" else {}, estimator if name is None else name
    spec = Spec(
        task=task,
        world=Part(build="gaussian"),
        reward=Part(build=reward),
        estimator=Part(build=estimator, settings={} if name is None else {"name": name}),
        protocol=PROTOCOLS[task](**given),
        prompts="p0",
        algorithm=Part(build="guide") if task in {"align", "train"} else None,
    )
    made = {
        "schema": SCHEMA,
        "id": spec.id,
        "spec": spec.model_dump(mode="json"),
        "suite": "made",
        "coordinates": {"estimator": shown, "world": "gaussian", "reward": reward} | _place(spec),
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


def value(name, *, build="tweedie", status="ok", reward="quadratic", task="value", shift=0,
          reason="it ended so"):  # fmt: skip
    """A record of six prompts of the `value` task as its store gives it, or a failure of any."""
    about = {"name": name, "reward": reward, "suite": "mine", "attempt": "0001"}
    if status != "ok":
        exit_ = {"code": None, "signal": "SIGKILL"}
        about |= {"task": task, "estimator": build, "exit": exit_, "log": ["one", "two"]}
        return failed(status, reason, **about)
    rows = [_row(sigma, name, build, shift) for sigma in SIGMAS]
    return record(task, build, rows, exit=None, log=[], **about)


def _row(sigma, name, build, shift):
    size = {"truth": 0.0, "constant": 1.0}.get(build, 0.1 + 0.01 * shift)
    rng = np.random.default_rng(len(name) + round(100 * sigma))
    error = size * (1 + 0.1 * rng.random(PROMPTS))
    metrics = dict.fromkeys(METRICS)
    for metric, x in {"bias": error, "mse": error**2, "centred_mse": error**2,
                      "variance": 0 * error, "squared_bias": error**2,
                      "mse_realised": error**2, "bias_realised": error,
                      "spearman": 1 - error / 2}.items():  # fmt: skip
        metrics[metric] = x.tolist()
    return VALUE | {
        "sigma": sigma, "sigma_reference": sigma, "z_digest": f"z{sigma}", "metrics": metrics,
        "call_seconds": [0.01] * 6, "call_rows": [10] * 6, "peak": None,
        "calls": dict.fromkeys(("velocity", "trunk", "blocks", "decode", "reward", "tail"), 1.0),
    }  # fmt: skip


def stored(path, made):
    """A store of some records, attempts in their order."""
    store = Store(path)
    store.prepare()
    for one in made:
        store.write(store.begin(one["id"]), one, {})
    return store


def put(folder, *records):
    """The folder of a store that holds records as they stand here, their keys in this order."""
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
