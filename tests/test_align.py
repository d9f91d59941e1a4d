"""The align task: samples judged, strengths tuned, distances by closed forms, pages, refusals."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from bench import suite as suites
from bench import tuning
from bench.algorithms import guide, steer_by
from bench.cell import identity
from bench.cli import cli
from bench.how import INLINE
from bench.metrics.align import diversity, energy, mmd
from bench.plan import plan
from bench.protocols import AlignProtocol
from bench.report import sheet as sheets
from bench.report.align import claims, saving, tables
from bench.report.align.frame import judged, tidy
from bench.report.align.insight import points
from bench.report.align.sheet import SHEET
from bench.run import run
from bench.store import Store
from bench.tasks import align as task

SUITE = """
name: mine
about: A small one.
minutes: 1
task: align
isolation: inline
defaults:
  world: {name: gaussian, build: gaussian, prompts: 3, latent: [2, 2, 2], components: 2, rank: 2}
  reward: linear
  kernel: sigma
  steps: 6
  cfg: 2.0
  samples: 4
  trials: 0
  strength: 2.0
  drawn: 16
  rounds: 0
  keep: true
axes:
  method:
    - {algorithm: sample, estimator: none}
    - algorithm: {build: guide, first: 0.9}
      estimator: {name: DPS, build: tweedie, cfg: 2.0}
    - algorithm:
        {build: steer, resample_first: 2, resample_last: 6, proposals: 2, propose_until: 3}
      estimator: {name: FKS, build: linear_stitch}
    - {algorithm: {build: best_of_n, particles: 3}, estimator: {name: BoN, build: none}}
"""
SHAPES = """
name: mine
about: A small one.
minutes: 1
task: align
isolation: inline
defaults:
  world: {name: shapes, build: shapes, per_kind: 1}
  reward: aesthetic
  steps: 2
  cfg: 2.0
axes:
  method:
    - algorithm: {build: guide, profile: constant, normalise: rms}
      estimator: {name: DPS + StitchVM, build: stitched}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("align")


@pytest.fixture(scope="module")
def store(folder):
    """A store with every algorithm in the Gaussian world."""
    (folder / "mine.yaml").write_text(SUITE)
    found = Store(folder / "store")
    counts = run(plan(suites.load(str(folder / "mine.yaml"))), found, INLINE)
    assert counts == {"ok": 4, "error": 0, "before": 0}
    return found


def cells(tmp_path, text, **changes):
    (tmp_path / "mine.yaml").write_text(text)
    return plan(suites.load(str(tmp_path / "mine.yaml")), changes=changes)


def rows_of(store, name, phase):
    record = next(r for r in store.records() if r["coordinates"]["estimator"] == name)
    return next(row for row in record["rows"] if row["phase"] == phase)


# distances


def test_energy_distance_of_points_by_hand():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert energy(x, y) == pytest.approx(2 * (1 + 4 + 1 + 2) / 4 - 2 - 3)


def test_distances_are_unbiased_and_see_a_shift():
    generator = torch.Generator().manual_seed(0)

    def draws(shift):
        x = torch.randn(400, 5, 3, generator=generator, dtype=torch.float64)
        y = torch.randn(400, 8, 3, generator=generator, dtype=torch.float64) + shift
        return x, y

    for distance in (energy, mmd):
        for shift, shifted in ((0.0, False), (2.0, True)):
            found = np.array([distance(*pair) for pair in zip(*draws(shift), strict=True)])
            z = found.mean() / (found.std(ddof=1) / 20)
            assert (abs(z) < 4) != shifted, (distance, shift, z)
            assert not shifted or z > 10


def test_diversity_is_half_the_mean_squared_distance():
    assert diversity(torch.eye(3)) == pytest.approx(1.0)  # 1 - cosine of orthogonal vectors
    assert math.isnan(diversity(torch.eye(3)[:1]))


def test_distances_refuse_a_single_sample():
    with pytest.raises(ValueError, match="at least 2 samples and 2 draws, got 1 and 3"):
        energy(torch.zeros(1, 2), torch.zeros(3, 2))


# strengths


def trial(strength, target, feasible=True):  # noqa: FBT002
    return {"strength": strength, "feasible": feasible, "metrics": {"target": [target]}}


PROTOCOL = AlignProtocol(strength=1.0, factor=4.0)


def test_the_first_three_strengths_span_a_factor():
    trials = [trial(1.0, 0.0), trial(0.25, 0.0)]
    assert [tuning.next_strength(trials[:k], PROTOCOL) for k in range(3)] == [1.0, 0.25, 4.0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [((0, 1, 2), 16.0), ((2, 1, 0), 0.0625), ((0, 2, 1), 2.0)],
    ids=["best at the upper end", "at the lower end", "inside"],
)
def test_trials_go_on_beyond_an_end_or_beside_the_best(targets, expected):
    tried = [trial(s, t) for s, t in zip((0.25, 1.0, 4.0), targets, strict=True)]
    assert tuning.next_strength(tried, PROTOCOL) == expected


def test_a_strength_that_loses_the_prompt_is_not_chosen():
    trials = [trial(0.25, 0), trial(1.0, 1), trial(4.0, 2, feasible=False)]
    assert tuning.chosen(trials)["strength"] == 1.0
    assert tuning.next_strength(trials, PROTOCOL) == 2.0  # nearer the one that is not allowed


def test_where_none_is_allowed_the_weakest_is_taken():
    assert tuning.chosen([trial(4.0, 2, False), trial(1.0, 1, False)])["strength"] == 1.0


def test_strengths_are_tuned_on_their_own_prompts(tmp_path):
    changes = {"samples": [2], "tune_samples": [2], "trials": [3], "rounds": [0]}
    (cell,) = cells(tmp_path, SHAPES, **changes)
    rows = task.run(cell.spec).rows
    phases = [row["phase"] for row in rows]
    assert phases == ["unsteered tune", "unsteered", "tune", "tune", "tune", "eval"]
    tune, judged_on = set(rows[2]["prompts"]), set(rows[-1]["prompts"])
    assert len(tune) == len(judged_on) == 6
    assert not tune & judged_on
    best = tuning.chosen(rows[2:5])
    assert rows[-1]["strength"] == best["strength"]
    shown = np.mean(rows[0]["metrics"]["correct"]) - 0.01
    assert all(r["feasible"] == (np.mean(r["metrics"]["correct"]) >= shown) for r in rows[2:5])
    assert set(rows[-1]["metrics"]) >= {"target", "clip", "hps", "pick", "correct", "diversity"}
    assert rows[-1]["metrics"]["target"] == rows[-1]["metrics"]["aesthetic"]


# what is measured


def test_unsteered_samples_are_the_same_in_every_cell(store):
    found = [
        next(row for row in record["rows"] if row["phase"] == "unsteered")["metrics"]
        for record in store.records()
    ]
    assert len(found) == 4
    assert all(metrics == found[0] for metrics in found)


def test_best_of_n_is_at_least_its_first_sample_which_is_the_unsteered_one(store):
    record = next(r for r in store.records() if r["coordinates"]["estimator"] == "BoN")
    arrays = store.samples(record["id"], record["attempt"])
    assert (arrays["target"] >= arrays["unsteered_target"] - 1e-12).all()
    assert (arrays["target"] > arrays["unsteered_target"]).any()


def test_kept_latents_give_the_recorded_rewards(store):
    from bench.worlds.gaussian import GaussianWorld  # noqa: PLC0415

    world = GaussianWorld(prompts=3, latent=(2, 2, 2), components=2, rank=2)
    record = next(r for r in store.records() if r["coordinates"]["estimator"] == "DPS")
    arrays, row = store.samples(record["id"], record["attempt"]), record["rows"][-1]
    c = [text for text in row["prompts"] for _ in range(4)]
    z_0 = torch.from_numpy(arrays["z_0"])
    reward = world.reward("linear")(world.backbone.decode(z_0), c)
    assert np.allclose(reward.numpy(), arrays["target"], atol=1e-12)
    assert np.allclose(arrays["target"].reshape(3, 4).mean(1), row["metrics"]["target"])


def test_the_target_of_a_strength_is_that_of_its_lambda(store):
    row = rows_of(store, "FKS", "eval")
    assert row["lam"] == pytest.approx(2.0 / row["spread"])
    assert {"energy", "energy_floor", "mmd", "mmd_floor", "excess"} <= set(row["metrics"])


def test_seconds_and_calls_are_per_sample(store):
    plain, best = (rows_of(store, "BoN", phase) for phase in ("unsteered", "eval"))
    assert plain["calls"]["velocity"] == 2 * 6
    assert best["calls"]["velocity"] == 3 * 2 * 6
    assert best["calls"]["decode"] == 3
    assert sum(plain["rows"]) == sum(best["rows"]) == plain["samples"] == 12
    assert len(plain["seconds"]) == len(plain["rows"])


def test_batch_size_changes_no_sample(tmp_path, store):
    for cell in cells(tmp_path, SUITE, batch=[1]):
        found = task.run(cell.spec)
        name = cell.coordinates["estimator"]
        record = next(r for r in store.records() if r["coordinates"]["estimator"] == name)
        arrays = store.samples(record["id"], record["attempt"])
        for key in ("z_0", "unsteered_z_0"):
            if key in arrays:
                assert np.allclose(found.arrays[key], arrays[key], atol=1e-8), (name, key)


def test_sharing_the_trunk_changes_no_sample(tmp_path, store):
    for cell in cells(tmp_path, SUITE, share=[False]):
        if cell.coordinates["estimator"] == "none":
            continue
        found, name = task.run(cell.spec), cell.coordinates["estimator"]
        record = next(r for r in store.records() if r["coordinates"]["estimator"] == name)
        arrays = store.samples(record["id"], record["attempt"])
        assert np.allclose(found.arrays["z_0"], arrays["z_0"], atol=1e-9), name
        blocks = [rows[-1]["calls"]["blocks"] for rows in (found.rows, record["rows"])]
        assert blocks[0] > blocks[1] or name == "BoN"


def test_classic_dps_is_left_out_where_it_is_not_asked_for(tmp_path):
    changes = {"samples": [0], "rounds": [2], "cost_batches": [[1]], "classic": [False]}
    cell = next(c for c in cells(tmp_path, SUITE, **changes) if c.label == "DPS")
    (row,) = task.run(cell.spec).rows
    for found in ("step_seconds", "flops", "peaks", "stages"):
        assert set(row[found]) == {"guided", "unsteered"}
    with_it = next(c for c in cells(tmp_path, SUITE, samples=[0]) if c.label == "DPS")
    said = identity(with_it.spec.model_dump(mode="json"))
    silent = with_it.spec.model_dump(mode="json")
    silent["protocol"].pop("classic")  # a record of before there was a choice
    assert identity(silent) == said != cell.id


def test_a_guided_step_is_timed_beside_two_yardsticks(tmp_path):
    changes = {"samples": [0], "rounds": [2], "cost_batches": [[1, 3]]}
    cell = next(c for c in cells(tmp_path, SUITE, **changes) if c.label == "DPS")
    one, three = task.run(cell.spec).rows
    assert (one["phase"], one["batch"], three["batch"]) == ("cost", 1, 3)
    assert {n: len(x) for n, x in one["step_seconds"].items()} == dict.fromkeys(
        ("guided", "unsteered", "classic DPS"), 2
    )
    # Tweedie's velocity is the sampler's own: no blocks beside those of a step.
    assert three["calls"]["blocks"] == 2 * 4
    assert three["peaks"]["guided"]["live"] == three["peaks"]["classic DPS"]["live"]
    # Both ask the generator, the decoder and the reward, and only the guided one goes back.
    for name, stages in one["stages"].items():
        spent = {stage: min(x) for stage, x in stages.items()}
        assert {len(x) for x in stages.values()} == {2}
        guided = name != "unsteered"
        for stage in ("decode", "reward", "backward"):
            assert (spent[stage] > 0) == guided, (name, stage)
        assert min(spent["blocks"], spent["rest"]) > 0
        assert spent["tail"] == 0


def test_errors_are_measured_against_the_truth(tmp_path):
    changes = {"errors": [[0.5]], "estimator": [{"name": "truth", "build": "truth"}]}
    text = SUITE.partition("    - algorithm:\n        {build: steer")[0]
    text = text.replace("    - {algorithm: sample, estimator: none}\n", "")
    (cell,) = cells(tmp_path, text, **changes)
    row = next(r for r in task.run(cell.spec).rows if r["phase"] == "error")
    assert row["sigma"] == 0.5
    assert np.allclose(row["metrics"]["rank"], 1.0)
    assert np.allclose(row["metrics"]["cosine"], 1.0)
    assert np.allclose(row["metrics"]["squared"], 0.0)


# what goes wrong


def test_latents_that_do_not_stay_finite_end_the_cell_as_diverged(tmp_path):
    (cell,) = [
        c for c in cells(tmp_path, SUITE, strength=[1e308], unit=["reward"]) if c.label == "DPS"
    ]
    store = Store(tmp_path / "store")
    assert run([cell], store, INLINE) == {"ok": 0, "error": 1, "before": 0}
    (record,) = store.records()
    assert record["status"] == "diverged"
    assert record["reason"].startswith("expected finite latents")  # the status says the rest
    assert "after step 2 of 6" in record["reason"]
    assert "norm" in record["reason"]


def test_a_trial_that_diverges_is_recorded_and_not_chosen(tmp_path):
    changes = {"samples": [2], "trials": [3], "rounds": [0], "strength": [1e38], "factor": [1e37]}
    (cell,) = cells(tmp_path, SHAPES, **changes)
    rows = task.run(cell.spec).rows
    tried = {row["strength"]: row for row in rows if row["phase"] == "tune"}
    assert "of 2 (t = " in tried[1e38]["diverged"]
    assert not tried[1e38]["feasible"]
    assert rows[-1]["strength"] < 1e38


@pytest.mark.parametrize(
    ("changes", "method", "message"),
    [
        ({"kernel": ["ode"]}, "FKS", "expected a stochastic sampler"),
        ({"trials": [3]}, "DPS", "no prompts to tune on"),
        ({"samples": [1]}, "DPS", "at least 2 samples a prompt whose rewards differ"),
        ({"estimator": ["none"]}, "none", "expected a value estimator for this algorithm"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, method, message):
    found = [c for c in cells(tmp_path, SUITE, **changes) if c.label == method]
    cell = next(c for c in found if c.coordinates["algorithm"] != "sample")
    with pytest.raises(ValueError, match=message):
        task.run(cell.spec)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guide(first=0.2, last=0.5), "window 1 >= first >= last >= 0, got 0.2 to 0.5"),
        (lambda: steer_by(particles=0), "particles >= 1, got 0"),
        (lambda: steer_by(proposals=0), "proposals >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("{build: guide, first: 0.01, last: 0.0}", "a window that holds a step"),
        ("{build: guide, every: 9}", "n in 1..6, the steps, got 9"),
        ("{build: steer, resample_first: 2, resample_last: 9}", "within steps 1..6"),
    ],
)
def test_windows_outside_the_schedule_are_refused_before_anything_runs(
    tmp_path, monkeypatch, algorithm, message
):
    text = SUITE.replace("{build: guide, first: 0.9}", algorithm)
    cell = next(c for c in cells(tmp_path, text) if c.label == "DPS")
    monkeypatch.setattr(task, "judged", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        task.run(cell.spec)


def test_an_estimator_without_a_gradient_cannot_guide(tmp_path):
    text = SUITE.replace("{name: DPS, build: tweedie, cfg: 2.0}", "{name: DPS, build: constant}")
    cell = next(c for c in cells(tmp_path, text) if c.label == "DPS")
    with pytest.raises(ValueError, match="expected a differentiable estimator, got Constant"):
        task.run(cell.spec)


# what is shown


def test_tables_compare_methods_by_prompt(store):
    frame = tidy(store.records())
    assert list(judged(frame)["method"]) == ["none", "DPS", "FKS", "BoN"]
    shown = tables.methods(frame).set_index("method")
    row, base = (rows_of(store, "BoN", phase)["metrics"] for phase in ("eval", "unsteered"))
    gain = np.mean(row["target"]) - np.mean(base["target"])
    assert shown.loc["BoN", "gain"].startswith(f"{gain:.2f}"[:3])
    assert shown.loc["none", "gain"] == "\u2013"


def test_the_page_has_tables_and_figures(store, folder):
    result = CliRunner().invoke(cli, ["report", str(store.path), "--out", str(folder / "page")])
    assert result.exit_code == 0, result.output
    page = (folder / "page" / "index.html").read_text()
    assert "What steering gains, and what it costs" in page
    assert "Samples on prompts that nothing was chosen on" in page
    names = {path.name.rpartition("-")[2] for path in (folder / "page" / "plots").glob("*.png")}
    assert {"quality.png", "particles.png", "target.png"} <= names


def test_a_store_of_timed_steps_alone_has_a_page_of_stages(tmp_path):
    changes = {"samples": [0], "rounds": [2], "cost_batches": [[1]]}
    timed = [c for c in cells(tmp_path, SUITE, **changes) if c.label == "DPS"]
    found = Store(tmp_path / "store")
    assert run(timed, found, INLINE)["ok"] == 1
    result = CliRunner().invoke(
        cli, ["report", str(found.path), "--out", str(tmp_path / "page")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    names = {path.name.rpartition("-")[2] for path in (tmp_path / "page" / "plots").glob("*.png")}
    assert names == {"steps.png", "stages.png"}
    [row] = tables.stages(tidy(found.records())).query("method == 'DPS'").to_dict("records")
    parts = [float(row[stage]) for stage in ("blocks", "decode", "reward", "backward", "rest")]
    assert sum(parts) == pytest.approx(float(row["all"]), abs=0.03)


def test_a_judge_is_added_without_generating_again(store, folder, monkeypatch):
    (folder / "bright.py").write_text(
        '"""How bright a picture is."""\n'
        "def build(world):\n    return lambda x, c: x.flatten(1).mean(1)\n"
    )
    monkeypatch.setattr(task, "judged", lambda *_: pytest.fail("it generated"))
    before = {p: p.read_bytes() for p in store.path.rglob("result.json")}
    judge = str(folder / "bright.py")
    result = CliRunner().invoke(cli, ["rescore", str(store.path), "--judge", judge])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("4 of 4 cells scored; `stitchbench table")
    assert {p: p.read_bytes() for p in store.path.rglob("result.json")} == before
    assert "bright" in tables.methods(tidy(store.records())).columns


def test_rescoring_needs_samples_that_were_kept(store, monkeypatch):
    monkeypatch.setattr("bench.rescore.rescore", lambda *_: [("a", False), ("b", False)])
    result = CliRunner().invoke(cli, ["rescore", str(store.path), "--judge", "linear"])
    assert result.exit_code == 2
    assert "expected some cell with kept samples (`keep: true` in a suite), got 2 without" in (
        result.output
    )
    assert "shows the judge" not in result.output


def test_rescoring_names_the_judges_it_knows(store):
    result = CliRunner().invoke(cli, ["rescore", str(store.path), "--judge", "linaer"])
    assert result.exit_code != 0
    assert "unknown judge 'linaer'" in result.output


def test_savings_are_interpolated_between_measured_points():
    rewards, seconds = np.array([0.0, 1.0, 3.0]), np.log([1.0, 2.0, 8.0])
    assert saving._saved(1.0, rewards, seconds, 1.0) == pytest.approx(0.5)
    assert saving._saved(2.0, rewards, seconds, 1.0) == pytest.approx(1 - 1 / 4)
    assert math.isnan(saving._saved(3.5, rewards, seconds, 1.0))
    assert math.isnan(saving._saved(-0.5, rewards, seconds, 1.0))


def test_a_frame_without_windows_has_no_insight(store):
    assert points(tidy(store.records())).empty


def test_tables_are_written_without_lists(store, folder):
    frame = tidy(store.records())
    sheets.write_tables(SHEET, frame, folder / "tables")
    header = (folder / "tables" / "rows.csv").read_text().partition("\n")[0]
    assert "target_lo" in header
    assert "by_prompt" not in header
    assert "log" not in header.split(",")


@pytest.mark.parametrize("name", ["table1", "table2", "fig3", "insight", "steer-gaussian"])
def test_shipped_suites_resolve(name):
    for quick in (False, True):
        found = plan(suites.load(name), quick=quick)
        assert found
        assert len({json.dumps(cell.coordinates) for cell in found}) == len(found)


def test_rivals_with_as_many_particles_are_compared():
    rows = pd.DataFrame({
        "method": ["ours 2", "ours 8", "fks 2", "fks 8", "bon 8", "bon 4"],
        "algorithm_build": ["steer"] * 4 + ["best_of_n"] * 2,
        "estimator_build": ["stitched"] * 2 + ["tweedie"] * 2 + ["none"] * 2,
        "algorithm.particles": [2, 8, 2, 8, 8, 4],
    })  # fmt: skip
    ours, rivals = rows[:2], rows[2:]
    mine, met = claims._as_many(ours, rivals)
    assert mine["method"] == "ours 8"
    assert list(met["method"]) == ["fks 8", "bon 8"]
    mine, met = claims._as_many(ours[:1], rivals)  # no number is in all: all are rivals
    assert (mine["method"], len(met)) == ("ours 2", 4)
    mine, met = claims._as_many(ours, rivals[:1])
    assert (mine["method"], list(met["method"])) == ("ours 2", ["fks 2"])
