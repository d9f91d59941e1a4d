"""The train task: curves, clocks, levels, resumption, pages, refusals."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from baselines import ESTIMATORS
from bench import suite as suites
from bench.attempt import WORK
from bench.cli import cli
from bench.how import INLINE
from bench.plan import plan
from bench.protocols import TrainProtocol
from bench.report.train import claims, tables
from bench.report.train.frame import ends, published_of, tidy
from bench.report.train.reach import first, level, reached
from bench.run import run
from bench.store import Store
from bench.tasks import train as task
from bench.trainers import TRAINERS
from bench.worlds import WORLDS
from stitchvm.align.training import PHASES, Record
from stitchvm.sample import Diverged
from stitchvm.value import Sum, Target

SUITE = """
name: mine
about: A small one.
minutes: 1
task: train
isolation: inline
defaults:
  world: {name: gaussian, build: gaussian, prompts: 12, latent: [2, 2, 2], components: 2, rank: 2}
  reward: linear+sigmoid
  steps: 5
  updates: 6
  prompts: 4
  group: 4
  known: 12
  rates: [0.05]
  every: 3
  samples: 3
  seeds: 2
  rounds: 2
axes:
  method:
    - algorithm: {name: NFT, build: nft}
      estimator: {name: NFT, build: terminal}
      pilot: true
    - algorithm: {name: NFT, build: nft, stop: [2, 3]}
      estimator: {name: NFT + linear, build: linear_stitch}
    - {algorithm: {name: DRaFT, build: draft, last: 2}, estimator: {name: DRaFT, build: terminal}}
    - algorithm: {name: DRaFT, build: draft, last: 2, stop: [2, 4]}
      estimator: {name: D + linear, build: linear_stitch}
    - algorithm: {name: GRPO, build: flow_grpo, window: 2}
      estimator: {name: GRPO, build: terminal}
"""
METHODS = ["NFT", "NFT + linear", "DRaFT", "D + linear", "GRPO"]


def cells(folder, text=SUITE, **changes):
    (folder / "mine.yaml").write_text(text)
    return plan(suites.load(str(folder / "mine.yaml")), changes=changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def store(folder):
    found = Store(folder / "store")
    counts = run(cells(folder), found, INLINE)
    assert counts == {"ok": 5, "error": 0, "before": 0}
    return found


@pytest.fixture(scope="module")
def frame(store):
    return tidy(store.records())


def rows_of(store, name):
    record = next(r for r in store.records() if r["coordinates"]["estimator"] == name)
    return record["rows"]


# what is measured


def test_every_run_is_judged_before_as_it_goes_and_at_its_end(store):
    rows = rows_of(store, "NFT")
    assert [row["phase"] for row in rows] == ["pilot", "run", "run", "cost"]
    for row in rows[:3]:
        assert [point["step"] for point in row["curve"]] == [0, 3, 6]
        assert [point["samples"] for point in row["curve"]] == [0, 48, 96]
        assert {len(x) for x in row["records"].values()} == {6}
        seconds = [point["seconds"] for point in row["curve"]]
        spent = [sum(row["records"][phase][:6]) for phase in ("rollout", "value", "update")]
        assert seconds[0] == 0 < seconds[1] < seconds[2] == pytest.approx(sum(spent))


def test_all_methods_begin_with_the_same_samples_and_seeds_differ_after(store):
    begun = {
        json.dumps(row["curve"][0]["metrics"])
        for name in METHODS
        for row in rows_of(store, name)
        if row["phase"] == "run"
    }
    assert len(begun) == 1
    one, two = (row["curve"][-1]["metrics"]["target"] for row in rows_of(store, "NFT")[1:3])
    assert one != two


def test_the_target_is_the_sum_of_the_rewards(store):
    metrics = rows_of(store, "NFT")[1]["curve"][-1]["metrics"]
    both = np.add(metrics["linear"], metrics["sigmoid"])
    assert metrics["target"] == pytest.approx(both)


def test_a_step_is_timed_beside_one_of_the_published_method(store):
    for name in METHODS:
        cost = rows_of(store, name)[-1]
        for spent in cost["step_seconds"].values():
            assert {phase: len(x) for phase, x in spent.items()} == {
                "rollout": 2, "value": 2, "update": 2,
            }  # fmt: skip
        same = cost["peaks"]["this"]["live"] == cost["peaks"]["published"]["live"]
        assert same == ("linear" not in name)


def test_a_cell_that_was_killed_goes_on_where_it_was(store, folder, tmp_path, monkeypatch):
    """In the middle of the second run: nothing before its checkpoint is done again."""
    cell = next(c for c in cells(folder) if c.label == "NFT + linear")
    steps, whole = [], task._Diary.add

    def dies(diary, record):
        steps.append(record.step)
        if len(steps) == 6 + 5:
            raise KeyboardInterrupt
        whole(diary, record)

    monkeypatch.setattr(task._Diary, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        task.run(cell.spec, "cpu", tmp_path / "work" / cell.id)
    monkeypatch.setattr(task._Diary, "add", lambda d, r: (steps.append(r.step), whole(d, r))[1])
    found = task.run(cell.spec, "cpu", tmp_path / "work" / cell.id)
    assert steps == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 4, 5, 6]
    for mine, theirs in zip(found.rows[:2], rows_of(store, "NFT + linear"), strict=False):
        for a, b in zip(mine["curve"], theirs["curve"], strict=True):
            assert a["metrics"] == b["metrics"]
        for name in ("reward", "loss", "gradient", "kl"):
            assert mine["records"][name] == theirs["records"][name]

    logs = [pd.read_csv(f) for f in sorted((tmp_path / "logs" / cell.id).glob("*/log.csv"))]
    assert [list(log["step"]) for log in logs] == [[1, 2, 3, 4, 5, 6]] * 2
    said = sorted(log["loss"].tolist() for log in logs)
    kept = sorted(row["records"]["loss"] for row in found.rows[:2])
    assert np.allclose(said, kept, rtol=1e-12)


def test_what_other_code_left_is_not_gone_on_from(folder, tmp_path):
    """A killed run whose code changed begins anew, and what it had is set aside."""
    cell = next(c for c in cells(folder) if c.label == "GRPO")
    found = Store(tmp_path)
    left = tmp_path / WORK / cell.id
    left.mkdir(parents=True)
    (left / "code.json").write_text('{"digest": "another"}')
    (left / "run-of-old").mkdir()
    assert run([cell], found, INLINE)["ok"] == 1
    [aside] = (tmp_path / WORK).iterdir()
    assert aside.name.startswith(f"{cell.id}-stale-")
    assert (aside / "run-of-old").is_dir()


def test_what_is_left_of_a_finished_cell_is_its_record(store):
    assert not list((store.path / WORK).iterdir())
    logs = list((store.path / "logs").glob("*/*/log.csv"))
    assert len(logs) == 5 * 2 + 1  # seeds of every method, and a pilot


def test_rates_are_tried_on_tune_prompts_and_the_best_is_taken(monkeypatch, tmp_path):
    world = WORLDS["gaussian"](latent=(2, 2, 2), components=2, rank=2, prompts=4)
    world.tuning = world.prompts[2:]
    monkeypatch.setattr(task, "make_world", lambda *_: world)
    (cell,) = cells(tmp_path, SUITE.partition("    - algorithm: {name: NFT, build: nft, stop")[0],
                    rates=[[1e-9, 0.05]], trial=[8])  # fmt: skip
    rows = task.run(cell.spec, "cpu", tmp_path / "work" / cell.id).rows
    assert [(row["phase"], row["rate"]) for row in rows] == [
        ("trial", 1e-9), ("trial", 0.05), ("pilot", 0.05), ("run", 0.05), ("run", 0.05),
        ("cost", 0.05),
    ]  # fmt: skip
    assert rows[0]["prompts"] == list(world.tuning)
    assert rows[2]["prompts"] == list(world.prompts)


def test_a_generator_with_lora_is_trained_by_values_of_the_larger_one(tmp_path):
    """A cell of table3 at its shortest: two rewards, two stitched values, a window of stops."""
    given = {"updates": [1], "samples": [1], "rounds": [0], "known": [4], "group": [2]}
    changes = given | {"seeds": [1], "rates": [[3e-4]], "every": [1], "prompts": [2]}
    world = {"name": "shapes", "build": "shapes", "generator": "small", "per_kind": 1}
    cell = plan(
        suites.load("table3"),
        changes=changes | {"world": [world]},
        only="estimator=DiffusionNFT + StitchVM",
    )[0]
    [row] = task.run(cell.spec, "cpu", tmp_path / "work" / cell.id).rows
    before, after = (point["metrics"] for point in row["curve"])
    assert before["target"] == pytest.approx(np.add(before["clip"], before["hps"]))
    assert set(before) == {"target", "clip", "hps", "aesthetic", "pick", "correct"}
    assert before["target"] != after["target"]
    assert row["records"]["kl"] == [0.0]  # at the first step the policy is the reference


def test_a_rate_that_diverges_is_not_taken_and_others_are(monkeypatch, tmp_path):
    world = WORLDS["gaussian"](latent=(2, 2, 2), components=2, rank=2, prompts=12)
    world.tuning = world.prompts[2:]
    monkeypatch.setattr(task, "make_world", lambda *_: world)
    text = SUITE.partition("axes:")[0] + (
        "axes:\n  method:\n    - {algorithm: {build: draft}, estimator: terminal}\n"
    )
    given = {"trial": [3], "updates": [1], "rounds": [0], "seeds": [1]}
    (cell,) = cells(tmp_path, text, rates=[[0.02, 1e160]], **given)
    rows = task.run(cell.spec, "cpu", tmp_path / "work" / cell.id).rows
    assert [(row["phase"], row["rate"]) for row in rows] == [
        ("trial", 0.02), ("trial", 1e160), ("run", 0.02)
    ]  # fmt: skip
    assert rows[1]["curve"] == []
    assert "expected finite latents" in rows[1]["diverged"]
    (cell,) = cells(tmp_path, text, rates=[[1e159, 1e160]], **given)
    with pytest.raises(Diverged, match="all of 2 learning rates"):
        task.run(cell.spec, "cpu", tmp_path / "work" / cell.id)


def test_a_figure_that_is_infinite_is_missing_in_the_record():
    figures = dict.fromkeys(Record._fields, 0.0) | {"seconds": dict.fromkeys(PHASES, 0.0)}
    diary = task._Diary([], {name: [] for name in (*task.FIGURES, *PHASES)})
    diary.add(Record(**figures | {"gradient": math.inf, "old": math.nan}))
    assert (diary.columns["gradient"], diary.columns["old"]) == ([None], [None])


# a sum of values


def test_a_sum_of_values_is_the_value_of_the_sum():
    world = WORLDS["gaussian"](latent=(2, 2, 2), components=2, rank=2, prompts=4)
    parts = [ESTIMATORS["terminal"](world, world.reward(name)) for name in ("linear", "sigmoid")]
    z = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, c = torch.tensor(0.0, dtype=torch.float64), list(world.prompts[:3])
    expected = parts[0](z, t, c) + parts[1](z, t, c)
    torch.testing.assert_close(Sum(parts)(z, t, c), expected)
    with pytest.raises(ValueError, match="one latent and one target"):
        Sum([])
    truths = [world.truth(world.reward("linear"), Target("soft", "data", 1.0)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"expected mean values to add up, got soft\(1\)"):
        Sum(truths)


# time to target


def test_the_first_time_at_a_level_lies_on_the_line_between_evaluations():
    y, x = pd.Series([0.0, 1.0, 0.5, 3.0]), pd.Series([0.0, 10.0, 20.0, 30.0])
    assert first(y, x, 0.0) == 0.0
    assert first(y, x, 0.5) == 5.0
    assert first(y, x, 0.8) == pytest.approx(21.2)  # the first time it fell below again
    assert first(y, x, 2.0) == pytest.approx(26.0)
    assert math.isinf(first(y, x, 3.1))


def curve(method, phase, run_, targets, build="terminal"):
    return [
        {"method": method, "algorithm": "A", "estimator_build": build, "phase": phase,
         "run": run_, "step": 10 * k, "seconds": float(k), "target": y,
         "target_by_prompt": y + np.array([-0.1, 0.0, 0.1]) * (k > 0)}
        for k, y in enumerate(targets)
    ]  # fmt: skip


def test_the_level_is_80_per_cent_of_the_pilots_plateau_and_misses_are_infinite():
    rows = pd.DataFrame(
        curve("P", "pilot", 0, [0, 2, 4, 6, 9, 10, 10, 10, 10])
        + curve("P", "run", 0, [0, 4, 8, 9])
        + curve("P", "run", 1, [0, 1, 2, 3])
        + curve("S", "run", 0, [0, 16, 9, 9], "stitched")
        + curve("S", "run", 1, [0, 16, 1, 1], "stitched")
    )
    assert level(rows, "A") == 8.0  # the plateau is the last two of eight
    found = {(r.method, r.run): (r.seconds, r.steps) for r in reached(rows, "A")}
    assert found["P", 0] == (2.0, 20.0)
    assert found["P", 1] == (math.inf, math.inf)
    assert found["S", 0] == (0.5, 5.0)
    assert found["S", 1] == (math.inf, math.inf)
    assert level(rows[rows["phase"] != "pilot"], "A") is None
    assert not list(reached(rows[rows["phase"] != "pilot"], "A"))


def test_a_pilot_that_gains_nothing_sets_no_level():
    rows = pd.DataFrame(curve("P", "pilot", 0, [1, 0.5, 0.4]))
    assert level(rows, "A") is None
    noisy = pd.DataFrame(curve("P", "pilot", 0, [1, 1.02]))
    assert level(noisy, "A") is None


# what is shown


def test_methods_are_compared_with_their_own_published_one(frame):
    last = ends(frame)
    of = {row["method"]: published_of(last, row) for _, row in last.iterrows()}
    assert of == {"NFT": None, "NFT + linear": "NFT", "DRaFT": None, "D + linear": "DRaFT",
                  "GRPO": None}  # fmt: skip
    assert {name for name, _, _ in tables.comparisons(frame)} == {"NFT + linear", "D + linear"}


def test_runs_of_different_budgets_do_not_mix(frame):
    from bench.report.train.sheet import SHEET  # noqa: PLC0415

    assert len(SHEET.split(frame)) == 1
    longer = frame.assign(budget="12 steps of 4 x 4 #0000", cell="other")
    assert [len(f.frame) for f in SHEET.split(pd.concat([frame, longer]))] == [len(frame)] * 2


def test_gains_are_paired_with_samples_from_before_training(store, frame):
    shown = tables.methods(frame).set_index("method").loc["GRPO"]
    runs = [row["curve"] for row in rows_of(store, "GRPO") if row["phase"] == "run"]
    ended = np.mean([np.mean(points[-1]["metrics"]["target"]) for points in runs])
    begun = np.mean(runs[0][0]["metrics"]["target"])
    assert float(shown["gain: target reward"].split()[0]) == pytest.approx(ended - begun, abs=0.05)
    assert shown["runs"] == "2"


def test_the_page_has_tables_claims_and_figures(store, folder):
    result = CliRunner().invoke(
        cli, ["report", str(store.path), "--out", str(folder / "page")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    page = (folder / "page" / "index.html").read_text()
    for title in ("What training gained", "Against the published method", "What a training step"):
        assert title in page
    assert "DRaFT with StitchVM saves at least 22 %" in page
    names = {path.name.rpartition("-")[2] for path in (folder / "page" / "plots").glob("*.png")}
    assert names == {"seconds.png", "samples.png", "phases.png"}
    told = pd.read_csv(folder / "page" / "tables" / "log.csv")
    assert len(told) == 6 * (3 + 4 * 2)  # a pilot more of one of five, 6 steps each
    row = told.query("method == 'NFT' and phase == 'run' and run == 1 and step == 4").iloc[0]
    assert row["loss"] == pytest.approx(rows_of(store, "NFT")[2]["records"]["loss"][3])


def levelled(frame):
    """The same, its pilot's gain small and alike for all prompts: few say too little otherwise."""
    rows = frame.copy()
    mine = rows.index[rows["phase"] == "pilot"]
    base = rows.loc[mine[0], "target"]
    small = [base + 0.2 * (rows.loc[k, "target"] - base) for k in mine]
    alike = [np.full(12, x) + 1e-6 * np.arange(12) for x in small]
    rows.loc[mine, "target_by_prompt"] = pd.Series(alike, mine)
    return rows


def test_time_to_target_is_told_run_by_run_and_over_the_published_method(frame):
    assert tables.reach(frame).empty
    rows = levelled(frame)
    found = {r.run: r for r in reached(rows, "NFT") if r.method == "NFT + linear"}
    theirs = {r.run: r for r in reached(rows, "NFT") if r.method == "NFT"}
    line = tables.reach(rows).set_index("method").loc["NFT + linear"]
    assert len(line["seconds"].split(", ")) == len(line["steps"].split(", ")) == 2
    for k, shown in enumerate(line["steps over published"].split(", ")):
        ratio = found[k].steps / theirs[k].steps
        assert (
            shown == "never" if math.isinf(ratio) else float(shown) == pytest.approx(ratio, 0.01)
        )


def evidence(judge, frame):
    from bench.report.train.sheet import SHEET  # noqa: PLC0415

    [facet] = SHEET.split(frame)
    return list(judge(facet))


def test_a_claim_of_time_holds_only_if_every_seed_says_so(frame):
    """NFT + linear stands for a stitched one: every seed, some, none."""
    rows = levelled(frame[frame["algorithm_build"] == "nft"])
    runs = rows["phase"] == "run"
    rows.loc[runs, "target"] = rows["target"].iloc[0] + rows.loc[runs, "step"]  # all get there
    for shares, expected in (((0.1, 0.2), True), ((0.1, 2.0), None), ((2.0, 2.0), False)):
        changed = rows.copy()
        for k, share in enumerate(shares):
            kin = changed["run"] == k
            theirs = changed[kin & (changed["method"] == "NFT") & (changed["phase"] == "run")]
            mine = kin & (changed["method"] == "NFT + linear") & (changed["phase"] == "run")
            for column in ("target", "seconds"):
                values = theirs[column].to_numpy() * (share if column == "seconds" else 1.0)
                changed.loc[mine, column] = values
        [found] = evidence(claims.sooner, changed)
        assert found.held is expected, (shares, found)


@pytest.mark.parametrize(
    ("saved", "loss", "expected"),
    [(0.4, 0.0, True), (0.4, 3.0, False), (0.1, 0.0, False), (0.22, 0.0, None)],
)
def test_a_saving_holds_where_nothing_is_clearly_lost(frame, saved, loss, expected):
    rows = frame.copy()
    timed = (rows["phase"] == "cost") & (rows["method"] == "D + linear")
    names = ["over_published", "over_published_lo", "over_published_hi"]
    rows.loc[timed, names] = (1 - saved, 1 - saved - 0.05, 1 - saved + 0.05)
    for method, less in (("DRaFT", 0.0), ("D + linear", loss)):
        mine = ends(rows).query(f"method == '{method}'").index
        rows.loc[mine, "target_by_prompt"] = pd.Series(
            [np.linspace(0.9, 1.2, 12) - less + 0.01 * k for k in range(len(mine))], mine
        )
    rows = rows[rows["algorithm_build"] == "draft"]
    [found] = evidence(claims.saves, rows)
    assert found.held is expected
    assert ("clearly lost: target" in found.figures) == (loss > 0)


# what goes wrong


def test_several_rates_need_prompts_to_choose_on(tmp_path):
    cell = cells(tmp_path, rates=[[0.1, 0.2]])[0]
    with pytest.raises(ValueError, match="expected one rate in world 'gaussian'"):
        task.run(cell.spec, "cpu", tmp_path / "work" / cell.id)


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (0.0,)])
def test_rates_are_distinct_and_above_0(rates):
    with pytest.raises(ValueError, match="distinct learning rates above 0"):
        TrainProtocol(rates=rates)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{build: nft, stop: [2, 9]}", r"stops within steps 1..5, got 2 to 9"),
        ("{build: draft, last: 6}", r"expected K in 1..5"),
        ("{build: flow_grpo, window: 5}", r"a window of 1..2 steps"),
        ("{build: nft, beta: 0}", "expected beta, most > 0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_is_judged(
    tmp_path, monkeypatch, method, message
):
    text = SUITE.partition("axes:")[0] + (
        f"axes:\n  method:\n    - {{algorithm: {method}, estimator: terminal}}\n"
    )
    (cell,) = cells(tmp_path, text)
    monkeypatch.setattr(task.School, "_judged", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        task.run(cell.spec, "cpu", tmp_path / "work" / cell.id)


def test_a_joint_reward_is_for_training_alone_and_of_known_rewards(tmp_path):
    text = SUITE.replace("task: train", "task: align").partition("  steps: 5")[0]
    align = text + "axes:\n  algorithm: [sample]\n  estimator: [none]\n"
    with pytest.raises(ValueError, match=r"linear\+sigmoid"):
        cells(tmp_path, align)
    with pytest.raises(ValueError, match="sigmoit"):
        cells(tmp_path, SUITE.replace("linear+sigmoid", "linear+sigmoit"))


def test_every_trainer_says_what_it_is(tmp_path):
    result = CliRunner().invoke(cli, ["ls", "algorithms"])
    for name in TRAINERS:
        assert name in result.output
    shutil.rmtree(tmp_path)
    assert replace(TRAINERS["nft"](stop=(2, 3))).published.stop is None
