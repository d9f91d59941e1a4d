"""What is predicted from shapes is what is measured."""

import json
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from baselines import ESTIMATORS
from bench.asked import asked
from bench.cell import Cell
from bench.cli import cli
from bench.meter import peak_bytes
from bench.numberless import Answers
from bench.part import Part
from bench.plan import plan
from bench.predict import Predicted, predicted
from bench.predicted import Cost, cost, unfused
from bench.predicted_table import STAGES, table
from bench.predicted_table import rows as table_rows
from bench.protocols import PROTOCOLS
from bench.resident import rows
from bench.shaped import untrained
from bench.suite import load
from bench.tasks import cost as cost_task
from bench.tasks.samples import Place
from bench.tasks.steps import CLASSIC
from bench.worlds import make as make_world
from bench.worlds.full import BUILDS
from stitchvm.distill import named
from stitchvm.flops import count_flops
from stitchvm.memo import SharedTrunk

H200 = Path(__file__).parents[1] / "results" / "h200" / "cost-dps" / "records" / "cells"
STEPS = ("guided", "unsteered", CLASSIC)


def said(*arguments, code=0):
    done = CliRunner().invoke(cli, ["predict", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def cells(suite, world=None, **changes):
    shaped, left = untrained(load(suite))
    changes = changes if world is None else {**changes, "world": [world]}
    return plan(shaped, changes=changes), left


def measured_on_h200():
    found = {}
    for file in H200.glob("*/*/result.json"):
        record = json.loads(file.read_text())
        (row,) = record["rows"]
        found[record["coordinates"]["estimator"], record["coordinates"]["reward"]] = row
    return found


def agrees(one, row):
    assert set(one.costs) == set(STEPS)
    for name, cost_of in costs(one):
        assert cost_of.flops == pytest.approx(row["flops"][name], rel=1e-3), name
        assert cost_of.live == pytest.approx(row["peaks"][name]["live"], rel=0.08), name
        held = row["peaks"][name]["allocated"] - row["peaks"][name]["live"]
        assert cost_of.weights == pytest.approx(held, rel=0.1)
        assert sum(cost_of.stages.values()) == cost_of.flops


def test_it_agrees_with_what_an_h200_measured():
    planned, _ = cells("cost-dps")
    wanted = [c for c in planned if c.coordinates["world"].startswith("SD 3.5 Medium")]
    rows = measured_on_h200()
    agrees(next(predicted(wanted)), rows["DPS + StitchVM", "clip"])


@pytest.mark.slow
def test_it_agrees_with_all_that_an_h200_measured():
    planned, _ = cells("cost-dps")
    wanted = [c for c in planned if c.coordinates["world"].startswith("SD 3.5 Medium")]
    rows, found = measured_on_h200(), list(predicted(wanted))
    assert len(found) == len(rows) == 9
    for one in found:
        where = one.cell.coordinates
        agrees(one, rows[where["estimator"], where["reward"]])


def costs(one):
    return one.costs.items()


@pytest.mark.parametrize(
    "estimator",
    ["DPS + StitchVM", pytest.param("DPS, stop-gradient", marks=pytest.mark.slow)],
)
def test_it_agrees_with_what_the_shapes_world_measures(estimator, monkeypatch):
    planned, _ = cells("table1", reward=["clip"])
    cell = next(c for c in planned if c.coordinates["estimator"] == estimator)
    (fused,) = predicted([cell])
    with monkeypatch.context() as patched:  # a CPU's fused kernel is not counted: products are
        patched.setattr("bench.predicted.fused", nullcontext)
        (products,) = predicted([cell])
    for (name, one), (_, other) in zip(costs(fused), costs(products), strict=True):
        place = Place.of(cell.spec, cell.spec.protocol, "cpu")
        steps = place.steps(place.algorithm)
        call = steps.of_batch(1)[name]
        call()  # prompts are encoded once
        assert other.flops == pytest.approx(count_flops(call), rel=0.001), name
        peak = peak_bytes(call, torch.device("cpu"), iter(steps.weights))["live"]
        assert one.live == pytest.approx(peak, rel=0.15), name


def test_a_linear_layer_by_hand():
    with torch.device("meta"):
        layer, x = torch.nn.Linear(100, 50, bias=False), torch.empty(8, 100)
    found = cost(lambda: layer(x), [*layer.parameters(), x])
    assert found.flops == 2 * 8 * 100 * 50
    assert found.live == 2048  # 8 x 50 x 4 bytes, in blocks of 512
    assert found.weights == 4 * (100 * 50 + 8 * 100)


def test_attention_keeps_no_scores():
    q = torch.empty(1, 4, 4096, 64, device="meta", requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention

    def call():
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()

    assert cost(call, [q]).live < 4 * 4096 * 4096
    assert torch.nn.functional.scaled_dot_product_attention is attend


def test_attention_with_a_mask_is_not_guessed_at():
    q = torch.empty(1, 1, 8, 64, device="meta")
    with pytest.raises(ValueError, match="without a mask"):
        cost(
            lambda: torch.nn.functional.scaled_dot_product_attention(
                q, q, q, attn_mask=q[..., :8]
            ),
            [q],
        )


SMALL = {"name": "small", "build": "sd35-medium", "side": 64, "blocks": 2}


@pytest.mark.parametrize("estimator", ["DPS + StitchVM", "DPS, recomputed by block"])
def test_operators_asked_once_make_what_they_make(estimator, monkeypatch):
    planned, _ = cells("table1", {**SMALL, "blocks": 4}, reward=["clip"])
    wanted = [c for c in planned if c.coordinates["estimator"] == estimator]
    list(predicted(wanted))  # texts of a reward are drawn once a process, and kept
    (remembered,) = predicted(wanted)
    monkeypatch.setattr(Answers, "_run", lambda _, func, args, kwargs, __: func(*args, **kwargs))
    (plain,) = predicted(wanted)
    assert remembered.costs == plain.costs


def test_numbers_of_times_are_carried_along():
    with Answers():
        times = torch.linspace(1, 0, 5, dtype=torch.float64).to("meta")
        t, s = times[1].expand(3), times[2].expand(3)
        assert float(times[1] * 2) == 1.5
        assert torch.equal(t, times[1:2].repeat(3))
        assert not torch.equal(t, s)
        assert not torch.equal(t[[0, 1]], s[[0, 1]])
        unknown = torch.empty(3, device="meta") == 0
        assert not bool((unknown & (t == s)).any())
        unknown &= t == t.clone()
        assert bool(unknown.all())
        t.clone().add_(torch.empty((), device="meta"))
        assert (torch.empty(2, device="meta") + 1).cpu().tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("proposals", [1, 3])
def test_a_steered_sample_runs_the_blocks_that_it_runs(proposals, monkeypatch):
    steer = {"name": "FK", "build": "steer", "proposals": proposals, "propose_until": 2,
             "resample_first": 2, "resample_last": 4}  # fmt: skip
    planned, _ = cells("table2", SMALL, reward=["clip"], algorithm=[steer], steps=[5],
                       estimator=[{"name": "x", "build": "untrained", "i": 1}])  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("bench.predicted.fused", nullcontext)
        (one,) = predicted(planned[:1])
    monkeypatch.setattr("bench.asked.META", "cpu")
    what = asked(planned[0].spec)
    assert count_flops(what.calls["sample"]) == one.costs["sample"].flops


@pytest.mark.slow
def test_values_of_noisy_latents(monkeypatch):
    spec = cells("table1", SMALL, reward=["clip"])[0][0].spec
    value = PROTOCOLS["value"]()
    for build, settings in {
        "untrained": {"i": 1, "j": 1, "condition": "null"},
        "tweedie": {"cfg": 4.5, "reuse": True},
        "monte_carlo": {"particles": 2, "steps": 3},
    }.items():
        part = Part(build=build, settings=settings)
        mine = spec.model_copy(update={"task": "value", "estimator": part, "protocol": value})
        cell = Cell(spec=mine, suite="x", coordinates={}, quick=False)
        with monkeypatch.context() as patched:
            patched.setattr("bench.predicted.fused", nullcontext)
            (one,) = predicted([cell])
        with monkeypatch.context() as patched:
            patched.setattr("bench.asked.META", "cpu")
            call = asked(mine).calls["value"]
            call()
        assert count_flops(call) == one.costs["value"].flops, build


def cost_cell(suite, estimator, **changes):
    few = {"rounds": [2], "batches": [(2,)], "batch": [2], "images": [8], "probes": [5]}
    planned, _ = cells(suite, "shapes", reward=["clip"], **few, **changes)
    return next(c for c in planned if c.coordinates["estimator"] == estimator)


@pytest.mark.parametrize(
    ("suite", "estimator"),
    [
        ("cost-estimators", "StitchVM 1,1"),
        *(
            pytest.param(suite, estimator, marks=pytest.mark.slow)
            for suite, estimator in (
                ("cost-estimators", "StitchVM 4,4"),
                ("cost-estimators", "Tweedie"),
                ("cost-estimators", "Tweedie, the sampler's velocity"),
                ("cost-estimators", "MC N = 1, k = 10"),
                ("cost-stitch", "StitchVM 4,1"),
            )
        ),
    ],
)
def test_costs_are_those_that_the_task_records(suite, estimator, monkeypatch):
    cell = cost_cell(suite, estimator)
    monkeypatch.setattr("bench.predicted.fused", nullcontext)
    (one,) = predicted([cell])
    found = cost_task.run(cell.spec).rows
    assert len(found) == len(one.beside) == len(one.own)
    for row in found:
        call = f"{row['what']}, batch 2"
        against = one.beside[call]
        assert against == f"{call}, {row['against']}"
        assert one.costs[call].flops == row["flops"]
        assert one.costs[against].flops == row["against_flops"]
        assert one.costs[call].live == pytest.approx(row["peak"]["live"], rel=0.2)
        assert one.costs[against].live == pytest.approx(row["against_peak"]["live"], rel=0.2)


@pytest.mark.slow
def test_a_search_is_the_passes_of_its_images(monkeypatch):
    cell = cost_cell("cost-stitch", "search")
    with monkeypatch.context() as patched:
        patched.setattr("bench.predicted.fused", nullcontext)
        (one,) = predicted([cell])
    monkeypatch.setattr("bench.asked.META", "cpu")
    calls = asked(cell.spec).calls
    assert {name: count_flops(call) for name, call in calls.items()} == {
        name: cost.flops for name, cost in one.costs.items()
    }
    both, probe = (
        one.costs[f"pass over {x} images"].flops for x in ("probe and held-out", "probe")
    )
    assert both == 2 * probe


@pytest.mark.slow
def test_what_an_optimiser_keeps_is_there_before_a_step(monkeypatch):
    monkeypatch.setattr("bench.asked.META", "cpu")
    spec = cost_cell("cost-stitch", "StitchVM 4,1").spec
    what, world = asked(spec), make_world(spec.world)
    before = what.standing()
    what.calls["training, batch 2"]()
    new = [x.shape for x in what.standing()[len(before) :] if x.ndim]
    taught = named(ESTIMATORS["untrained"](world, world.reward("clip"))).values()
    assert sorted(new) == sorted(2 * [x.shape for x in taught])  # both moments of AdamW


def test_arms_whose_pair_only_a_search_tells_are_left_out():
    planned, left = cells("table4", reward=["clip"])
    assert left == ["StitchVM cheap", "StitchVM paper", "vae_stitch", "noisy_student",
                    "feature_head"]  # fmt: skip
    search, pair = (cell.spec.estimator for cell in planned)
    assert search.build == "search"
    assert (pair.build, pair.settings["i"], pair.settings["j"]) == ("untrained", 4, 1)
    arms = plan(load("table4"), only="estimator=StitchVM cheap")
    with pytest.raises(ValueError, match="got 'stitched', which only a search or training makes"):
        next(predicted(arms))


def test_a_call_is_shown_beside_its_yardstick():
    costs = {name: Cost(flops, 1, 2, {**dict.fromkeys(STAGES, 0), "rest": 0})
             for name, flops in {"value, batch 1": 10**9, "value, batch 1, Tweedie": 4 * 10**9,
                                 "pass": 10**9}.items()}  # fmt: skip
    one = Predicted(cost_cell("cost-stitch", "search"), costs,
                    {"value, batch 1": "value, batch 1, Tweedie"})  # fmt: skip
    value, alone = pd.DataFrame(table_rows(one)).pipe(table, None).splitlines()[1:]
    assert "1.00 G Tweedie   0.250" in value
    assert value.split()[-1] == "B"
    assert "pass 1.00 G" in alone
    assert "nan" not in alone.lower()


def test_a_column_that_some_rows_lack_is_empty_there():
    whole = {**dict.fromkeys(STAGES, 0), "rest": 0}
    costs = {name: Cost(10**9, 10, 2, whole) for name in ("guided", "unsteered", CLASSIC)}
    cell = cells("table1", SMALL, reward=["clip"])[0][0]
    shown = [Predicted(cell, {n: c for n, c in costs.items() if n != left}, {})
             for left in ("nothing", CLASSIC)]  # fmt: skip
    both, without = pd.DataFrame(chain(*map(table_rows, shown))).pipe(table, None).splitlines()[1:]
    assert both.count("1.00") > without.count("1.00") > 0
    assert "nan" not in without.lower()


def test_what_is_not_on_meta_is_switched_off_alone():
    with unfused() as made:
        weight = torch.nn.Parameter(torch.empty(2, device="meta"))
        one = torch.optim.AdamW([weight], fused=True)
        assert made == [one]
        with torch.autocast("meta", torch.bfloat16, enabled=False):
            pass
        with pytest.raises(RuntimeError, match="unsupported autocast device_type 'meta'"):
            torch.autocast("meta", torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd35-medium", "sd35-large"])
def test_memory_of_the_papers_table(model):
    for row in rows(model, Answers()):
        assert row.bytes_of(row.dps) / 1e9 == pytest.approx(row.paper_dps[0], rel=0.05)
        low, high = (2.755, 3.85) if model == "sd35-medium" else (2.38, 3.40)
        assert low <= row.flops_over[0] <= row.flops_over[1] <= high


def test_questions_are_answered_where_there_are_no_numbers_only():
    here, there = torch.tensor([1.0, float("nan")]), torch.empty(2, device="meta")
    with Answers():
        assert not bool(here.isfinite().all())
        assert bool(there.isfinite().all())
        assert not torch.equal(here, here + 1)
        assert torch.equal(there, there + 1)


def test_a_shared_trunk_that_forgot_goes_on_from_nothing():
    backbone = SharedTrunk(BUILDS["sd35-medium"](side=32, blocks=2).backbone)
    z, t = torch.randn(1, *backbone.latent), torch.tensor(0.5)
    with torch.no_grad():
        backbone.trunk(z, t, 1, ["a"])
        short = count_flops(lambda: backbone.velocity(z, t, ["a"]))
        backbone.trunk(z, t, 1, ["a"])
        backbone.forget()
        assert count_flops(lambda: backbone.velocity(z, t, ["a"])) > 1.5 * short


def test_trained_models_become_shapes_or_are_left_out():
    planned, left = cells("table1", "sd35-medium")
    builds = {cell.spec.estimator.build for cell in planned}
    assert builds == {"untrained", "tweedie"}
    assert left == ["DPS + VAE stitch", "DPS + noisy student", "DPS + feature head"]
    seen = {c.coordinates["estimator"]: c.spec.estimator.settings for c in planned}
    assert seen["DPS + StitchVM"]["condition"] == "null"
    assert seen["DPS + StitchVM, trunk sees the prompt"]["condition"] == "prompt"
    assert all(c.spec.protocol.samples == c.spec.protocol.trials == 0 for c in planned)


def test_the_table_says_what_fits(tmp_path):
    out = tmp_path / "costs.csv"
    only = "world~Medium & reward=clip & estimator~DPS, weights"
    found = said("cost-dps", "--only", only, "--memory", "40GB", "--out", out)
    assert "fits in 40 GB" in found
    assert "random weights, clip reward" in found
    assert "42 GB no" in found
    assert "1.38" in out.read_text()


def test_cells_that_cannot_be_predicted_are_named_beside_the_others():
    found = said("quickstart", "--only", "estimator=constant")
    assert "not predicted, 2 cells of gaussian (constant): expected a world whose" in found
    assert "shapes, aesthetic reward" in found
    assert "constant value 0.00 M" in found
    assert "nan" not in found  # a share of no FLOPs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table5"], "expected a suite of a task in align, value, train, cost"),
        (["steer-gaussian"], "run on shapes alone, got 'gaussian'"),
        (["cost-dps", "--memory", "much"], "got 'much'"),
        (["cost-dps", "--set", "reward"], "expected --set AXIS=V1,V2, got 'reward'"),
        (["cost-dps", "--only", "reward=none"], "expected some cells, got none"),
        (["cost-dps", "--world", "sd35"], "unknown world 'sd35'"),
    ],
)
def test_refusals(arguments, message):
    assert message in said(*arguments, code=2)
