"""Suites of costs at full size: planned as stated, rehearsed small, and no quality in them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import suite as suites
from bench.cli import cli
from bench.how import INLINE, How
from bench.plan import plan
from bench.report.align.frame import tidy
from bench.report.book import chapters
from bench.run import run
from bench.store import Store
from bench.tasks.samples import Place
from bench.worlds.full import BUILDS
from stitchvm.flops import count_flops
from stitchvm.streams import Streams

RECORDS = Path(__file__).parents[1] / "results" / "h200" / "cost-dps" / "records" / "cells"
CELLS = {"cost-dps": 15, "cost-fk": 6, "cost-nft": 3, "cost-stitch": 5, "cost-estimators": 10}
ALONE = {"cost-offload": 6}  # no part of `cost-all`
TINY = {"name": "tiny", "build": "sd35-medium", "side": 32, "blocks": 1}
GAUSSIAN = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
SMALL = {"task": "align", "about": "-", "minutes": 0.1, "isolation": "inline"}


def said(*arguments, code=0):
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


# what is planned


@pytest.mark.parametrize("name", CELLS | ALONE)
def test_a_suite_has_its_cells_and_says_that_weights_are_random(name):
    cells = plan(suites.load(name))
    assert len(cells) == (CELLS | ALONE)[name]
    for cell in (*cells, *plan(suites.load(name), quick=True)):
        assert cell.spec.world.build in BUILDS
        assert cell.spec.world.settings["weights"] == "random"
        assert cell.coordinates["world"].endswith("random weights")
    assert suites.load(name).for_gpu


@pytest.mark.parametrize("name", [name for name in CELLS | ALONE if name != "cost-dps"])
def test_a_quick_form_is_small_and_has_every_kind_of_cell(name):
    whole, quick = (plan(suites.load(name), quick=q) for q in (False, True))
    assert {c.spec.world.settings["side"] for c in quick} == {64}
    assert {c.spec.world.settings["blocks"] for c in quick} == {2}
    kinds = [{(c.spec.estimator.build, c.spec.algorithm and c.spec.algorithm.build) for c in of}
             for of in (whole, quick)]  # fmt: skip
    assert kinds[0] == kinds[1]


def test_all_suites_of_costs_are_one():
    every, whole = suites.load("cost-all"), plan(suites.load("cost-all"))
    parts = [plan(suites.load(name)) for name in every.suites]
    assert [c.id for c in whole] == [c.id for cells in parts for c in cells]
    assert len({c.id for c in whole}) == sum(CELLS.values())
    assert [c.suite for c in whole] == [name for name in CELLS for _ in range(CELLS[name])]
    minutes = sum(suites.load(name).minutes for name in every.suites)
    assert minutes <= every.minutes <= 25


def test_a_suite_of_suites_has_no_cells_of_its_own():
    of = {"name": "mine", "about": "-", "minutes": 1}
    both = suites.Suite(**of, suites=["cost-fk"], axes={"estimator": ["tweedie"]})
    with pytest.raises(ValueError, match="'mine': expected either suites or axes, got both"):
        plan(both)
    with pytest.raises(ValueError, match="'mine': expected suites of cells, got 'cost-all'"):
        plan(suites.Suite(**of, suites=["cost-all"]))


def test_what_was_measured_on_an_h200_is_not_measured_again():
    planned = {cell.id for cell in plan(suites.load("cost-dps"), device="cuda")}
    known = {file.parent.parent.name for file in RECORDS.glob("*/*/result.json")}
    assert len(known) == 9
    assert known <= planned


def test_bundles_of_a_quick_form_stand_in_place_of_the_suites():
    suite = suites.Suite(
        name="mine", about="-", minutes=1, defaults={"world": "gaussian", "reward": "linear"},
        axes={"way": [{"estimator": "tweedie"}, {"estimator": "truth"}], "prompts": [4, 6]},
        quick={"way": [{"estimator": "constant", "batch": 2}], "prompts": 3},
    )  # fmt: skip
    assert len(plan(suite)) == 4
    (cell,) = plan(suite, quick=True)
    assert cell.spec.estimator.build == "constant"
    assert (cell.spec.protocol.batch, cell.spec.protocol.prompts) == (2, 3)


# running


def test_a_cpu_is_refused_by_name_of_what_it_can_do_instead(tmp_path, monkeypatch):
    out = said("run", "cost-all", "--store", tmp_path, code=2)
    assert "expected --device cuda for 'cost-all', which is meant for one GPU of 80 GB" in out
    assert "`stitchbench run cost-all --quick`" in out
    assert "`stitchbench predict cost-all`" in out
    assert "--anyway" in out
    ran = []

    def started(cells, *_, **__):
        ran.append(len(cells))
        return {"ok": 0, "error": 0, "before": 0}

    monkeypatch.setattr("bench.run_command.run_cells", started)
    said("run", "cost-fk", "--anyway", "--store", tmp_path, code=3)
    said("run", "cost-fk", "--quick", "--store", tmp_path, code=3)
    assert ran == [6, 3]


def test_time_that_is_spent_leaves_cells_for_the_same_command(tmp_path):
    file, store = tmp_path / "small.yaml", tmp_path / "store"
    file.write_text(
        "{name: small, about: -, minutes: 1, isolation: inline, defaults: {world: {build: "
        "gaussian, latent: [2, 2, 1], prompts: 4}, reward: linear, prompts: 2, calls: 1, sigmas: "
        "[0.5], replicates: 2}, axes: {estimator: [truth, tweedie, constant]}}"
    )
    out = said("run", file, "--store", store, "--for", "0.001s", code=5)
    assert "1 cells measured, 0 were there, 0 failed, 2 left" in out
    assert "2 cells measured, 1 were there" in said("run", file, "--store", store, "--for", "9min")
    assert "got 'soon'" in said("run", file, "--store", store, "--for", "soon", code=2)


def test_no_cell_is_started_that_would_end_too_late(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bench.run.time.perf_counter", lambda: now[0])
    suite = suites.Suite(
        name="small", about="-", minutes=1, isolation="inline",
        defaults={"world": GAUSSIAN, "reward": "linear", "prompts": 2, "calls": 1,
                  "sigmas": [0.5], "replicates": 2},
        axes={"estimator": ["truth", "tweedie", "constant", "terminal"]},
    )  # fmt: skip

    def tell(progress):
        now[0] += 0 if progress.status else 4.0  # each cell takes four seconds

    counts = run(plan(suite), Store(tmp_path), How("inline", budget=11.0), tell=tell)
    assert counts == {"ok": 2, "error": 0, "before": 0, "left": 2}  # the third would end at 12


# what is measured


def walked(algorithm, estimator, **changes):
    """FLOPs of a whole sample, as its kinds of steps have it and as it runs."""
    defaults = {"world": GAUSSIAN, "reward": "quadratic", "steps": 8, "samples": 0, "rounds": 2}
    axes = {"algorithm": [algorithm], "estimator": [estimator]}
    suite = suites.Suite(name="w", **SMALL, defaults=defaults | changes, axes=axes)
    (cell,) = plan(suite)
    place = Place.of(cell.spec, cell.spec.protocol, "cpu")
    found = place.walks
    calls = found.calls()
    composed = sum(n * count_flops(calls[kind]) for kind, n in found.kinds.items())
    shape = (place.algorithm.particles, 1, *place.world.backbone.latent)
    rng = Streams.of(0, rows=1)
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = (place.setting, 1.0, z, list(place.world.prompts[:1]), rng)
    return composed, count_flops(lambda: place.algorithm.run(*given)), found.kinds


WINDOW = {"build": "steer", "resample_first": 2, "resample_last": 6, "resample_every": 2}
WIDE = {**WINDOW, "proposals": 3, "propose_until": 3}


@pytest.mark.parametrize(
    ("algorithm", "estimator", "kinds"),
    [
        (WINDOW, "tweedie", {"step": 4, "asked": 4, "end": 1}),
        (WIDE, "tweedie", {"step": 2, "asked": 3, "proposed": 3, "end": 1}),
        (WIDE, {"build": "untrained", "i": 2}, {"step": 2, "asked": 3, "proposed": 3, "end": 1}),
        ({"build": "best_of_n", "particles": 3}, "none", {"step": 8, "end": 1}),
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_a_sample_is_the_sum_of_its_kinds_of_steps(algorithm, estimator, kinds, share):
    composed, whole, found = walked(algorithm, estimator, share=share)
    assert found == kinds
    assert composed == pytest.approx(whole, rel=1e-6)


def test_weights_of_single_steps_ask_for_the_value_before_each_as_well():
    composed, whole, kinds = walked({**WINDOW, "carry": False}, "tweedie", share=False)
    assert kinds == {"step": 2, "asked": 6, "end": 1}
    assert composed == pytest.approx(whole, rel=1e-6)


def test_seconds_of_a_sample_are_those_of_its_kinds():
    def row(unsteered, step, end):
        spent = {"unsteered": unsteered, "step": step, "end": end}
        peak = dict.fromkeys(spent, {"live": 5})
        return {"phase": "walk", "unit": "CPU-second", "kinds": {"step": 40, "end": 1},
                "kind_seconds": spent, "flops": {"unsteered": 10, "step": 40, "end": 400},
                "peaks": peak, "metrics": {}}  # fmt: skip

    record = {
        "id": "x", "status": "ok", "suite": "cost-fk", "quick": False, "isolation": "process",
        "attempt": "0001", "started": "2026-01-02T03:04:05+00:00", "wall_seconds": 1.0,
        "coordinates": {"estimator": "BoN", "world": "w", "reward": "clip", "algorithm": "BoN",
                        "kernel": "sigma", "variant": ""},
        "spec": {"task": "align", "estimator": {"build": "none", "settings": {}}, "seed": 0,
                 "world": {"build": "sd35-medium", "settings": {"weights": "random"}},
                 "algorithm": {"build": "best_of_n", "settings": {"particles": 4}},
                 "protocol": {"steps": 40, "cfg": 4.5, "trials": 0}},
        "environment": {"device": "cpu", "threads": 1, "commit": "0", "dirty": False,
                        "device_name": "Test", "versions": {"python": "3", "torch": "2"}},
        "rows": [row([1.0, 1.1], [3.0, 3.3], [20.0, 22.0])],
    }  # fmt: skip
    (found,) = tidy([record]).to_dict("records")
    assert found["over_unsteered"] == pytest.approx((40 * 3 + 20) / 40)
    assert found["over_unsteered_flops"] == pytest.approx((40 * 40 + 400) / 400)
    assert found["walk_seconds"] == pytest.approx((140 + 154) / 2)
    assert found["world.weights"] == "random"


def rehearsed(name, store, world=None, only=""):
    """Records of a suite's quick form, and what is said of them."""
    changes = {} if world is None else {"world": [world]}
    suite = suites.load(name)
    suite = suite.model_copy(update={"quick": {k: v for k, v in suite.quick.items()
                                               if k != "world" or world is None}})  # fmt: skip
    cells = plan(suite, changes=changes, quick=True, only=only)
    assert run(cells, store, INLINE)["error"] == 0
    return [store.latest()[cell.id] for cell in cells]


def no_quality(records, store):
    """Hold that records have costs and nothing else, in rows and in the frame."""
    for record in records:
        assert record["spec"]["world"]["settings"]["weights"] == "random"
        for row in record["rows"]:
            assert row.get("phase", "cost") in {"cost", "walk"}
            assert not row.get("metrics")
            assert "curve" not in row
            json.dumps(row, allow_nan=False)
    for chapter in chapters(records, store):
        assert (chapter.frame["world.weights"] == "random").all()
        judged = [c for c in chapter.frame if c.endswith("_by_prompt") or c.startswith("target_")]
        assert not judged


def test_a_suite_is_rehearsed_end_to_end(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    (record,) = rehearsed("cost-fk", store, TINY, "estimator=BoN")
    no_quality([record], store)
    assert record["rows"][0]["kinds"] == {"step": 40, "end": 1}
    out = said("table", tmp_path)
    assert "A steered sample, over an unsteered one of as many steps: BoN" in out


ANSWERS = {
    "cost-nft": "A training step, over one of the published method: DiffusionNFT + StitchVM",
    "cost-estimators": "A value over Tweedie's, null prompt, hps reward, batch 1: ",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:features of block")
@pytest.mark.parametrize("name", CELLS)
def test_a_whole_suite_is_rehearsed(name, tmp_path):
    store = Store(tmp_path)
    store.prepare()
    no_quality(rehearsed(name, store), store)
    assert ANSWERS.get(name, "") in said("table", tmp_path)
    said("report", tmp_path)
