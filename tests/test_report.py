"""The report on frames whose answer is known: tables, verdicts, recommendations, plots, page."""

import hashlib

import numpy as np
import pandas as pd

from bench.metrics import METRICS
from bench.metrics.value import Samples, rmse, skill
from bench.stats import mean_interval

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
P, G, M, R = 10, 2, 4, 6
ROOTS = {"rmse": "mse", "rmse_centred": "centred_mse", "rmse_realised": "mse_realised"}
KINDS = ("velocity", "trunk", "blocks", "decode", "reward", "tail")


def generator(*names):
    digest = hashlib.sha256(repr(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def latents(facet, sigma):
    """Truth (P, G, M), realised rewards and the spread of the posterior of one noise level."""
    rng = generator("latents", facet, sigma)
    spread = 0.1 + 0.9 * sigma
    truth = 0.4 * rng.normal(size=(P, 1, 1)) + (1.1 - sigma) * rng.normal(size=(P, G, M))
    realised = truth + spread * rng.normal(size=truth.shape)
    return truth, realised, spread


def measured(value, facet, sigma, cosine=None):
    """Metrics of values (R, P, G, M), as a frame holds them."""
    truth, realised, _ = latents(facet, sigma)
    error = None if cosine is None else np.sqrt(2 - 2 * cosine)
    samples = Samples(value, truth, realised, cosine, error)
    found = {}
    for name, metric in METRICS.items():
        x = metric.function(samples)
        found[f"{name}_by_prompt"] = x
        found |= spread(name, None if x is None else mean_interval(x))
    for name, of in ROOTS.items():
        found |= spread(name, rmse(found[f"{of}_by_prompt"]))
    constant = ((truth.mean(axis=(1, 2), keepdims=True) - truth) ** 2).mean(axis=(1, 2))
    return found | spread("skill", skill(found["mse_by_prompt"], constant))


def spread(name, interval):
    mean, lo, hi = (np.nan,) * 3 if interval is None else interval[:3]
    return {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}


def row(facet, sigma, label, build, value, cost, settings=None, **others):
    """One row; `cost` is velocity calls, decodes, trunk calls of a value."""
    velocity, decode, trunk = cost
    rng = generator("time", facet, sigma, label)
    time = (5e-5 + 1e-3 * velocity + 2e-4 * decode + 4e-4 * trunk) * rng.normal(1, 0.03)
    cosine = others.pop("cosine", None)
    calls = (velocity, trunk, 12 * velocity + 3 * trunk, decode, decode, trunk)
    estimand = others.get("estimand", "mean | prompt")
    return {
        "cell": hashlib.sha256(repr((facet, label)).encode()).hexdigest()[:16],
        "attempt": "0001", "suite": "value-gaussian", "quick": False, "isolation": "inline",
        "world": "gaussian", "reward": facet[0], "estimator": label, "estimator_build": build,
        **{f"estimator.{k}": v for k, v in (settings or {}).items()},
        "latents": "data", "pairing": "own", "group": "siblings", "grid": "plain",
        "sigma": sigma, "sigma_reference": sigma, "target": estimand, "estimand": estimand,
        "realises": "prompt", "n_prompts": P, "n_latents": P * G * M, "replicates": len(value),
        "z_digest": f"digest-{sigma}", "nonfinite": 0,
        **measured(value, facet, sigma, cosine),
        **spread("seconds", (time, 0.97 * time, 1.04 * time)),
        **spread("gradient_seconds", (3 * time, 2.9 * time, 3.2 * time)),
        "peak_live_bytes": 1e5 * (1 + velocity), "peak_process_bytes": 3e8,
        "gradient_peak_live_bytes": 4e5, "batch": 64,
        **{f"calls_{k}": n for k, n in zip(KINDS, calls, strict=True)},
        "seed": 0, "device": "cpu", "dtype": "float64", "threads": 2, "commit": "0123abc4567",
        "dirty": False, "python": "3.12.1", "torch": "2.9.0", "machine": "Test CPU",
        "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 12.5, **others,
    }  # fmt: skip


def cosine_of(rng, least):
    return np.clip(least + (1 - least) * rng.random((P, G, M)), -1, 1)


def mean_rows(reward, sigma):
    """The estimators of the mean value, with errors of known size and shape."""
    facet = (reward, "mean")
    truth, _, s = latents(facet, sigma)
    rng = generator("values", facet, sigma)
    one = truth[None]
    curved = reward != "linear"

    def add(label, build, value, cost, settings=None, **others):
        return row(facet, sigma, label, build, value, cost, settings, **others)

    def shifts(scale):
        return scale * (1 + 0.3 * rng.normal(size=one.shape))

    yield add("truth", "truth", one, (0, 0, 0), {"value": "mean"}, cosine=np.ones((P, G, M)))
    prior = np.broadcast_to(truth.mean(axis=(1, 2), keepdims=True), truth.shape)[None]
    yield add("constant", "constant", prior, (0, 0, 0), {"draws": 1024})
    yield add(
        "terminal", "terminal", one * (1 - sigma) - shifts(2 * sigma), (0, 1, 0),
        cosine=cosine_of(rng, 0.2 - 0.5 * sigma), target="mean | data",
    )  # fmt: skip
    bias = shifts(0.5 * sigma**2) if curved else 1e-15 * rng.normal(size=one.shape)
    yield add(
        "tweedie", "tweedie", one - bias, (1, 1, 0), {"posterior": "prompt"},
        cosine=cosine_of(rng, 1 - 0.4 * sigma),
    )  # fmt: skip
    yield add(
        "stitch (stage 1)", "linear_stitch", one + (0.05 + 0.5 * sigma) * rng.normal(size=one.shape),
        (0, 0, 1), {"i": 3, "j": 1}, cosine=cosine_of(rng, 0.9 - 0.6 * sigma), target="mean | data",
    )  # fmt: skip
    draws = s * rng.normal(size=(R, 64, P, G, M))
    for particles in (1, 4, 16):
        noise = draws[:, :particles].mean(axis=1)
        yield add(
            f"mc reversal N={particles} k=32", "monte_carlo", one + noise,
            (32 * particles, particles, 0),
            {"particles": particles, "steps": 32, "kernel": "reversal", "value": "mean"},
        )  # fmt: skip
    for steps in (4, 8):
        yield add(
            f"mc reversal N=16 k={steps}", "monte_carlo",
            one + shifts(sigma / steps) + draws[:, :16].mean(axis=1), (16 * steps, 16, 0),
            {"particles": 16, "steps": steps, "kernel": "reversal", "value": "mean"},
        )  # fmt: skip
    for steps in (8, 32):
        yield add(
            f"mc ode k={steps}", "monte_carlo", one + shifts(0.4 * sigma + sigma / steps),
            (steps, 1, 0), {"particles": 1, "steps": steps, "kernel": "ode", "value": "mean"},
            target=f"mean | ode, {steps} steps",
        )  # fmt: skip
    yield add(
        "mc square N=16 k=32", "monte_carlo",
        one - shifts(0.3 * sigma) + draws[:, 16:32].mean(axis=1), (512, 16, 0),
        {"particles": 16, "steps": 32, "kernel": "square", "value": "mean"},
        target="mean | square, 32 steps",
    )  # fmt: skip
    yield add(
        "mc exact N=16", "monte_carlo", one + draws[:, 32:48].mean(axis=1), (0, 16, 0),
        {"particles": 16, "steps": 32, "kernel": "exact", "value": "mean"},
    )  # fmt: skip


def soft_rows(reward, sigma):
    """Estimators of the soft value at lambda 1."""
    facet = (reward, "soft")
    truth, _, s = latents(facet, sigma)
    rng = generator("values", facet, sigma)
    target = {"estimand": "soft(1) | prompt"}
    yield row(facet, sigma, "truth soft", "truth", truth[None], (0, 0, 0), **target)
    prior = np.broadcast_to(truth.mean(axis=(1, 2), keepdims=True), truth.shape)[None]
    yield row(facet, sigma, "constant", "constant", prior, (0, 0, 0), **target)
    draws = s * rng.normal(size=(R, 16, P, G, M)) - s**2 / 2
    for particles in (1, 4, 16):
        soft = np.log(np.exp(draws[:, :particles]).mean(axis=1))
        yield row(
            facet, sigma, f"mc soft N={particles} k=32", "monte_carlo", truth + soft,
            (32 * particles, particles, 0),
            {"particles": particles, "steps": 32, "kernel": "reversal", "value": "soft", "lam": 1},
            **target,
        )  # fmt: skip


def a_frame(sigmas=SIGMAS):
    """Two facets of the mean value, linear and quadratic, and one of the soft value."""
    rows = [r for sigma in sigmas for r in mean_rows("quadratic", sigma)]
    rows += [r for sigma in sigmas for r in mean_rows("linear", sigma)]
    rows += [r for sigma in sigmas for r in soft_rows("quadratic", sigma)]
    return pd.DataFrame(rows)


FAILED = {
    "cell": "feedfacefeedface", "suite": "value-gaussian", "estimator": "mine & yours",
    "world": "gaussian", "reward": "quadratic", "latents": "data", "pairing": "own",
    "group": "siblings", "grid": "plain", "status": "failed", "reason": "ValueError: expected <x>",
}  # fmt: skip
