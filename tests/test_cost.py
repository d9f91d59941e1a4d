"""Costs beside a yardstick: turns on a fake clock, counts by hand, verdicts, the report."""

import pytest
import torch

from bench import suite as suites
from bench.how import INLINE
from bench.images import WorldImages
from bench.interleaved import clock_of, interleaved
from bench.plan import plan
from bench.protocols import CostProtocol
from bench.report import cost, sheet
from bench.report.claims import judged
from bench.run import run
from bench.stitching import Job, Workshop
from bench.store import Store
from bench.tasks import cost as task
from bench.worlds.shapes import shapes as shapes_world
from stitchvm.flops import count_flops
from stitchvm.search import load

PROTOCOL = CostProtocol(rounds=2, searches=2, probes=20, images=16, batch=4, batches=(1,))


class Clock:
    """Stands still but for what calls spend."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


# turns


def test_calls_are_timed_in_turns_after_one_untimed_round():
    clock, made = Clock(), []

    def call(name, spends):
        def spend():
            made.append(name)
            clock.now += spends * len(made)

        return spend

    spent = interleaved({"a": call("a", 1.0), "b": call("b", 10.0)}, 2, clock)
    assert made == ["a", "b"] * 3
    assert spent == {"a": [3.0, 5.0], "b": [40.0, 60.0]}


def test_a_cpus_time_is_this_process_alone(monkeypatch):
    monkeypatch.setattr("time.process_time", lambda: 7.0)
    assert clock_of(torch.device("cpu"))() == 7.0


@pytest.fixture
def ticking(monkeypatch):
    """Every reading of the clock is one second later: whatever is timed takes a second."""
    clock = Clock()

    def tick():
        clock.now += 1.0
        return clock.now

    monkeypatch.setattr(task, "clock_of", lambda _: tick)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    world = shapes_world()
    shop = Workshop(world, tmp_path_factory.mktemp("costs"), WorldImages(world), 16)
    shop.search("clip")
    return shop


def place(shop):
    return task.Place(shop, "clip", PROTOCOL, 0)


# what is counted


def test_flops_of_a_product_and_of_its_gradient():
    a, b = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 3 * 4 * 5
    q = torch.randn(1, 2, 6, 8)
    attended = lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert count_flops(attended) == 2 * (2 * 2 * 6 * 6 * 8)


@pytest.mark.usefixtures("ticking")
def test_a_value_is_held_against_tweedies_with_what_the_search_predicts(shop):
    rows = list(task.value_costs(place(shop), Job("clip", "stitched"), 1))
    assert [row["what"] for row in rows] == ["value", "gradient"]
    value, gradient = rows
    pair = load(shop.root / "clip" / "search-backbone").picks["cheap"]
    layer = 2 * 128 * 96 * 64 + 2 * 2 * 96 * 12 * 16  # F on 8 x 8, G on 4 x 4 tokens
    assert value["flops"] == pytest.approx(pair.cost + layer, rel=0.01)
    assert value["flops"] < 0.3 * value["against_flops"]
    assert gradient["flops"] == pytest.approx(2 * value["flops"], rel=0.1)  # weights are frozen
    assert value["seconds"] == value["against_seconds"] == [1.0, 1.0]
    assert gradient["peak"]["live"] > value["peak"]["live"] > 0
    assert gradient["against"] == "Tweedie, null prompt"
    assert gradient["unit"] == "CPU-second"


@pytest.mark.usefixtures("ticking")
def test_a_step_is_held_against_one_of_stitchvm(shop):
    row = task.step_cost(place(shop), Job("clip", "feature_head"))
    itself = task.step_cost(place(shop), Job("clip", "stitched"))
    assert (row["what"], row["batch"], len(row["seconds"])) == ("step", 4, 2)
    assert row["against_flops"] == itself["flops"] == itself["against_flops"]
    assert row["flops"] != row["against_flops"]
    assert itself["peak"]["live"] == itself["against_peak"]["live"]


@pytest.mark.usefixtures("ticking")
def test_a_search_is_held_against_a_pass_that_runs_every_block_once(shop, monkeypatch):
    ran = []
    for k, block in enumerate(shop.world.backbone.blocks, start=1):
        inside = block.forward
        seen = lambda *a, k=k, inside=inside, **kw: (ran.append(k), inside(*a, **kw))[1]  # noqa: E731
        monkeypatch.setattr(block, "forward", seen)
    images = task.clean(shop.world, "held", 3)
    task.feature_pass(shop.world.backbone, shop.world.reward("clip"), images)
    assert ran == list(range(1, shop.world.backbone.depth + 1))
    monkeypatch.setattr(task, "search", lambda *_: ran.append("search"))
    rows = list(task.search_cost(place(shop)))
    assert [row["against"] for row in rows] == [
        "pass over probe and held-out images",
        "pass over probe images",
    ]
    assert ran.count("search") == 1 + PROTOCOL.searches
    assert all(row["flops"] is None and row["peak"] is None for row in rows)


@pytest.mark.usefixtures("ticking")
def test_cells_are_kept_and_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "search", lambda *_: None)
    changes = {"searches": [2], "probes": [8], "reward": ["clip", "hps"]}
    cells = plan(suites.load("table4"), changes=changes, only="estimator=search")
    store = Store(tmp_path)
    assert run(cells[:1], store, INLINE)["ok"] == 1
    assert run(cells, store, INLINE) == {"ok": 1, "error": 0, "before": 1}
    assert store.problems == []


def test_planning_names_arms_and_picks():
    cells = plan(suites.load("table4"), only="reward=clip")
    assert [cell.label for cell in cells] == [
        "search", "StitchVM cheap", "StitchVM paper", "StitchVM 4,1", "vae_stitch",
        "noisy_student", "feature_head",
    ]  # fmt: skip
    assert [cell.spec.estimator.settings["pick"] for cell in cells[1:4]] == [
        "cheap", "paper", "4,1",
    ]  # fmt: skip
    bad = {"estimator": [{"build": "stitched", "pick": "best"}]}
    with pytest.raises(ValueError, match=r"pick: .*cheap\|paper.*, got 'best'"):
        plan(suites.load("table4"), changes=bad)


# the report


def record(estimator, build, rows, reward="clip", **settings):
    return {
        "id": f"{estimator}-{reward}", "status": "ok", "suite": "table4", "quick": False,
        "isolation": "process", "processes": 1, "started": "2026-01-02T03:04:05+00:00",
        "wall_seconds": 60.0,
        "coordinates": {"estimator": estimator, "world": "shapes", "reward": reward,
                        "variant": ""},
        "spec": {"task": "cost", "estimator": {"build": build, "settings": settings},
                 "world": {"settings": {}}, "seed": 0, "protocol": {"steps": 2000}},
        "environment": {"device": "cpu", "threads": 1, "commit": "0123abc", "dirty": False,
                        "device_name": "Test CPU", "versions": {"python": "3", "torch": "2"}},
        "rows": rows,
    }  # fmt: skip


def row(what, ratio, spread=0.01, batch=16, seconds=0.5, flops=200, **changes):
    """Ten rounds whose ratios scatter by a share round a given one."""
    scatter = [1 + spread * (-1) ** k for k in range(10)]
    memory = {"live": 1000, "process": None, "allocated": None, "reserved": None}
    return {
        "what": what, "batch": batch, "against": "Tweedie, null prompt", "unit": "CPU-second",
        "seconds": [seconds * x for x in scatter],
        "against_seconds": [seconds / ratio] * 10,
        "flops": flops, "against_flops": 1000, "peak": memory, "against_peak": memory,
    } | changes  # fmt: skip


def searched(ratio, spread=0.01, **given):
    nothing = dict.fromkeys(("flops", "against_flops", "peak", "against_peak"))
    against = [f"pass over probe {x}images" for x in ("and held-out ", "")]
    return [row("search", r, spread, 200, 40.0, against=name, **nothing)
            for r, name in zip((ratio, 2 * ratio), against, strict=True)]  # fmt: skip


def frame(search=1.3, value=0.25, spread=0.01):
    asked = [row("value", value, spread), row("gradient", value, spread), row("step", 1.0)]
    dear = [row("value", 0.6), row("gradient", 0.6), row("step", 1.8, seconds=0.9)]
    return cost.tidy([
        record("search", "search", searched(search, spread), trunk="backbone"),
        record("StitchVM cheap", "stitched", asked, pick="cheap"),
        record("StitchVM paper", "stitched", dear, pick="paper"),
    ])  # fmt: skip


def verdicts(found):
    judgements = judged(cost.SHEET.claims, cost.SHEET.split(found))
    return [verdict.in_world("shapes") for verdict in judgements]


def test_claims_hold_fail_and_stay_open():
    assert verdicts(frame()) == ["held", "held"]
    assert verdicts(frame(search=1.7, value=0.4)) == ["did not hold", "did not hold"]
    assert verdicts(frame(search=1.5, value=0.3, spread=0.3)) == ["undecided", "undecided"]
    assert (
        verdicts(frame()[lambda f: f["estimator"] == "StitchVM paper"]) == ["not tested here"] * 2
    )


def test_ratios_and_their_intervals_are_of_paired_rounds():
    one = frame(value=0.25).query("what == 'value'").iloc[0]
    assert one["ratio"] == pytest.approx(0.25, rel=1e-3)
    assert one["ratio_lo"] < 0.25 < one["ratio_hi"] < 0.253
    assert one["flop_ratio"] == 0.2
    assert one["peak_bytes"] == 1000
    assert frame().query("what == 'search'")["flop_ratio"].isna().all()


def test_the_table_stands_beside_the_papers():
    shown = cost.stitching(frame()).set_index(["where", "what"])["clip"]
    assert shown["here", "training, StitchVM cheap"] == "1000"
    assert shown["here", "training, StitchVM paper"] == "1800"
    assert shown["here", "search and training at the cheap pick"] == "1040"
    assert shown["here", "share of the search"] == "0.0385"
    assert shown["paper, 512 px", "training"] == "9.30"
    assert shown["paper, 512 px", "share of the search"] == "0.0700"


def test_the_page_says_what_was_timed_and_what_flops_predict(tmp_path):
    files, page = sheet.write(cost.SHEET, frame(), [], ["one was torn"], tmp_path)
    text = page.read_text()
    assert "takes 1.3 times the feature pass over its own images (aim: at most 1.5)" in text
    assert "clip, value, batch 16: 0.2500 [0.2481, 0.2519] times Tweedie" in text
    assert "one was torn" in text
    assert "GPU-hours in the paper" in text
    assert {p.name for p in files} >= {
        "rows.csv",
        "shapes-world-values.md",
        "shapes-world-values.png",
    }
    for name in ("search", "feature pass"):
        assert name in sheet.text(cost.SHEET, frame(), [], 120)
