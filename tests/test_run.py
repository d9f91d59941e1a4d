"""The value task and its runner: one seed one result, any batch size, counts by hand."""

import copy
import itertools
import mmap
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from baselines import ESTIMATORS
from bench import suite as suites
from bench.arms import ARMS, TRUNKS, Given
from bench.how import INLINE
from bench.meter import Calls, Live, high_water_mark, reset_high_water_mark
from bench.plan import plan
from bench.protocols import Protocol
from bench.run import run
from bench.store import Store
from bench.tasks import latents
from bench.worlds import WORLDS
from stitchvm.path import match_snr
from stitchvm.search import Interface, Search
from stitchvm.stitch import LinearFit
from stitchvm.streams import Streams
from stitchvm.value import value_and_gradient

TINY = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
DEFAULTS = {"world": TINY, "reward": "sigmoid", "prompts": 3, "members": 3, "calls": 1} | {
    "sigmas": [0.25, 0.75],
    "replicates": 2,
    "batch": 4,
}
RIVALS = [
    "constant",
    "tweedie",
    {"name": "mc", "build": "monte_carlo", "particles": 3, "steps": 4},
]
DEPTH = 4  # blocks of the Gaussian backbone


def planned(**changes):
    defaults = DEFAULTS | changes
    axes = {"estimator": defaults.pop("estimator", RIVALS)}
    return plan(suites.Suite(name="tiny", about="-", minutes=0.1, defaults=defaults, axes=axes))


def measured(path, **changes):
    store, cells = Store(path), planned(**changes)
    assert run(cells, store, INLINE)["error"] == 0
    records = store.latest()
    return [(records[c.id], store.samples(c.id, "0001")) for c in cells]


def without_cost(record):
    drop = {"call_seconds", "call_rows", "gradient_seconds", "gradient_rows", "peak"}
    drop.add("gradient_peak")
    return [{k: v for k, v in row.items() if k not in drop} for row in record["rows"]]


def test_two_runs_with_one_seed_give_identical_rows(tmp_path):
    first, second = measured(tmp_path / "a"), measured(tmp_path / "b")
    for (one, x), (two, y) in zip(first, second, strict=True):
        assert without_cost(one) == without_cost(two)
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_batch_size_changes_no_value(tmp_path):
    small, large = measured(tmp_path / "a", batch=2), measured(tmp_path / "b", batch=64)
    for (one, x), (two, y) in zip(small, large, strict=True):
        assert one["rows"][0]["target"] == two["rows"][0]["target"]
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=0, atol=1e-10)


def test_all_estimators_see_the_same_latents(tmp_path):
    digests = {
        tuple(row["z_digest"] for row in record["rows"]) for record, _ in measured(tmp_path)
    }
    assert len(digests) == 1


def test_another_seed_gives_other_latents():
    world = WORLDS["gaussian"](latent=(2, 2, 1), components=3, rank=2, prompts=4)
    made = [
        latents.make(world, world.reward("linear"), Protocol(prompts=2), 0.5, seed)
        for seed in (0, 0, 1)
    ]
    assert made[0].digest == made[1].digest != made[2].digest


@pytest.mark.parametrize("kind", ["data", "sampler"])
@pytest.mark.parametrize("group", ["independent", "siblings"])
@pytest.mark.parametrize("pairing", ["own", "mismatched"])
def test_latents_of_every_kind_are_batch_invariant_and_named(kind, group, pairing):
    world = WORLDS["gaussian"](latent=(2, 2, 1), components=3, rank=2, prompts=4)
    reward = world.reward("linear")
    made = [
        latents.make(
            world,
            reward,
            Protocol(
                prompts=2, groups=2, members=3, batch=batch,
                latents=kind, group=group, pairing=pairing, steps=8,
            ),
            0.5,
            0,
        )
        for batch in (1, 5, 64)
    ]  # fmt: skip
    for other in made[1:]:
        assert torch.equal(other.z_t, made[0].z_t)
        assert torch.equal(other.realised, made[0].realised)
    posterior = "prompt" if pairing == "own" else "data"
    rolled = f"reversal, 4 steps{'' if pairing == 'own' else ', null prompt'}"
    assert len({other.digest for other in made}) == 1
    assert made[0].realises == (posterior if (kind, group) == ("data", "independent") else rolled)


def test_siblings_are_closer_to_each_other_than_independent_latents():
    world = WORLDS["gaussian"]()
    spread = {}
    for group in ("independent", "siblings"):
        p = Protocol(prompts=4, members=8, group=group)
        z_t = latents.make(world, world.reward("linear"), p, 0.5, 0).z_t
        spread[group] = z_t.unflatten(0, (4, 8)).var(1).mean()
    # one transition of 1/40 at 0.5: variance nu^2 / 40 = 2 * 0.525 / 0.475 / 40 = 0.055
    assert spread["siblings"] == pytest.approx(0.055, rel=0.1)
    assert spread["independent"] > 4 * spread["siblings"]


def test_mismatched_latents_are_made_without_regard_to_the_prompt():
    """The data posterior's truth has no bias against their realised rewards; the prompt's has."""
    world = WORLDS["gaussian"]()
    reward = world.reward("linear")
    protocol = Protocol(prompts=64, members=64, pairing="mismatched", batch=512)
    made = latents.make(world, reward, protocol, 0.9, 0)
    gaps = {}
    for posterior in ("data", "prompt"):
        truth = ESTIMATORS["truth"](world, reward, posterior=posterior)
        gap = (truth(made.z_t, made.t, made.c) - made.realised).unflatten(0, (64, 64)).mean(1)
        gaps[posterior] = gap
    error = gaps["data"].std() / 8
    assert gaps["data"].mean().abs() < 3 * error
    assert gaps["prompt"].square().mean() > 1.5 * gaps["data"].square().mean()


def test_the_snr_grid_maps_noise_levels(tmp_path):
    [(record, _)] = measured(tmp_path, grid="snr", sigmas=[0.5], estimator=["tweedie"])
    assert record["rows"][0]["sigma"] == pytest.approx(match_snr(0.5, 2), rel=1e-12)
    assert record["rows"][0]["sigma_reference"] == 0.5


def test_the_realised_reward_protocol_gives_the_truths_bias_and_mse_differences(tmp_path):
    """Bias and differences of MSE against realised rewards agree with those against the truth."""
    results = measured(
        tmp_path,
        world="gaussian",
        reward="quadratic",
        prompts=48,
        members=16,
        batch=256,
        sigmas=[0.25, 0.5, 0.75],
        gradient=False,
        estimator=["constant", "tweedie", "terminal"],
    )
    rows = {r["coordinates"]["estimator"]: r["rows"] for r, _ in results}
    for level in range(3):
        base = rows["constant"][level]["metrics"]
        for label in ("tweedie", "terminal"):
            m = {k: np.array(v) for k, v in rows[label][level]["metrics"].items() if v}
            gap = m["bias_realised"] - m["bias"]
            assert abs(gap.mean()) < 3 * gap.std(ddof=1) / len(gap) ** 0.5
            realised = m["mse_realised"] - np.array(base["mse_realised"])
            true = m["mse"] - np.array(base["mse"])
            difference = realised - true
            assert abs(difference.mean()) < 3 * difference.std(ddof=1) / len(gap) ** 0.5
            assert abs(true.mean()) > difference.std(ddof=1) / len(gap) ** 0.5 / 3


COUNTS = {
    "constant": ({}, {}),
    "truth": ({}, {}),
    "terminal": ({}, {"decode": 1, "reward": 1}),
    "tweedie": ({}, {"velocity": 1, "blocks": DEPTH, "decode": 1, "reward": 1}),
    "linear_stitch": ({"i": 2}, {"trunk": 1, "blocks": 2, "tail": 1}),
    "monte_carlo": (
        {"particles": 5, "steps": 3},
        {"velocity": 15, "blocks": 15 * DEPTH, "decode": 5, "reward": 5},
    ),
    "stitched": ({"model": "3,1"}, {"trunk": 1, "blocks": 3, "tail": 1}),
    "vae_stitch": ({"model": "1,1"}, {"trunk": 1, "blocks": 1, "tail": 1}),  # of one block: as is
    "untrained": ({"i": 3}, {"trunk": 1, "blocks": 3, "tail": 1}),
    "noisy_student": ({"model": "paper"}, {"decode": 1, "reward": 1}),
    "feature_head": ({"model": "paper"}, {"trunk": 1, "blocks": 3}),  # taps 1, 2 and 3
    "calibrated": (
        {"of": "tweedie", "images": 8},
        {"velocity": 1, "blocks": DEPTH, "decode": 1, "reward": 1},
    ),
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Folders of trained estimators before their training, by name."""
    world = WORLDS["gaussian"](**{k: v for k, v in TINY.items() if k != "build"})
    root, folders = tmp_path_factory.mktemp("untrained"), {}
    x_0 = next(world.images("train", 20)).x_0
    for name, (settings, _) in COUNTS.items():
        if "model" in settings:
            arm = ARMS[name]
            backbone = TRUNKS[arm.trunk](world.backbone)
            entering = world.reward("sigmoid").head(x_0, 1).map
            pair = (3, 1) if arm.trunk == "backbone" else (1, 1)
            interface = Interface(
                LinearFit(torch.zeros(entering.shape[1], channels(backbone, pair[0])).double(),
                          torch.zeros(entering.shape[1]).double(), 0, 0.0), None)  # fmt: skip
            of = Search((), {pair: interface}, {})
            model = arm.begin(Given(backbone, world.reward("sigmoid"), of, pair, x_0))
            model.save_pretrained(folders.setdefault(name, root / name))
    return folders


def channels(backbone, i):
    z = torch.zeros(1, *backbone.latent, dtype=torch.float64)
    return backbone.trunk(z, torch.tensor(0.5, dtype=torch.float64), i).features.shape[1]


def test_hand_counts_cover_every_estimator():
    assert set(COUNTS) == set(ESTIMATORS)


@pytest.mark.filterwarnings("ignore:features have rank")
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_equal_hand_counts(tmp_path, name, untrained):
    settings, expected = COUNTS[name]
    model = {"model": str(untrained[name])} if name in untrained else {}
    entry = {"name": "it", "build": name, **settings, **model}
    [(record, _)] = measured(tmp_path, estimator=[entry])
    zero = dict.fromkeys(("velocity", "trunk", "blocks", "decode", "reward", "tail"), 0)
    for row in record["rows"]:
        assert row["calls"] == zero | expected


def test_a_copy_of_a_watched_module_is_itself():
    """A finetuned copy of a reward must not answer with the reward it was copied from."""
    world = WORLDS["gaussian"](latent=(2, 2, 1), components=3, rank=2, prompts=4)
    reward, calls = world.reward("linear"), Calls()
    calls.watch(reward)
    finetuned = copy.deepcopy(reward)
    finetuned.pool.mul_(2)
    x = world.backbone.decode(torch.ones(3, 2, 2, 1, dtype=torch.float64))
    with calls.during() as spent:
        twice = finetuned.features(x).embedding
        assert torch.equal(twice, 2 * reward.features(x).embedding)
    assert spent["reward"] == 6


def test_trunk_and_resume_count_as_one_velocity():
    world = WORLDS["gaussian"](latent=(2, 2, 1), components=3, rank=2, prompts=4)
    calls = Calls()
    calls.watch(world.backbone)
    calls.watch(world.backbone)  # twice is once
    z = torch.zeros(7, 2, 2, 1, dtype=torch.float64)
    t, c = torch.tensor(0.5, dtype=torch.float64), ["scene 0"] * 7
    with calls.during() as spent:
        state = world.backbone.trunk(z, t, i=1, c=c)
        world.backbone.resume(world.backbone.advance(state, 2))
    assert dict(spent)["blocks"] == 7 * DEPTH
    assert dict(spent)["trunk"] == 7
    assert dict(spent)["velocity"] == 0


def test_seconds_by_stage_add_up_and_recomputation_belongs_to_the_backward_pass():
    """A clock that counts how often it is read: what is between two readings is one second."""
    world = WORLDS["gaussian"](latent=(2, 2, 1), components=3, rank=2, prompts=4)
    reward, calls, ticks = world.reward("sigmoid"), Calls(), itertools.count()
    calls.watch(world.backbone)
    calls.watch(reward)
    z = torch.zeros(2, 2, 2, 1, dtype=torch.float64)
    t, c = torch.tensor(0.5, dtype=torch.float64), ["scene 0"] * 2
    for graph in ("frozen", "checkpointed"):
        value = ESTIMATORS["tweedie"](world, reward, graph=graph)
        call = partial(value_and_gradient, value, z, t, c)
        spent = calls.stages(call, lambda: float(next(ticks)))
        # velocity, decode, reward, backward: one reading before and one after each, two in all
        assert spent == {
            "blocks": 1, "decode": 1, "reward": 1, "tail": 0, "backward": 1, "rest": 5,
        }  # fmt: skip
    with calls.during() as counted:
        call()
    assert counted["decode"] == 4  # recomputed: not timed, but counted
    with pytest.raises(ZeroDivisionError):
        calls.stages(lambda: 1 / 0, lambda: 0.0)
    assert torch.autograd.backward.__module__ == "torch.autograd"


def test_live_peak_is_what_was_allocated_at_once_and_repeats():
    weight = torch.zeros(1000, dtype=torch.float64)

    def work():
        a = weight + 1  # 8000
        b = a * 2  # 16000
        del a
        c = b + weight  # 16000
        d = c.view(10, 100)  # no storage of its own
        return d.sum() + weight[0]

    peaks = []
    for _ in range(2):
        live = Live(iter([weight]))
        with live:
            work()
        peaks.append(live.peak)
    # b and c, and d.sum() beside them (8 bytes), while b is still held by the frame
    assert peaks[0] == peaks[1] == 16000 + 16
    assert live.now in {0, 8}


@pytest.mark.skipif(high_water_mark() is None, reason="needs /proc")
def test_the_high_water_mark_sees_an_allocation_and_is_reset():
    if not reset_high_water_mark():
        pytest.skip("the system does not allow resets")
    base = high_water_mark()
    block = mmap.mmap(-1, 64 * 2**20)  # malloc might hand out memory the process holds already
    block.write(b"x" * len(block))
    assert high_water_mark() - base > 60 * 2**20
    block.close()
    reset_high_water_mark()
    assert high_water_mark() - base < 8 * 2**20


def test_monte_carlo_memory_does_not_grow_with_particles():
    world = WORLDS["gaussian"]()
    peaks = []
    for particles in (4, 64):
        mc = ESTIMATORS["monte_carlo"](
            world, world.reward("linear"), particles=particles, steps=2, chunk=64
        )
        z = torch.zeros(16, 4, 8, 8, dtype=torch.float64)
        live = Live(iter([z, *mc.state_dict().values()]))
        with torch.no_grad(), live:
            mc(z, torch.tensor(0.5, dtype=torch.float64), ["scene 0"] * 16, Streams.of(0, rows=16))
        peaks.append(live.peak)
    assert peaks[1] < 1.05 * peaks[0]


def test_gradient_memory_of_monte_carlo_does_not_grow_with_particles():
    world = WORLDS["gaussian"]()
    peaks = []
    for particles in (4, 32):
        mc = ESTIMATORS["monte_carlo"](
            world, world.reward("linear"), particles=particles, steps=2, chunk=32
        )
        z = torch.zeros(8, 4, 8, 8, dtype=torch.float64)
        live = Live(iter([z, *mc.state_dict().values()]))
        with live:
            value_and_gradient(
                mc,
                z,
                torch.tensor(0.5, dtype=torch.float64),
                ["scene 0"] * 8,
                Streams.of(0, rows=8),
            )
        peaks.append(live.peak)
    assert peaks[1] < 1.1 * peaks[0]


def test_a_failing_cell_is_a_record_and_the_others_go_on(tmp_path):
    bad = {"name": "bad", "build": "monte_carlo", "kernel": "ode", "particles": 4}
    cells = planned(estimator=["tweedie", bad, "constant"])
    store = Store(tmp_path)
    assert run(cells, store, INLINE) == {"ok": 2, "error": 1, "before": 0}
    record = store.latest()[cells[1].id]
    assert record["status"] == "error"
    assert "expected particles = 1 with a deterministic kernel" in record["reason"]
    assert "Traceback" in (tmp_path / "cells" / cells[1].id / "0001" / "log.txt").read_text()
    assert run(cells, store, INLINE) == {"ok": 0, "error": 1, "before": 2}


DETACHED = """
import torch
from stitchvm.value import Target, ValueEstimator

class Mine(ValueEstimator):
    def __init__(self, world, fails):
        super().__init__()
        self.latent, self.target, self.fails = world.backbone.latent, Target(), fails

    def forward(self, z_t, t, c, rng=None):
        value = z_t.flatten(1).sum(1).detach()
        return value + torch.zeros(99) if self.fails else value

def build(world, reward, *, fails: bool = False):
    return Mine(world, fails)
"""


def test_what_a_users_file_does_wrong_is_said_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(DETACHED)
    mine = {"build": str(file)}
    named = [mine | {"name": "detached"}, mine | {"name": "wrong", "fails": True}]
    store, cells = Store(tmp_path / "store"), planned(estimator=named)
    assert run(cells, store, INLINE)["error"] == 2
    detached, wrong = (store.latest()[cell.id]["reason"] for cell in cells)
    assert "got Mine's, which is detached from it" in detached
    assert "`gradient: false` in the suite" in detached
    line = next(k for k, text in enumerate(DETACHED.splitlines(), 1) if "zeros(99)" in text)
    assert wrong.startswith("RuntimeError: The size of tensor")
    assert wrong.endswith(f"(mine.py:{line})")
    plain = planned(estimator=named[:1], gradient=False)
    assert run(plain, store, INLINE)["ok"] == 1


def test_too_many_prompts_is_said(tmp_path):
    cells = planned(prompts=9, estimator=["tweedie"])
    store = Store(tmp_path)
    run(cells, store, INLINE)
    reason = store.latest()[cells[0].id]["reason"]
    assert "expected at most 4 prompts in world 'gaussian', got 9" in reason


def test_a_process_per_cell_gives_the_same_rows_and_knows_its_start(tmp_path):
    inline = measured(tmp_path / "inline", estimator=["tweedie"])
    store, cells = Store(tmp_path / "process"), planned(estimator=["tweedie"])
    assert run(cells, store)["ok"] == 1
    [record] = store.latest().values()
    assert without_cost(record) == without_cost(inline[0][0])
    assert record["isolation"] == "process"
    assert record["phases"]["start"] > 0.1


def test_a_process_that_dies_is_an_error_with_its_last_words(tmp_path):
    file = tmp_path / "dies.py"
    file.write_text(
        "import os, sys\ndef build(world, reward):\n"
        "    print('last words', file=sys.stderr, flush=True)\n"
        "    os._exit(9)\n"
    )
    cells = planned(estimator=[f"{file}:build", "constant"])
    told = []
    counts = run(cells, Store(tmp_path / "store"), tell=told.append)
    assert counts == {"ok": 1, "error": 1, "before": 0}
    reason = "its process ended with code 9: last words"
    assert next(p.reason for p in told if p.status == "error") == reason
    record = Store(tmp_path / "store").latest()[cells[0].id]
    assert (record["status"], record["reason"]) == ("error", reason)


def test_what_a_process_announces_is_passed_on_once(tmp_path, monkeypatch):
    file = tmp_path / "slow.py"
    file.write_text(
        "import sys, time\nfrom baselines.constant import build as constant\n"
        "def build(world, reward):\n"
        "    print('chatter', file=sys.stderr, flush=True)\n"
        "    print('making the bank, once: 5%', file=sys.stderr, flush=True)\n"
        "    time.sleep(1)\n"
        "    return constant(world, reward)\n"
    )
    monkeypatch.setattr("bench.backends.processes.LISTEN_EVERY", 0.2)
    cells = planned(estimator=[f"{file}:build"])
    said = []
    assert run(cells, Store(tmp_path / "store"), announce=said.append)["ok"] == 1
    assert said == ["making the bank, once: 5%"]


def test_harness_share_of_a_long_cell_is_small(tmp_path):
    entry = {"name": "mc", "build": "monte_carlo", "particles": 16, "steps": 16}
    [(record, _)] = measured(tmp_path, world="gaussian", estimator=[entry], gradient=False)
    assert record["phases"]["harness"] < 0.05 * record["wall_seconds"]


def test_ctrl_c_saves_state_and_exits_130(tmp_path):
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    started = f"{listen}; from bench.cli import main; main()"  # in whatever background tests run
    command = [sys.executable, "-c", started, "run", "quickstart"]
    command += ["--store", str(tmp_path), "--quick", "--set", "sigmas=0.3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    for _ in range(600):
        if Store(tmp_path).done():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    done = Store(tmp_path).done()
    assert process.returncode == 130
    assert "interrupted: finished cells are kept" in said
    assert done
    assert Store(tmp_path).problems == []
