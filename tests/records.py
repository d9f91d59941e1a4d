"""Records as a store holds them, made up: for tests of what is shown."""

import numpy as np

from bench.cell import Part, Spec
from bench.metrics import METRICS
from bench.protocols import PROTOCOLS
from bench.store import Store

SIGMAS = (0.25, 0.75)
PROMPTS = 6
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


def value(name, *, build="tweedie", status="ok", reward="quadratic", task="value", shift=0,
          reason="it ended so"):  # fmt: skip
    """A record of the `value` task, or the failure of another one."""
    protocol = PROTOCOLS[task](**({"i": 1} if task == "interface" else {}))
    spec = Spec(
        task=task,
        world=Part(build="gaussian"),
        reward=Part(build=reward),
        estimator=Part(build=build, settings={"name": name}),
        protocol=protocol,
        prompts="0",
    )
    where = {"latents": "data", "pairing": "own", "group": "siblings", "grid": "plain"}
    where |= {"i": "1"} if task == "interface" else {}
    ok = status == "ok"
    return {
        "schema": 1, "id": spec.id, "spec": spec.model_dump(mode="json"), "suite": "mine",
        "coordinates": {"estimator": name, "world": "gaussian", "reward": reward, "variant": "",
                        **where},
        "quick": False, "status": status, "reason": None if ok else reason,
        "isolation": "inline", "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 2.0,
        "rows": [_row(sigma, name, build, shift) for sigma in SIGMAS] if ok else [],
        "phases": {"start": 0.5, "task": 1.5}, "attempt": "0001",
        "exit": None if ok else {"code": None, "signal": "SIGKILL"},
        "log": [] if ok else ["one", "two"],
        "environment": {
            "versions": {"python": "3.12", "torch": "2.9"}, "commit": "0123abc", "dirty": False,
            "device": "cpu", "device_name": "Test CPU", "threads": 1,
        },
    }  # fmt: skip


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
    target = {"text": "mean | prompt"}
    return {
        "sigma": sigma, "sigma_reference": sigma, "target": target, "estimand": target,
        "realises": "prompt", "z_digest": f"z{sigma}", "latents": 12, "replicates": 1,
        "nonfinite": 0, "metrics": metrics, "call_seconds": [0.01] * 6, "call_rows": [10] * 6,
        "gradient_seconds": [], "gradient_rows": [], "peak": None, "gradient_peak": None,
        "calls": {kind: 1.0 for kind in
                  ("velocity", "trunk", "blocks", "decode", "reward", "tail")},
    }  # fmt: skip


def stored(path, made):
    """A store that holds some records."""
    store = Store(path)
    store.prepare()
    for record in made:
        store.write(store.begin(record["id"]), record, {})
    return store
