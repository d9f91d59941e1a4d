"""What is predicted from shapes is what is measured."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.cli import cli
from bench.meter import peak_bytes
from bench.plan import plan
from bench.predict import predicted, untrained
from bench.predicted import Answers, cost
from bench.suite import load
from bench.tasks.align import Place
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
    for name, cost_of in costs(one):
        assert cost_of.flops == pytest.approx(row["flops"][name], rel=1e-3), name
        assert cost_of.live == pytest.approx(row["peaks"][name]["live"], rel=0.08), name
        held = row["peaks"][name]["allocated"] - row["peaks"][name]["live"]
        assert cost_of.weights == pytest.approx(held, rel=0.1)


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
    return zip(STEPS, (one.guided, one.unsteered, one.classic), strict=True)


@pytest.mark.parametrize("estimator", ["DPS + StitchVM", "DPS, stop-gradient"])
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
    assert found.endswith("42 GB no")
    assert "1.38" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["value"], "expected a suite of the align task"),
        (["table2"], "expected some cells that guide steps, got none of 'table2'"),
        (["steer-gaussian"], "run on shapes alone, got 'gaussian'"),
        (["cost-dps", "--memory", "much"], "got 'much'"),
        (["cost-dps", "--set", "reward"], "expected --set AXIS=V1,V2, got 'reward'"),
        (["cost-dps", "--only", "reward=none"], "expected some cells that guide steps"),
        (["cost-dps", "--world", "sd35"], "unknown world 'sd35'"),
    ],
)
def test_refusals(arguments, message):
    assert message in said(*arguments, code=2)
