"""The report on frames whose answer is known: tables, verdicts, recommendations, plots, page."""

import hashlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.metrics import METRICS
from bench.metrics.value import Samples, rmse, skill
from bench.report import (
    answer,
    certainty,
    claims,
    drawing,
    estimators,
    facets,
    figures,
    numbers,
    page,
    pictures,
    plots,
    sweeps,
    tables,
    trust,
    typeset,
)
from bench.report.labels import apart
from bench.stats import improvement_interval, mean_interval
from bench.store import Store

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
    mse = found["mse_by_prompt"]
    won = improvement_interval(-mse, -constant)
    return found | spread("skill", skill(mse, constant)) | spread("won", won)


def spread(name, interval):
    mean, lo, hi = (np.nan,) * 3 if interval is None else interval[:3]
    return {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}


def row(facet, sigma, label, build, value, cost, settings=None, **others):  # noqa: PLR0917
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
        "processes": 1,
        "world": "gaussian", "reward": facet[0], "estimator": label, "estimator_build": build,
        **{f"estimator.{k}": v for k, v in (settings or {}).items()},
        "latents": "data", "pairing": "own", "group": "siblings", "grid": "plain", "variant": "",
        "sigma": sigma, "sigma_reference": sigma, "target": estimand, "estimand": estimand,
        "realises": "prompt", "n_prompts": P, "n_latents": P * G * M, "replicates": len(value),
        "z_digest": f"digest-{sigma}", "nonfinite": 0,
        "truth_members": np.nan, "truth_floor": np.nan,
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
    off = (0.05 + 0.5 * sigma) * rng.normal(size=one.shape)
    yield add(
        "stitch (stage 1)", "linear_stitch", one + off, (0, 0, 1), {"i": 3, "j": 1},
        cosine=cosine_of(rng, 0.9 - 0.6 * sigma), target="mean | data",
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


@cache
def a_frame(sigmas=SIGMAS):
    """Two facets of the mean value, linear and quadratic, and one of the soft value."""
    rows = [r for sigma in sigmas for r in mean_rows("quadratic", sigma)]
    rows += [r for sigma in sigmas for r in mean_rows("linear", sigma)]
    rows += [r for sigma in sigmas for r in soft_rows("quadratic", sigma)]
    return pd.DataFrame(rows)


FAILED = {
    "cell": "feedfacefeedface", "suite": "value-gaussian", "estimator": "mine & yours",
    "world": "gaussian", "reward": "quadratic", "latents": "data", "pairing": "own",
    "group": "siblings", "grid": "plain", "variant": "", "status": "failed",
    "reason": "ValueError: expected <x>",
}  # fmt: skip


def facet_of(frame, title):
    return next(f for f in facets.split(frame, [FAILED]) if f.title.startswith(title))


def quadratic(sigmas=SIGMAS):
    return facet_of(a_frame(sigmas), "Quadratic reward, mean")


def contest(**errors):
    """A facet in which each estimator has given squared errors by prompt, and costs 1, 2, 3 ms."""
    base = a_frame()[a_frame()["estimator"] == "tweedie"].iloc[0]
    rows = []
    for k, (name, by_prompt) in enumerate(errors.items()):
        x = np.array(by_prompt, dtype=float)
        found = {"mse_by_prompt": x, **spread("mse", mean_interval(x)), **spread("rmse", rmse(x))}
        build = {"constant": "constant", "truth": "truth", "exact": "monte_carlo"}.get(
            name, "mine"
        )
        kernel = "exact" if name == "exact" else np.nan
        time = spread("seconds", (1e-3 * (k + 1),) * 3)
        rows.append({**base, **found, **time, "estimator": name, "estimator_build": build,
                     "estimator.kernel": kernel})  # fmt: skip
    return pd.DataFrame(rows)


# numbers


@pytest.mark.parametrize(
    ("numbers_in", "text"),
    [
        ((0.12345, 0.11, 0.137), "0.123 [0.110, 0.137]"),  # a half-width of 0.013: two digits
        ((0.12345, 0.08, 0.167), "0.12 [0.08, 0.17]"),  # of 0.044: one
        ((1234.5, 1200.0, 1270.0), "1234 [1200, 1270]"),
        ((-0.0004, -0.01, 0.01), "0.000 [-0.010, 0.010]"),  # never -0.000
        ((1.2e-16, 1.0e-16, 1.4e-16), "1.2e-16 [1.0e-16, 1.4e-16]"),
        ((0.5, 0.5, 0.5), "0.500"),
        ((0.5, np.nan, np.nan), "0.500"),
        ((np.nan, np.nan, np.nan), "\u2013"),
    ],
)
def test_digits_follow_the_interval(numbers_in, text):
    assert numbers.interval(*numbers_in) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (0.09996, "0.100"), (45.678, "45.7"), (98765.0, "98800"),
     (1.5e-7, "1.5e-07"), (np.nan, "\u2013"), (None, "\u2013"), (np.inf, "inf")],
)  # fmt: skip
def test_plain_numbers_have_three_digits(x, text):
    assert numbers.plain(x) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (numbers.seconds(2.5e-5), "25 \u00b5s"),
        (numbers.seconds(0.0123), "12 ms"),
        (numbers.seconds(3.4e-9), "3.4 ns"),
        (numbers.seconds_interval(0.00123, 0.0012, 0.00126), "1.230 [1.200, 1.260] ms"),
        (numbers.size(3.3e6), "3.3 MB"),
        (numbers.size(np.nan), "\u2013"),
        (numbers.size(None), "\u2013"),
        (numbers.times(410.2), "410\u00d7"),
        (numbers.times(np.nan), "\u2013"),
        (numbers.margin(0.138, 0.131, 0.145), "0.138\u00b10.007"),
        (numbers.margin(0.0, 0.0, 0.0), "0"),
        (numbers.p_value(0.00004), "p < 0.001"),
        (numbers.p_value(0.0234), "p = 0.023"),
    ],
)
def test_units(found, text):
    assert found == text


# facets


def test_facets_are_the_plainest_first_and_never_mix_estimands():
    found = facets.split(a_frame())
    assert [facet.title for facet in found] == [
        "Linear reward, mean value given the prompt",
        "Quadratic reward, mean value given the prompt",
        "Quadratic reward, soft value (lambda 1) given the prompt",
    ]
    assert all(facet.frame["estimand"].nunique() == 1 for facet in found)
    assert sum(len(facet.frame) for facet in found) == len(a_frame())
    assert found[0].slug == "linear-mean-prompt"
    assert found[0].about == (
        "Gaussian world. Judged against mean | prompt, on noised clean latents, each with its own "
        "prompt, ranked among siblings of one sampler step."
    )


@pytest.mark.parametrize(
    ("column", "other", "mark"),
    [("seed", 1, "seed 1"), ("dtype", "float32", "dtype float32"), ("quick", True, "quick"),
     ("latents", "sampler", "latents sampler"), ("suite", "mine", "suite mine")],
)  # fmt: skip
def test_runs_and_coordinates_do_not_mix(column, other, mark):
    frame = pd.concat([a_frame(), a_frame().assign(**{column: other})], ignore_index=True)
    found = facets.split(frame)
    assert len(found) == 6
    assert len({facet.slug for facet in found}) == 6
    assert sum(mark in facet.title for facet in found) == 3


def test_a_failed_cell_stands_in_the_facets_of_its_coordinates():
    found = {facet.title: facet.failures for facet in facets.split(a_frame(), [FAILED])}
    assert found.pop("Linear reward, mean value given the prompt") == []
    assert all(failures == [FAILED] for failures in found.values())


def test_rows_of_other_latents_are_left_out_and_named():
    frame = a_frame().copy()
    frame.loc[3, "z_digest"] = "another"
    assert len(quadratic().frame) == len(facet_of(frame, "Quadratic reward, mean").frame) + 1
    (line,) = facets.strangers(frame)
    assert line.startswith("tweedie at sigma 0.1 (cell ")
    assert "other latents" in line
    assert facets.strangers(a_frame()) == []


# estimators


def test_estimators_have_one_order_and_distinct_styles():
    order = estimators.order(a_frame())
    assert order[:6] == ["truth", "truth soft", "constant", "terminal", "tweedie",
                         "stitch (stage 1)"]  # fmt: skip
    assert order.index("mc reversal N=4 k=32") < order.index("mc reversal N=16 k=32")
    styles = estimators.styles(a_frame())
    assert len({(s.colour, s.marker) for s in styles.values()}) == len(styles)
    assert styles["truth"].colour == "#000000"
    assert styles["constant"].line == "--"


def test_estimators_nobody_foresaw_get_hues_of_their_own():
    frame = a_frame().assign(estimator_build=lambda f: f["estimator_build"] + "_x")
    hues = estimators.hues_of(frame)
    assert set(hues.values()) <= set(estimators.SPARE)
    assert len(hues) == 9


@pytest.mark.parametrize("place", ["before", "behind"])
def test_an_estimator_nobody_foresaw_looks_like_none_beside_it(place):
    frame = a_frame().assign(world="gaussian")
    one = frame[frame["estimator"] == "tweedie"]
    own = one.assign(estimator="my_estimator", estimator_build="my_estimator.py")
    both = pd.concat([own, frame] if place == "before" else [frame, own])
    mine = estimators.styles(both)["my_estimator"]
    others = estimators.styles(frame)
    assert {name: s for name, s in estimators.styles(both).items() if name in others} == others
    assert estimators._apart(mine.colour, [s.colour for s in others.values()]) > 150
    panel = both.groupby(["world", "reward"])["estimator"].unique()
    beside = {n for names in panel if "my_estimator" in names for n in names} - {"my_estimator"}
    markers = [others[name].marker for name in beside]
    fewest = min(markers.count(marker) for marker in estimators.MARKERS)
    assert markers.count(mine.marker) == fewest
    near = [s for n, s in others.items() if n in beside and s.marker == mine.marker]
    assert all(estimators._distance(s.colour, mine.colour) > 300 for s in near)


def test_colours_of_very_many_nobody_foresaw_repeat():
    frame = quadratic().frame.iloc[:1]
    many = pd.concat([frame.assign(estimator=f"e{k}", estimator_build=f"e{k}") for k in range(40)])
    hues = estimators.hues_of(many)
    assert set(hues.values()) == set(estimators.SPARE)
    assert len(estimators.styles(many)) == 40


def test_a_plot_of_very_many_estimators_shows_some_of_every_family():
    rows = quadratic().frame
    many = pd.concat([rows, *(rows.assign(estimator=rows["estimator"] + f" {k}") for k in (1, 2))])
    shown = estimators.headline(many)
    assert len(shown) <= estimators.MOST
    assert set(estimators.families(many)[shown]) == set(estimators.families(many))
    assert "tweedie" in shown


def test_sweeps_hold_all_other_settings_fixed():
    ((name, rows),) = estimators.swept(quadratic().frame, "particles").items()
    assert name == "reversal k=32"
    assert sorted(rows["estimator.particles"].unique()) == [1, 4, 16]
    assert set(estimators.swept(quadratic().frame, "steps")) == {"reversal N=16", "ode N=1"}
    assert estimators.swept(quadratic().frame.drop(columns="estimator.kernel"), "steps") == {}


# trust


def test_trust_is_the_cheapest_that_is_not_clearly_worse():
    low = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0]
    alike = [1.3, 1.0, 0.9, 1.0, 1.0, 0.9]
    bad = [3.0, 3.2, 2.7, 3.1, 2.9, 3.0]
    (row,) = trust.trust(contest(constant=bad, cheap=alike, dear=low)).to_dict("records")
    assert row["recommended"] == "cheap"
    assert row["best"] == "dear"
    assert row["as_good"] == ("cheap", "dear")
    assert row["candidates"] == 3
    assert row["rmse"] == pytest.approx(np.sqrt(np.mean(alike)))
    assert row["seconds"] == 2e-3
    test = trust.paired(np.array(alike), np.array(low))
    assert row["detectable"] == pytest.approx(test.detectable / np.mean(bad))


def test_what_is_not_told_apart_is_not_thereby_as_good():
    low = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0]
    vague = [0.1, 9.0, 0.2, 0.3, 7.0, 0.1]  # mean 2.8, but nothing clear
    (row,) = trust.trust(contest(cheap=vague, dear=low)).to_dict("records")
    assert row["recommended"] == row["best"] == "dear"


def test_the_truth_and_exact_draws_are_no_candidates_but_the_constant_is():
    frame = contest(truth=[0] * 4, exact=[0.1, 0.2, 0.1, 0.2], mine=[2, 3, 2, 3], constant=[1] * 4)
    (row,) = trust.trust(frame).to_dict("records")
    assert row["recommended"] == "constant"
    assert row["candidates"] == 2


def test_comparisons_are_holm_adjusted_over_the_whole_facet():
    x = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.0])
    worse = x + np.array([0.05, 0.3, 0.02, 0.4, 0.1, 0.25])  # p = 0.03 alone
    alone = contest(low=x, other=worse)
    assert trust.against(alone, trust.best(alone))["clear"].tolist() == [1]
    crowd = contest(low=x, other=worse, **{f"noise {k}": x + 0.01 * np.sin(k + np.arange(6))
                                           for k in range(9)})  # fmt: skip
    tests = trust.against(crowd, trust.best(crowd)).set_index("estimator")
    assert tests.loc["other", "clear"] == 0


def test_cost_is_relative_to_tweedie():
    table = trust.trust(quadratic().frame).set_index("sigma")
    seconds = quadratic().frame.set_index(["estimator", "sigma"])["seconds"]
    assert table.loc[0.1, "recommended"] == "tweedie"
    assert table.loc[0.1, "cost"] == 1
    assert table.loc[0.75, "recommended"] == "mc reversal N=16 k=32"
    expected = seconds["mc reversal N=16 k=32", 0.75] / seconds["tweedie", 0.75]
    assert table.loc[0.75, "cost"] == expected


def test_without_a_known_value_there_is_no_answer():
    frame = contest(mine=[1, 2]).assign(mse=np.nan)
    assert trust.trust(frame).empty
    assert answer.sentence(trust.trust(frame), set()).startswith("No estimator was measured")


def test_the_answer_in_a_sentence():
    text = answer.sentence(trust.trust(quadratic().frame), {"constant"})
    assert text == (
        "At sigma 0.1 to 0.25, trust tweedie (RMSE 0.0054 to 0.034, 1.3 ms a value); at sigma "
        "0.5, trust tweedie (RMSE 0.14, 1.2 ms a value) - but mc reversal N=16 k=32 looks better "
        "(RMSE 0.14 against 0.14 at 0.5), by less than this run can tell; at sigma 0.75, trust mc "
        "reversal N=16 k=32 (RMSE 0.19, 530 ms a value, 410\u00d7 Tweedie's time); at sigma 0.9, "
        "nothing beats the prompt's mean."
    )
    linear = facet_of(a_frame(), "Linear")
    assert "exact up to rounding" in answer.sentence(trust.trust(linear.frame), {"constant"})


# tables


def test_value_table_says_what_was_measured():
    table = tables.value_table(quadratic().frame).set_index(["sigma", "estimator"])
    row = table.loc[("0.5", "tweedie")]
    frame = quadratic().frame.set_index(["sigma", "estimator"]).loc[(0.5, "tweedie")]
    assert row["RMSE"] == numbers.interval(frame["rmse"], frame["rmse_lo"], frame["rmse_hi"])
    assert row["RMSE"] == "0.138 [0.131, 0.145]"
    assert row["variance"] == "0"
    assert row["time per value"] == "1.2 ms"
    assert row["calls per value"] == "1 velocity, 1 decode, 1 reward"
    assert row["peak memory"] == "200 kB"
    assert (row["against constant"], row["against best"]) == ("better", "as good")
    assert table.loc[("0.5", "truth"), "against best"] == numbers.MISSING
    assert table.loc[("0.5", "stitch (stage 1)"), "calls per value"] == "1 trunk, 3 blocks, 1 tail"
    assert table.loc[("0.9", "terminal"), "against constant"] == "worse"


def test_missing_numbers_are_dashes_and_never_zeros():
    table = tables.value_table(quadratic().frame).set_index(["sigma", "estimator"])
    row = table.loc[("0.5", "mc ode k=8")]
    assert row["gradient cosine"] == row["gradient error"] == numbers.MISSING
    assert row["variance"] == "0"
    assert table.loc[("0.5", "constant"), "Spearman"] == numbers.MISSING


def test_a_failed_cell_has_its_place_in_the_table():
    table = tables.value_table(quadratic().frame, [FAILED])
    rows = table[table["estimator"] == "mine & yours (failed)"]
    assert len(rows) == len(SIGMAS)
    assert (rows["target"] == "ValueError: expected <x>").all()
    assert (rows[["bias", "RMSE", "skill", "time per value"]] == numbers.MISSING).all(axis=None)


def test_terminal_text_marks_the_best_and_fits():
    text = tables.text(a_frame(), [FAILED], width=100)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    second = lines.index("Quadratic reward, mean value given the prompt")
    tweedie = next(line for line in lines[second:] if line.startswith("tweedie"))
    assert tweedie.split() == ["tweedie", "0.00537\u00b10.00030*", "0.0343\u00b10.0018*",
                               "0.138\u00b10.007~", "0.304\u00b10.025", "1.2", "ms"]  # fmt: skip
    assert "mine & yours           failed: ValueError: expected <x>" in lines
    assert tables.text(pd.DataFrame()) == "no results\n"


def test_files_hold_the_frame_for_readers_and_for_machines(tmp_path):
    paths = tables.write(a_frame(), tmp_path, [FAILED])
    assert [path.name for path in paths] == ["values.csv", "values.md", "trust.md", "values.tex",
                                             "trust.tex"]  # fmt: skip
    every = pd.read_csv(paths[0])
    stored, (failed,) = every[every["status"] == "ok"], every[every["status"] != "ok"].iloc
    assert len(stored) == len(a_frame())
    assert failed[["cell", "estimator", "status"]].tolist() == [
        "feedfacefeedface", "mine & yours", "failed"]  # fmt: skip
    assert np.isnan(failed["rmse"])
    assert failed["reason"] == "ValueError: expected <x>"
    assert stored["rmse"].to_numpy() == pytest.approx(a_frame()["rmse"].to_numpy(), rel=1e-15)
    assert not any(name.endswith("_by_prompt") for name in stored)
    md, tex = paths[1].read_text(), paths[3].read_text()
    assert "## Quadratic reward, mean value given the prompt\n" in md
    assert "| mean \\| prompt | -0.134 [-0.141, -0.127] |" in md
    assert tex.count(r"\begin{table}") == tex.count(r"\end{tabular}") == 6
    assert r"mine \& yours (failed)" in tex
    assert r"$\sigma$ & estimator & bias & RMSE" in tex
    assert "$-$0.134 [$-$0.141, $-$0.127]" in tex
    assert not re.search(r"(?<!\\)[&%#_]", tex.replace(" & ", ""))


def test_the_same_frame_gives_the_same_bytes(tmp_path):
    first = tables.write(a_frame(), tmp_path / "a", [FAILED])
    second = tables.write(a_frame(), tmp_path / "b", [FAILED])
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_latex_is_escaped():
    assert typeset.tex_safe("50 % of a_b & -1 ~ {x} \\") == (
        r"50 \% of a\_b \& $-$1 \textasciitilde{} \{x\} \textbackslash{}"
    )


# claims


def verdicts(frame):
    """What the Gaussian world says to each claim."""
    judged = claims.judge(frame)
    return {v.claim.statement.split(" (")[0]: v.in_world("gaussian") for v in judged}


def test_every_claim_that_the_frame_can_test_holds_where_it_was_built_to():
    found = list(verdicts(a_frame()).values())
    untested = "not tested here"  # nothing is trained here, nothing aligned
    assert found == ["held"] * 7 + [untested] * 3 + ["held"] * 2 + [untested] * 4


def changed(frame, chosen, **columns):
    """The frame with columns replaced in chosen rows: a constant, or a function of the old one."""
    out = frame.copy()
    for name, new in columns.items():
        out.loc[chosen, name] = pd.Series(
            [new(x) if callable(new) else new for x in out.loc[chosen, name]],
            index=out.index[chosen], dtype=out[name].dtype,
        )  # fmt: skip
    return out


def is_(**columns):
    frame = a_frame()
    return np.logical_and.reduce([frame[k.replace("__", ".")] == v for k, v in columns.items()])


TWEEDIE = is_(estimator="tweedie")
REVERSAL = is_(estimator__kernel="reversal", estimator__value="mean", estimator__steps=32)
BROKEN = {
    "Tweedie's estimate is exact": (
        "did not hold", TWEEDIE & is_(reward="linear"), {"rmse": 1e-3},
    ),
    "Tweedie's estimate of a nonlinear": (
        "did not hold", TWEEDIE & is_(reward="quadratic", sigma=0.9),
        {"squared_bias_by_prompt": lambda x: 1e-9 * x},
    ),
    "Monte Carlo with the reversal": (
        "did not hold", REVERSAL & is_(sigma=0.5), {"bias_by_prompt": lambda x: x + 1},
    ),
    "Monte Carlo with another": (
        "undecided", is_(estimator__kernel="ode") | is_(estimator__kernel="square"),
        {"bias_by_prompt": lambda x: 0 * x, "squared_bias_by_prompt": lambda x: 0 * x},
    ),
    "The error of unbiased": (
        "did not hold", REVERSAL & is_(sigma=0.25), {"rmse": 0.2},
    ),
    "Monte Carlo costs": (
        "did not hold", is_(estimator_build="monte_carlo"), {"seconds": 2e-3},
    ),
    "The stitched value model is cheaper": (
        "did not hold", is_(estimator_build="linear_stitch"), {"seconds": 2e-3},
    ),
    "The soft value": (
        "did not hold", is_(estimator="mc soft N=1 k=32", sigma=0.9),
        {"bias_by_prompt": lambda x: -x},
    ),
    "Realised clean rewards": (
        "did not hold", is_(estimator="terminal", sigma=0.75),
        {"mse_realised_by_prompt": lambda x: x + 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", BROKEN)
def test_a_claim_fails_on_a_frame_that_contradicts_it_and_no_other_does(claim):
    verdict, chosen, columns = BROKEN[claim]
    assert chosen.any()
    found = verdicts(changed(a_frame(), chosen, **columns))
    (name,) = [name for name in found if name.startswith(claim)]
    assert found.pop(name) == verdict
    assert set(found.values()) == {"held", "not tested here"}


def learned_frame(*, seconds=2e-4, error=0.1, bias=0.3):
    """StitchVM, with unit and with free embeddings, beside Tweedie, whatever the prompt."""
    facet, rows = ("clip", "learned"), []
    for sigma in SIGMAS:
        truth, _, _ = latents(facet, sigma)
        rng = generator("learned", sigma)
        noise = rng.normal(size=truth.shape)
        others = {"estimand": "mean | data", "reward": "clip"}
        unit, free = ({"model": name} for name in ("stitched", "stitched_free"))
        for label, build, value, settings in (
            ("tweedie null", "tweedie", truth + sigma * noise, {"posterior": "data"}),
            ("StitchVM", "stitched", truth + bias + error * noise, unit),
            ("StitchVM free", "stitched", truth + error * noise, free),
        ):
            made = row(facet, sigma, label, build, value[None], (1, 1, 0), settings, **others)
            spent = (seconds if build == "stitched" else 1e-3) * generator(sigma, label).normal(
                1, 0.1
            )
            rows.append(made | spread("seconds", (spent,) * 3))
    return pd.DataFrame(rows)


LEARNED = {
    "A trained StitchVM value costs": ({}, {"seconds": 5e-4}, {"seconds": 3e-4}),
    "At high noise": ({}, {"error": 2.0}, {"error": 0.5}),
    "Regressing unit": ({}, {"bias": -0.3}, {"bias": 0.0}),
}


@pytest.mark.parametrize("claim", LEARNED)
def test_claims_about_trained_models_hold_fail_and_stay_open(claim):
    found = []
    for settings in LEARNED[claim]:
        judged = verdicts(learned_frame(**{"bias": 0.01, **settings}))
        (name,) = [name for name in judged if name.startswith(claim)]
        found.append(judged[name])
    assert found == ["held", "did not hold", "undecided"]


def test_claims_without_their_rows_are_not_tested():
    frame = a_frame()
    only = frame[frame["estimator"].isin(["truth", "constant", "terminal"])]
    found = verdicts(only)
    assert {k for k, v in found.items() if v != "not tested here"} == {
        "Realised clean rewards stand in for the truth"
    }
    assert set(verdicts(pd.DataFrame()).values()) == {"not tested here"}


def test_evidence_names_its_figures():
    found = {v.claim.statement: v.evidence for v in claims.judge(a_frame())}
    (exact,) = found["Tweedie's estimate is exact for a reward linear in the latent"]
    assert exact.where == "Linear reward, mean value given the prompt"
    assert exact.figures == "largest RMSE 1.1e-15 in float64"


# plots


@pytest.fixture(scope="module")
def drawn():
    """The figures of two noise levels."""
    frame = a_frame((0.25, 0.75))
    return plots.figures(frame[frame["reward"] == "quadratic"])


def test_figures_show_what_the_rows_have(drawn):
    everything = {"bias", "variance", "rmse", "skill", "cost", "ranking", "gradient",
                  "particles", "steps", "realised"}  # fmt: skip
    assert set(drawn["quadratic-mean-prompt"]) == everything
    assert set(drawn["quadratic-soft-1-prompt"]) == everything - {"gradient", "steps"}
    assert plots.figures(pd.DataFrame()) == {}


def test_lines_are_the_frames_numbers(drawn):
    (axis,) = drawn["quadratic-mean-prompt"]["rmse"].axes
    (line,) = [line for line in axis.get_lines() if line.get_label() == "tweedie"]
    rows = quadratic((0.25, 0.75)).frame.query("estimator == 'tweedie'")
    assert line.get_ydata() == pytest.approx(rows["rmse"].to_numpy())
    assert line.get_xdata() == pytest.approx(rows["sigma"].to_numpy(), abs=0.01)
    assert axis.get_yscale() == "log"
    assert "truth" in axis.get_title(loc="right")  # 0 has no place on a logarithmic axis


@pytest.mark.parametrize(
    "times",
    [
        (7.373899999644588e-05, 6.0053583335199313e-05),
        (6.586225000167663e-05, 8.767891666631537e-05),
    ],
)
def test_one_estimators_cost_can_be_drawn(times):
    """Around one point, limits found by matplotlib may differ by rounding alone."""
    found = quadratic((0.25, 0.75))
    lone = found.frame[found.frame["estimator"] == "tweedie"].assign(seconds=times)
    with drawing.styled():
        made = figures.cost(found._replace(frame=lone), estimators.palette(lone))
    for axis in made.axes:
        lo, hi = axis.get_xlim()
        assert lo < min(times) < max(times) < hi


def test_labels_at_the_ends_of_lines_do_not_overlap(drawn):
    (axis,) = drawn["quadratic-mean-prompt"]["bias"].axes
    heights = np.sort([text.xyann[1] for text in axis.texts])
    assert len(heights) == 14
    assert np.diff(heights).min() > 0.05


def test_apart_keeps_order_and_what_is_far_enough():
    wanted = np.array([0.5, 0.1, 0.52, 0.9])
    moved = apart(wanted, 0.1)
    assert moved == pytest.approx([0.46, 0.1, 0.56, 0.9])


def test_png_and_pdf_are_written_and_equal_for_equal_figures(drawn, tmp_path):
    figure = drawn["quadratic-mean-prompt"]["gradient"]
    paths = plots.save(figure, tmp_path / "plots", "gradient")
    assert [path.name for path in paths] == ["gradient.png", "gradient.pdf"]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert paths[1].read_bytes()[:5] == b"%PDF-"
    again = plots.save(figure, tmp_path / "again", "gradient")
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]


def small():
    frame = a_frame((0.25, 0.75))
    return frame[frame["estimator"].isin(["constant", "tweedie"]) & (frame["reward"] == "linear")]


@pytest.fixture
def few_figures(monkeypatch):
    """Only three kinds of figures."""
    kept = ("rmse", "cost", "gradient")
    monkeypatch.setattr(plots, "FIGURES", {name: plots.FIGURES[name] for name in kept})


@pytest.mark.usefixtures("few_figures")
def test_all_plots_of_a_frame_are_files(tmp_path):
    paths = plots.write(plots.figures(small()), tmp_path)
    assert {path.name for path in paths} == {
        f"linear-mean-prompt-{name}.{kind}"
        for name in ("rmse", "cost", "gradient")
        for kind in ("png", "pdf")
    }
    assert all(path.stat().st_size > 1000 for path in paths)


def test_any_column_against_any_other():
    frame = a_frame((0.25, 0.75))
    figure = plots.draw(frame, "seconds", "rmse", "estimator_build")
    assert [axis.get_xscale() for axis in figure.axes] == ["log"] * 3
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    rows = quadratic((0.25, 0.75)).frame.query("estimator_build == 'monte_carlo'")
    assert len(lines["monte_carlo"].get_xdata()) == len(rows)
    assert lines["monte_carlo"].get_linestyle() == "None"  # points of unlike settings: no line
    joined = plots.draw(frame, "sigma", "bias").axes[1].get_lines()
    assert all(line.get_linestyle() != "None" for line in joined)


def test_worlds_have_axes_of_their_own():
    frame = a_frame((0.25, 0.75))
    frame = frame[frame["reward"].isin(["linear", "quadratic"])]
    other = frame.assign(world="other", bias=100 * frame["bias"], bias_lo=np.nan, bias_hi=np.nan)
    both = pd.concat([frame, other])
    axes = plots.draw(both, "sigma", "bias").axes
    worlds = [facet.world for facet in facets.split(both)]
    limits = {w: {a.get_ylim() for a, of in zip(axes, worlds, strict=True) if of == w}
              for w in worlds}  # fmt: skip
    assert [len(found) for found in limits.values()] == [1, 1]
    (own,), (others,) = limits.values()
    assert np.ptp(others) > 30 * np.ptp(own)
    shown = frame["bias"].abs().max()
    assert np.ptp(own) < 4 * shown  # its lines are not flat


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("sigma", "rsme", "estimator"), r"expected y to be one of .*rmse.*; got 'rsme' "
                                         r"\(did you mean 'rmse'\?\)"),
        (("target", "rmse", "estimator"), "expected x to be one of .*sigma.*; got 'target'"),
        (("sigma", "rmse", "bias_by_prompt"), "expected by to be one of .*got 'bias_by_prompt'"),
        (("sigma", "estimator.lam", "estimator"), "expected rows that have both"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_drawn_are_named(names, message):
    frame = a_frame()
    with pytest.raises(ValueError, match=message):
        plots.draw(frame[frame["reward"] == "linear"], *names)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="expected results to draw, got none"):
        plots.draw(pd.DataFrame(), "sigma", "rmse")


# page


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page of two noise levels, with four kinds of figures: drawing takes its time."""
    out = tmp_path_factory.mktemp("page") / "deep" / "index.html"
    frame = a_frame((0.25, 0.75))
    frame = frame[frame["reward"] == "quadratic"].copy()
    frame.loc[2, "nonfinite"] = 3
    kept = {name: plots.FIGURES[name] for name in ("rmse", "cost", "particles", "ranking")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FIGURES", kept)
        assert (
            page.write(
                frame, plots.figures(frame), [FAILED], ["cells/a/0001: skipped, not readable"], out
            )
            == out
        )
    return out.read_text()


def test_the_page_needs_nothing_from_elsewhere(html):
    links = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']+)""", html)
    assert links
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script>" in html
    assert html.count("<script") == 1  # our own, which the page's policy names by its digest
    assert re.search(r"script-src &#39;sha256-[\w+/]{43}=&#39;", html)
    assert "default-src &#39;none&#39;" in html
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_answers_first_and_in_order(html):
    ids = re.findall(r'<section id="(\w+)">', html)
    assert ids == ["answer", "claims", "tables", "figures", "measured", "glossary", "failures",
                   "cells", "reproduce"]  # fmt: skip
    assert all(f'href="#{name}"' in html for name in ids)
    text = answer.sentence(trust.trust(quadratic((0.25, 0.75)).frame), {"constant"})
    assert text.replace("'", "&#39;") in html


def test_figures_on_the_page_have_a_text_alternative(html):
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 8
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in images)


def test_the_page_shows_failures_problems_and_provenance(html):
    assert "ValueError: expected &lt;x&gt;" in html
    assert "cells/a/0001: skipped, not readable" in html
    assert "3 values were not finite" in html
    assert "stitchbench run value-gaussian --store DIR" in html
    assert "0123abc4567" in html
    assert "timings are indicative" in html
    assert "not tested" in html.lower()
    assert html.count("did not hold</span>") == 0


@pytest.mark.usefixtures("few_figures")
def test_the_same_frame_gives_the_same_page(tmp_path):
    drawn = (plots.figures(small()) for _ in range(2))
    one, two = (
        page.write(small(), d, [], [], tmp_path / f"{k}.html") for k, d in enumerate(drawn)
    )
    assert one.read_bytes() == two.read_bytes()
    assert "No cell failed." in one.read_text()


def test_a_page_without_results_still_shows_what_failed(tmp_path):
    text = page.write(pd.DataFrame(), {}, [FAILED], [], tmp_path / "index.html").read_text()
    assert "There are no results yet." in text
    assert "mine &amp; yours" in text


def test_reports_need_no_torch():
    code = (
        "import sys; from bench.report import claims, page, plots, tables, trust; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_figure_of_solver_steps_shows_the_root_of_the_squared_bias():
    ends = {"squared_bias": [0.04], "squared_bias_lo": [-0.01], "squared_bias_hi": [0.09]}
    rooted = sweeps.rooted(pd.DataFrame(ends))
    assert rooted[["rooted", "rooted_lo", "rooted_hi"]].iloc[0].tolist() == pytest.approx(
        [0.2, -0.1, 0.3]
    )


# two worlds, one whose truth is an average


FLOORS = {0.25: (1.2, 1e-40), 0.75: (40.0, 0.05)}  # sigma to effective members and floor


@cache
def both_worlds():
    """Quadratic rewards in the Gaussian world, and CLIP's in the shapes world."""
    frame = a_frame((0.25, 0.75))
    exact = frame[(frame["reward"] == "quadratic") & (frame["estimand"] == "mean | prompt")]
    known = {name: exact["sigma"].map({s: both[k] for s, both in FLOORS.items()})
             for k, name in enumerate(("truth_members", "truth_floor"))}  # fmt: skip
    other = exact["cell"].str[::-1]
    bank = exact.assign(world="shapes", reward="clip", cell=other, **known)
    return pd.concat([exact, bank], ignore_index=True)


def in_shapes():
    return facet_of(both_worlds(), "Shapes world")


def test_titles_name_the_world_where_there_are_several():
    found = facets.split(both_worlds())
    assert [(f.world, f.heading, f.title) for f in found] == [
        ("gaussian", "Quadratic reward, mean value given the prompt",
         "Gaussian world, quadratic reward, mean value given the prompt"),
        ("shapes", "CLIP reward, mean value given the prompt",
         "Shapes world, CLIP reward, mean value given the prompt"),
    ]  # fmt: skip
    assert "averages" not in found[0].about
    assert found[1].about.endswith(
        "The truth averages 1.2 to 40 effective members (median over the latents) and adds 0 to "
        "0.050 to every RMSE, in quadrature. At sigma 0.25 that is hardly more than the reward of "
        "the clean latent that was noised, and what it adds is a lower bound."
    )


def test_what_the_truth_of_a_world_is():
    exact, bank = (facet.frame for facet in facets.split(both_worlds()))
    assert certainty.of_world(exact) == "Its truth is exact."
    assert "but not exact" in certainty.of_world(bank)
    sized = bank.assign(**{"world.members": 4096, "world.prompt_members": 256})
    assert "bank of clean latents (256 for each prompt; the noised" in certainty.of_world(sized)
    assert "not known" in certainty.of_world(exact.assign(mse=np.nan))


def test_tables_end_with_the_floor_of_the_truth(tmp_path):
    table = tables.value_table(in_shapes().frame)
    last = table.groupby("sigma").tail(1).set_index("sigma")
    assert last["estimator"].tolist() == ["floor of the truth"] * 2
    assert last["RMSE"].tolist() == ["unknown", "0.050"]
    assert last.loc["0.75", "target"] == "truth averages 40 members"
    assert tables.trust_table(in_shapes().frame)["floor of the truth"].tolist() == [
        "unknown", "0.050",
    ]  # fmt: skip
    lines = tables.text(both_worlds()).splitlines()
    (floor,) = [line for line in lines if line.startswith("floor of the truth")]
    assert floor.split()[4:] == ["unknown", "0.050"]
    assert "floor of the truth" not in tables.value_table(quadratic().frame)["estimator"].tolist()
    tex = next(path for path in tables.write(both_worlds(), tmp_path) if path.name == "values.tex")
    assert tex.read_text().count("floor of the truth") == 2  # of accuracy, not of cost


def test_a_lower_bound_is_marked():
    few = in_shapes().frame.assign(truth_members=1.5)
    assert certainty.shown(few)[0.75]["RMSE"] == "\u2265 0.050"


def test_a_truth_of_one_member_judges_no_gradient():
    table = tables.value_table(in_shapes().frame).set_index(["sigma", "estimator"])
    assert table.loc[("0.25", "tweedie"), "gradient cosine"] == numbers.MISSING
    assert table.loc[("0.75", "tweedie"), "gradient cosine"] != numbers.MISSING


@pytest.mark.parametrize(("name", "axes"), [("rmse", [0]), ("cost", [1]), ("particles", [1])])
def test_the_floor_is_drawn_where_it_can_be_seen(name, axes):
    look = estimators.palette(both_worlds())
    figure = plots.FIGURES[name](in_shapes(), look)
    drawn = [k for k, axis in enumerate(figure.axes) for line in axis.get_lines()
             if line.get_label() == "floor of the truth"]  # fmt: skip
    assert drawn == axes
    exact = plots.FIGURES[name](facet_of(both_worlds(), "Gaussian"), look)
    labels = {line.get_label() for axis in exact.axes for line in axis.get_lines()}
    assert "floor of the truth" not in labels


def test_worlds_are_judged_apart_and_an_average_only_by_what_it_can_judge():
    judged = {v.claim.statement.split(" (")[0]: v.verdicts for v in claims.judge(both_worlds())}
    by_average = {name: found["shapes"] for name, found in judged.items() if "shapes" in found}
    assert by_average == {
        "Tweedie's estimate of a nonlinear reward is biased, and more so at more noise": "held",
        "Monte Carlo with the reversal kernel is unbiased at the most solver steps measured":
            "undecided",
        "Monte Carlo with another kernel is biased for the posterior": "held",
        "Monte Carlo costs many times a Tweedie estimate": "held",
        "The stitched value model is cheaper than a Tweedie estimate": "held",
    }  # fmt: skip
    in_gaussian = {name for name, found in judged.items() if found.get("gaussian") == "held"}
    assert in_gaussian == {*by_average, "The error of unbiased Monte Carlo falls as 1 / sqrt(N)",
                           "Realised clean rewards stand in for the truth"}  # fmt: skip


def test_a_bias_clear_to_a_banks_truth_refutes_the_reversal():
    frame = both_worlds()
    chosen = (frame["world"] == "shapes") & (frame["estimator.kernel"] == "reversal")
    found = claims.judge(changed(frame, chosen, bias_by_prompt=lambda x: x + 1))
    (verdict,) = [v for v in found if "reversal kernel" in v.claim.statement]
    assert verdict.verdicts == {"gaussian": "held", "shapes": "did not hold"}


def test_costs_are_over_plain_tweedies():
    frame = quadratic().frame
    plain = frame[frame["estimator"] == "tweedie"]
    others = [
        plain.assign(estimator="a tweedie", seconds=1e-9, **{setting: value})
        for setting, value in (("estimator.decoder", "tiny"), ("estimator.reuse", True))
    ]
    found = trust.tweedie_seconds(pd.concat([*others, frame]))
    assert found.tolist() == trust.tweedie_seconds(frame).tolist()


def test_the_answer_at_a_glance():
    table = answer.glance([quadratic()], [trust.trust(quadratic().frame)])
    assert table.columns.tolist() == ["what is estimated", *(f"{s:g}" for s in SIGMAS)]
    (row,) = table.to_numpy().tolist()
    assert row[1] == "tweedie (1.0\u00d7)"
    assert row[-1] == "constant"  # its time says nothing


def with_pictures(path, prompts):
    """A store whose truth of the shapes world kept pictures."""
    frame = both_worlds()
    at = (frame["world"] == "shapes") & (frame["estimator"] == "truth")
    rng = generator("pictures")
    clean = np.broadcast_to(rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8), (2, 2, 3, 8, 8))
    arrays = {"pictures_clean": clean, "sigma": np.array([0.25, 0.75]),
              "pictures_posterior_mean": 255 - clean}  # fmt: skip
    if prompts:
        arrays["pictures_prompts"] = np.array([prompts, prompts])
    folder = path / "cells" / frame.loc[at, "cell"].iloc[0] / "0001"
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", **arrays)
    return Store(path)


@pytest.mark.parametrize("prompts", [["a red disc & a ring", "two stars"], []])
def test_pictures_stand_beside_their_prompts(tmp_path, prompts):
    (shown,) = pictures.collect(with_pictures(tmp_path, prompts), both_worlds())
    assert shown.world == "shapes"
    assert shown.prompts == (prompts or ["prompt 1", "prompt 2"])
    assert pictures.headings(shown) == ["clean", "\u03c3 = 0.25", "\u03c3 = 0.75"]
    clean, *means = pictures.row(shown, 1)
    assert all((mean == 255 - clean).all() for mean in means)
    paths = pictures.write([shown], tmp_path)
    assert [path.name for path in paths] == ["pictures.png", "pictures.pdf"]


def test_a_store_without_arrays_has_no_pictures(tmp_path):
    assert pictures.collect(Store(tmp_path), both_worlds()) == []
    assert pictures.write([], tmp_path) == []


@pytest.mark.usefixtures("few_figures")
def test_a_page_of_two_worlds_says_what_each_is(tmp_path):
    frame = both_worlds()
    frame = frame[frame["estimator"].isin(["truth", "constant", "tweedie"])]
    seen = pictures.collect(with_pictures(tmp_path, ["a red disc & a ring", "two stars"]), frame)
    text = page.write(frame, plots.figures(frame), [], [], tmp_path / "i.html", seen).read_text()
    assert text.count("<h3>Gaussian world</h3>") == text.count("<h3>Shapes world</h3>") == 2
    assert text.count("Its truth is exact.") == 1
    assert "Shapes world: held" in text
    assert "Floor of the truth: The RMSE that" in text
    images = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)">', text)
    assert len(images) == 6
    assert images[0] == "a red disc &amp; a ring, clean"
    assert "image-rendering: pixelated" in text
