"""What is predicted from shapes is what is measured."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.asked import asked
from bench.cell import Cell
from bench.cli import cli
from bench.meter import peak_bytes
from bench.numberless import Answers
from bench.part import Part
from bench.plan import plan
from bench.predict import predicted
from bench.predicted import cost
from bench.protocols import PROTOCOLS
from bench.resident import rows
from bench.shaped import untrained
from bench.suite import load
from bench.tasks.samples import Place
from bench.tasks.steps import CLASSIC
from bench.worlds.full import BUILDS
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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd35-medium", "sd35-large"])
def test_memory_of_the_papers_table(model):
    for row in rows(model, Answers()):
        assert row.bytes_of(row.dps) / 1e9 == pytest.approx(row.paper_dps[0], rel=0.05)
        low, high = (2.76, 3.85) if model == "sd35-medium" else (2.38, 3.40)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table4"], "expected a suite of a task in align, value, train"),
        (["steer-gaussian"], "run on shapes alone, got 'gaussian'"),
        (["cost-dps", "--memory", "much"], "got 'much'"),
        (["cost-dps", "--set", "reward"], "expected --set AXIS=V1,V2, got 'reward'"),
        (["cost-dps", "--only", "reward=none"], "expected some cells, got none"),
        (["cost-dps", "--world", "sd35"], "unknown world 'sd35'"),
    ],
)
def test_refusals(arguments, message):
    assert message in said(*arguments, code=2)
