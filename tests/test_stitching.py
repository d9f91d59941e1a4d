"""Making a StitchVM from the command line: search, pick, finetune, go on when killed."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from together import both

from baselines import ESTIMATORS
from baselines.feature_head import FeatureHead
from baselines.noisy_student import NoisyStudent
from baselines.stitched import build as stitched
from baselines.vae_stitch import Latent, VaeStitched
from bench import finetuning, prepared, searches, stitching
from bench import spent as spending
from bench.arms import ARMS, Given
from bench.cli import main
from bench.images import WorldImages, of_world
from bench.prepared import Shelf
from bench.report import numbers
from bench.stitch_commands import ARM_NAMES
from bench.stitching import Job, Workshop
from bench.worlds.shapes import shapes as shapes_world
from bench.worlds.shapes.scenes import draw, render
from stitchvm.backbone import NULL
from stitchvm.distill import Recipe, distill
from stitchvm.memo import Shared
from stitchvm.sample import NU, Sde
from stitchvm.search import Settings, load
from stitchvm.stitch import Stitched
from stitchvm.streams import Streams, derive
from stitchvm.teacher import Rolled
from stitchvm.workers import Launched
from stitchvm.world import Batch, Shown

RECIPE = Recipe(steps=5, batch=8, rate=1e-3, warmup=2)


@pytest.fixture(scope="module")
def world():
    return shapes_world()


@pytest.fixture(scope="module")
def shop(world, tmp_path_factory):
    """Where few images are learned from, with all searches made."""
    shop = Workshop(
        world, tmp_path_factory.mktemp("stitch"), WorldImages(world), count=40, checked=16
    )
    for trunk in ("backbone", "latent"):
        shop.search("clip", trunk)
    return shop


@pytest.fixture
def copied(shop, tmp_path):
    """The same with a folder of its own."""
    shutil.copytree(shop.root, tmp_path / "shop")
    return replace(shop, root=tmp_path / "shop")


def refused(what, wanted, where, known):
    return f"^{re.escape(f'expected {what} of {wanted} in {where}, got {known}')}$"


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["stitch", *map(str, arguments)])
    return stopped.value.code


def steps_of(folder):
    """A log without what each step took."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if k not in {"seconds", "device"}} for x in lines]


def test_what_a_model_took_is_written_where_it_is_spent(copied, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(spending.time, "perf_counter", lambda: float(next(clock)))
    job = Job("clip", "stitched")
    assert copied.spent(job)[1:] == (None, None, None)
    list(copied.tune([job], RECIPE, rates=(1e-3, 1e-2), steps=2))
    list(copied.train([job], RECIPE))
    spent = copied.spent(job)
    assert spent.search.seconds > 0  # by the clock of before
    assert spent.tuning.seconds == 2 * torch.get_num_threads()  # two steps of both rates, a second
    assert spent.training.seconds == 5 * torch.get_num_threads()
    assert spent.preparing.seconds > 0
    assert {amount.devices for amount in spent} == {frozenset({"cpu"})}
    whole = spent.search.seconds + spent.preparing.seconds + spent.training.seconds
    assert spent.total.seconds == whole
    list(copied.train([job], replace(RECIPE, steps=7)))
    assert copied.spent(job).training.seconds == 7 * torch.get_num_threads()


def test_what_was_spent_is_told_beside_the_paper(copied, capsys):
    given = ("shapes", "--reward", "clip", "--images", "40", "--out", copied.root)
    list(copied.train([Job("clip", "stitched")], RECIPE, rate=1e-3))
    assert run("cost", *given) == 0
    said = capsys.readouterr().out
    spent = copied.spent(Job("clip", "stitched"))
    assert said.startswith("core-hours; total")
    assert f"{numbers.plain(spent.training.seconds / 3600)}" in said
    assert re.search(r"clip, 1024 px +1\.0 +23\.5 +24\.5", said)
    assert run("cost", "shapes", "--reward", "hps", "--out", copied.root) == 2
    assert "expected a search or a model" in capsys.readouterr().err


def test_amounts_of_several_processes_and_devices():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert spending.of(3.0, gpu, 4) == (12.0, {"cuda"})
    assert spending.of(3.0, cpu, 2) == (6.0 * torch.get_num_threads(), {"cpu"})
    both = spending.total([spending.of(3.0, gpu), spending.of(3.0, cpu)])
    assert both.devices == {"cpu", "cuda"}
    assert spending.read(both.plain()) == both
    assert spending.total([both, None]) is spending.total([]) is spending.read({}) is None


def test_a_search_is_made_once_and_not_taken_for_another(shop, monkeypatch):
    folder = shop.root / "clip" / "search-backbone"
    known = load(folder)
    monkeypatch.setattr(searches, "search", lambda *_, **__: pytest.fail("searched again"))
    again = stitching.find(shop.world, "clip", folder, Settings())
    assert again.pairs == known.pairs
    assert again.about["reward"] == "clip"
    assert again.about["seconds"] > 0
    with pytest.raises(ValueError, match=r"expected a search of .*'hps'.* in .*, got .*'clip'"):
        stitching.find(shop.world, "hps", folder, Settings())


def test_picks_have_names(shop):
    found = shop.search("clip")
    for name, pair in found.picks.items():
        assert stitching.pick(found, name) == (pair.i, pair.j)
        assert stitching.pick(found, f"{pair.i},{pair.j}") == (pair.i, pair.j)
    with pytest.raises(ValueError, match=r"unknown pick 'best': expected one of .*cheap, paper"):
        stitching.pick(found, "best")


def test_the_commands_know_every_arm():
    assert set(ARM_NAMES) == set(ARMS)


@pytest.mark.parametrize("arm", ["stitched_free", "noisy_student"])
def test_a_free_gain_makes_clean_embeddings_of_unit_length(arm, shop):
    reward = shop.world.reward("clip")
    x_0 = next(shop.images.shown("train", 200)).x_0
    with torch.no_grad():
        raw = reward.features(x_0).raw
    given = Given(shop.world.backbone, reward, shop.search("clip"), (3, 1), x_0)
    model = ARMS[arm].begin(given, norm="free")
    assert (model.gain * raw.norm(dim=-1)).mean().item() == pytest.approx(1, rel=1e-5)
    assert ARMS[arm].begin(given).gain is None


KINDS = {
    "stitched": Stitched,
    "stitched_prompt": Stitched,
    "vae_stitch": VaeStitched,
    "noisy_student": NoisyStudent,
    "feature_head": FeatureHead,
}


def test_images_are_prepared_once(copied, monkeypatch):
    job = Job("clip", "stitched")
    first = copied.data([job, job], "train", 40)
    assert first[0] is first[1]
    assert len(first[0].c) == len(first[0].z_0) == 40
    reward = copied.world.reward("clip")
    with torch.no_grad():
        x_0 = torch.cat([shown.x_0 for shown in copied.images.shown("train", 40)])
        assert torch.equal(first[0].z_0[:], copied.world.backbone.encode(x_0))
        assert torch.equal(first[0].embedding[:], reward.features(x_0).embedding)
        (of_latents,) = copied.data([Job("clip", "stitched_latents")], "train", 40)
        seen = reward.features(copied.world.backbone.decode(first[0].z_0[:])).embedding
        assert torch.allclose(of_latents.embedding[:], seen, atol=1e-6)
    monkeypatch.setattr(type(copied.world), "images", lambda *_: pytest.fail("drawn again"))
    (again,) = copied.data([job], "train", 40)
    assert torch.equal(again.z_0[:], first[0].z_0[:])
    assert again.c == first[0].c


def test_what_was_prepared_before_a_kill_is_not_made_again(shop, tmp_path, monkeypatch):
    shelf = Shelf(shop.world, shop.images, tmp_path)
    monkeypatch.setattr(prepared, "PART", 8)
    whole = replace(shelf, folder=tmp_path / "whole").get("clip", 40)
    monkeypatch.setattr(
        type(shop.images), "batches", lambda *given: one_by_one(shop.images, *given[1:])
    )
    of, asked = shop.world.reward("clip"), []

    def features(x, inside=of.features):
        asked.append(len(x))
        if len(asked) == 5 + 20:  # once for the room beside each file of latents
            raise KeyboardInterrupt
        return inside(x)

    monkeypatch.setattr(of, "features", features)
    with pytest.raises(KeyboardInterrupt):
        shelf.get("clip", 40)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("targets-*/*.safetensors")}
    assert len(made) == 2  # 19 of 8 a file
    found = shelf.get("clip", 40)
    assert len(asked) == 5 + 20 + 40 - 16
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert not list(tmp_path.glob("**/*.new"))
    assert found.c == whole.c
    for name in ("z_0", "tokens", "embedding"):
        a, b = getattr(found, name), getattr(whole, name)
        assert torch.allclose(a[:], b[:], atol=1e-5), name
        rows = torch.tensor([39, 0, 17, 17])
        assert torch.equal(a[rows], a[:][rows])
        assert torch.equal(a[5:21], a[:][5:21])


def one_by_one(images, split, count):
    """A world's images in batches of one."""
    for shown in images.shown(split, count):
        for row in range(len(shown.c)):
            one = Shown(shown.x_0[row : row + 1], shown.c[row : row + 1])
            yield Batch(1, lambda one=one: one)


def test_a_disk_without_room_for_all_is_refused(copied, monkeypatch):
    shelf = Shelf(copied.world, copied.images, copied.root / "full")
    monkeypatch.setattr(prepared, "PART", 8)
    monkeypatch.setattr(
        type(copied.images), "batches", lambda *given: one_by_one(copied.images, *given[1:])
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match=r"expected \d+ kB of room in .*, got 10 kB: fewer"):
        shelf.get("clip", 40)
    monkeypatch.undo()
    monkeypatch.setattr(prepared, "save_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match=r"expected to write 00000000\.\w+ in .*, got full"):
        shelf.get("clip", 40)
    assert not list((copied.root / "full").glob("*/*"))


def test_room_for_latents_alone_is_not_room(copied, monkeypatch):
    shelf, rows = Shelf(copied.world, copied.images, copied.root / "both"), 40
    latents = rows * 4 * math.prod(copied.world.backbone.latent)
    whole = shelf.get("clip", rows)
    following = sum(rows * of[:1].nbytes for of in (whole.tokens, whole.embedding))
    shutil.rmtree(copied.root / "both")
    for free, fits in ((latents + following, True), (latents + following - rows, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, f=free: types.SimpleNamespace(free=f))
        if fits:
            shelf.get("clip", rows)
            shutil.rmtree(copied.root / "both")
            continue
        with pytest.raises(ValueError, match="of room in .*latents-.*: fewer images"):
            shelf.get("clip", rows)
        assert not list((copied.root / "both").glob("*/*"))


def test_files_that_were_divided_otherwise_are_refused(copied):
    shelf = Shelf(copied.world, copied.images, copied.root / "parts")
    whole = shelf.get("clip", 40)
    (folder,) = (copied.root / "parts").glob("latents-*")
    (file,) = folder.glob("*.safetensors")
    file.rename(folder / "00000008.safetensors")
    (folder / "whole.json").unlink()
    again = shelf.get("clip", 40)  # made again, and what nobody lists is not read
    assert torch.equal(again.z_0[:], whole.z_0[:])
    (folder / "whole.json").write_text(json.dumps({"files": ["00000008.safetensors"]}))
    with pytest.raises(ValueError, match="expected images from 0 on, got .*00000008.safetensors"):
        shelf.get("clip", 40)
    (folder / "whole.json").write_text(json.dumps({"files": []}))
    with pytest.raises(ValueError, match="expected 40 images in .*, got 0: delete it"):
        shelf.get("clip", 40)


def test_a_process_that_comes_late_meets_the_one_that_searched(copied, monkeypatch):
    folder, kept = copied.root / "clip" / "search-backbone", copied.root / "kept"
    folder.rename(kept)
    monkeypatch.setattr(stitching, "find", lambda *_, **__: shutil.copytree(kept, folder))

    def work(worker):
        while worker.rank and not (folder / "search.json").is_file():
            time.sleep(0.01)
        return replace(copied, workers=worker).search("clip").picks

    first, late = both(work)
    assert first == late


def test_two_processes_prepare_and_train_together(copied, monkeypatch):
    monkeypatch.setattr(prepared, "PART", 8)
    monkeypatch.setattr(
        type(copied.images), "batches", lambda *given: one_by_one(copied.images, *given[1:])
    )
    job, root, made = Job("clip", "stitched"), copied.root.parent / "both", set()
    write = prepared._write

    def noted(path, *given):
        assert path not in made, f"{path} was made twice"
        made.add(path)
        write(path, *given)

    monkeypatch.setattr(prepared, "_write", noted)

    def work(worker):
        shop = replace(copied, root=root, workers=worker)
        tuned = list(shop.tune([job], RECIPE, rates=(1e-3,), steps=1))
        return tuned, list(shop.train([job], RECIPE, keep=(3,))), list(shop.train([job], RECIPE))

    (tuned, told, again), others = both(work)
    assert (tuned, told, again) == others
    assert again == []
    assert len(made) == 5 + 5 + 2 + 2  # latents and targets, to learn from and held out
    list(copied.tune([job], RECIPE, rates=(1e-3,), steps=1))
    alone = list(copied.train([job], RECIPE))
    assert [t.record.loss for t in told] == pytest.approx([t.record.loss for t in alone], rel=1e-3)
    (one,), (other,) = copied.trials(job), replace(copied, root=root).trials(job)
    assert (one.rate, one.held_loss) == pytest.approx((other.rate, other.held_loss), rel=1e-3)
    assert sorted(path.name for path in (root / "clip" / "stitched").iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "model",
        "run.json",
        "step-3",
        "trials.json",
    ]
    log = (root / "clip" / "stitched" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_launched_processes_train_together(copied):
    """Two of them over gloo; `accelerate launch` starts several on GPUs alone."""
    given = ("shapes", "--reward", "clip", "--images", "40", "--batch", "8", "--steps", "5")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    launch += ("--nproc_per_node", "2")
    logs = []
    for start in ((sys.executable, "-m", "bench"), (*launch, "-m", "bench")):
        root = copied.root.parent / f"{len(logs)}"
        shutil.copytree(copied.root, root)
        command = (*start, "stitch", "train", *given, "--rate", "1e-3", "--out", f"{root}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("in ") == 1  # told by one of them
        lines = (root / "clip" / "stitched" / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in logs[1]] == pytest.approx(
        [line["loss"] for line in logs[0]], rel=1e-3
    )
    assert logs[0] != logs[1]  # halves are added up in another order


def test_rollouts_are_the_samplers_own(copied, monkeypatch):
    shelf = Shelf(copied.world, copied.images, copied.root / "prepared")
    found = shelf.rollouts("aesthetic", 6)
    assert found.t.tolist() == [k / 8 for k in range(7, 0, -1)]
    walked = found.z_t[:].unflatten(0, (6, 7))
    assert walked.shape == (6, 7, *copied.world.backbone.latent)
    sampler = Sde(copied.world.backbone.velocity, NU["flow_grpo"])
    step = sampler.transition(walked[:, 2], found.t[2], found.t[3], found.c)
    drawn = (walked[:, 3] - step.mean) / step.std
    assert drawn.std().item() == pytest.approx(1, abs=0.06)  # 1,536 standard normal numbers
    assert abs(drawn.mean().item()) < 4 / drawn.numel() ** 0.5
    rng = torch.Generator().manual_seed(0)
    rows = torch.arange(6).repeat(20)
    z_t, t = found.noisy(rows, RECIPE.draw, rng)
    at = [found.t.tolist().index(time) for time in t.tolist()]
    assert torch.equal(z_t, walked[rows, at])
    assert set(at) == set(range(7))
    assert found.c == [c for shown in copied.images.shown("train", 6) for c in shown.c]
    last = sampler.transition(walked[:, 6], found.t[6], torch.tensor(0.0), found.c)
    nearly = copied.world.reward("aesthetic").features(copied.world.backbone.decode(last.mean))
    cosine = torch.cosine_similarity(nearly.embedding, found.embedding[:])
    assert (
        cosine > torch.cosine_similarity(nearly.embedding.roll(1, 0), found.embedding[:])
    ).all()
    monkeypatch.setattr(prepared, "rolled", lambda *_: pytest.fail("rolled out again"))
    again = shelf.rollouts("aesthetic", 6)
    assert torch.equal(again.z_t[:], found.z_t[:])
    assert shelf.rollouts("clip", 6).embedding[:].shape == found.embedding[:].shape


def test_finetuning_on_rollouts_goes_on_from_a_trained_model(copied):
    job, base = Job("clip", "stitched_rollouts"), Job("clip", "stitched_prompt")
    with pytest.raises(ValueError, match="expected a trained stitched_prompt in .*, got none"):
        list(copied.train([job], RECIPE, rate=1e-3))
    list(copied.train([base], RECIPE, rate=1e-3))
    backbone, reward = copied.world.backbone, copied.world.reward("clip")
    first = Stitched.from_pretrained(copied.folder(base) / "model", backbone, reward)
    begun = copied.begin(job)
    for name, weight in begun.state_dict().items():
        assert torch.equal(first.state_dict()[name], weight), name
    records = list(copied.train([job], replace(RECIPE, steps=6), rate=1e-3))
    assert len(records) == 3  # half of the others' steps
    made = Stitched.from_pretrained(copied.folder(job) / "model", backbone, reward)
    assert str(made.target) == "mean | flow_grpo from t = 1, 8 steps"
    (data,) = copied.data([job], "train", 10)
    assert isinstance(data, Rolled)
    assert len(data.c) == 10
    alone = copied.begin(job)
    lessons = copied.data([job], "train", copied.count)[0]
    recipe = replace(copied.recipe(job, replace(RECIPE, steps=6)), rate=1e-3)
    assert records == [(job, record) for record in distill(alone, lessons, recipe)]
    assert not torch.equal(made.layer.linear.weight, first.layer.linear.weight)
    list(copied.train([base], replace(RECIPE, steps=6), rate=1e-3))  # another model now
    shutil.rmtree(copied.folder(job) / "model")
    with pytest.raises(ValueError, match="expected a run of .*'after': .*, got .*'after': "):
        list(copied.train([job], replace(RECIPE, steps=6), rate=1e-3))


def test_all_arms_train_together_as_each_does_alone(copied):
    """The backbone's work is shared, and no figure changes."""
    jobs = [Job("clip", arm) for arm in KINDS]
    list(copied.train(jobs, RECIPE, keep=(3,), rate=1e-3))
    for job in jobs:
        alone = copied.begin(job)
        (data,) = copied.data([job], "train", copied.count)
        recipe = replace(copied.recipe(job, RECIPE), rate=1e-3)
        records = list(distill(alone, data, recipe))
        logged = (copied.folder(job) / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] for line in logged] == [r.loss for r in records]
        reward = copied.world.reward("clip")
        kept = KINDS[job.arm].from_pretrained(
            copied.folder(job) / "model", copied.world.backbone, reward
        )
        for name, weight in alone.state_dict().items():
            assert torch.equal(kept.state_dict()[name], weight), name
        assert (copied.folder(job) / "step-3").is_dir()
        assert not any(w.requires_grad for w in kept.parameters())


def test_blocks_are_run_once_for_all(shop, monkeypatch):
    backbone, z_t = Shared(shop.world.backbone), torch.randn(2, 4, 8, 8)
    ran = []
    for k, block in enumerate(shop.world.backbone.blocks, start=1):
        inside = block.forward
        seen = lambda *a, k=k, inside=inside, **kw: (ran.append(k), inside(*a, **kw))[1]  # noqa: E731
        monkeypatch.setattr(block, "forward", seen)
    t = torch.tensor([0.3, 0.8])
    states = [backbone.trunk(z_t.clone(), t.clone(), i) for i in (2, 4, 3, 4)]
    assert ran == [1, 2, 3, 4, 3]
    assert torch.equal(states[1].features, shop.world.backbone.trunk(z_t, t, 4).features)
    ran.clear()
    backbone.trunk(z_t, t, 2, ["a circle", "a ring"])
    backbone.trunk(z_t.requires_grad_(), t, 1)
    assert ran == [1, 2, 1]


def test_a_learning_rate_is_chosen_on_held_out_images(copied):
    jobs = [Job("clip", "stitched_free"), Job("clip", "feature_head")]
    list(copied.tune(jobs, RECIPE, rates=(1e-4, 1e-3), steps=4))
    for job in jobs:
        tried = json.loads((copied.folder(job) / "trials.json").read_text())["trials"]
        assert [trial["rate"] for trial in tried] == [1e-4, 1e-3]
        assert copied.rate(job) == min(tried, key=lambda trial: trial["held_loss"])["rate"]
    assert copied.rate(Job("clip", "stitched_snr", "paper")) == copied.rate(jobs[0])
    assert list(copied.tune(jobs, RECIPE, rates=(1e-4, 1e-3), steps=4)) == []
    other = Job("clip", "stitched_free", "paper")
    list(copied.tune([other], RECIPE, rates=(2e-4,), steps=2))
    assert copied.rate(Job("clip", "stitched_snr", "paper")) == copied.rate(other) == 2e-4
    assert copied.rate(jobs[0]) in (1e-4, 1e-3)
    with pytest.raises(ValueError, match="expected trials of learning rates in .*vae_stitch"):
        copied.rate(Job("clip", "vae_stitch"))


def test_a_killed_finetuning_goes_on_and_logs_each_step_once(copied, monkeypatch):
    monkeypatch.setattr(finetuning, "distill", lambda *given, **kw: distill(*given, every=2, **kw))
    whole, broken = Job("clip", "stitched"), Job("clip", "stitched", "3,1")
    list(copied.train([whole], RECIPE, rate=1e-3, keep=(3,)))
    monkeypatch.setattr(stitching, "pick", lambda *_: (3, 1))
    for told in copied.train([broken], RECIPE, rate=1e-3, keep=(3,)):
        if told.record.step == 4:
            break
    assert not (copied.folder(broken) / "model").exists()
    rest = list(copied.train([broken], RECIPE, rate=1e-3, keep=(3,)))
    assert [told.record.step for told in rest] == [5]
    folders = [copied.folder(job) for job in (whole, broken)]
    assert steps_of(folders[0]) == steps_of(folders[1])
    reward = copied.world.reward("clip")
    for part in ("step-3", "model"):
        a, b = (
            Stitched.from_pretrained(folder / part, copied.world.backbone, reward).state_dict()
            for folder in folders
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert list(copied.train([broken], RECIPE, rate=1e-3)) == []
    rates = ({"recipe": {"rate": rate}} for rate in (1e-2, 1e-3))
    message = refused("a run", next(rates), folders[1], next(rates))
    with pytest.raises(ValueError, match=message):
        list(copied.train([broken], RECIPE, rate=1e-2))


def test_a_run_killed_between_checkpoint_and_log_lacks_nothing(copied):
    job = Job("clip", "feature_head")
    folder = copied.folder(job)
    list(copied.train([job], RECIPE, rate=1e-3, keep=(5,)))
    whole = (folder / "log.jsonl").read_text()
    kept = (folder / "step-5" / "head.safetensors").read_bytes()
    for made in ("step-5", "model"):
        shutil.rmtree(folder / made)
    lines = whole.splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # torn in the middle
    assert list(copied.train([job], RECIPE, rate=1e-3, keep=(5,))) == []
    assert (folder / "step-5" / "head.safetensors").read_bytes() == kept
    assert (folder / "model" / "head.safetensors").read_bytes() == kept
    untimed = [
        {k: v for k, v in json.loads(line).items() if k not in {"seconds", "device"}}
        for line in lines
    ]
    assert steps_of(folder) == [untimed[k] for k in (0, 1, 2, 4)]
    assert copied.spent(job).training is None  # of the last step nobody knows


def test_what_is_kept_is_set_aside_once(copied):
    """A run whose last step was asked for is kept already when it is trained further."""
    job = Job("clip", "feature_head")
    list(copied.train([job], RECIPE, rate=1e-3, keep=(5,)))
    list(copied.train([job], replace(RECIPE, steps=7), rate=1e-3))
    kept = sorted(path.name for path in copied.folder(job).iterdir())
    assert kept == ["checkpoint.pt", "log.jsonl", "model", "run.json", "step-5"]


def test_runs_of_other_images_are_not_gone_on_with(copied, tmp_path):
    job = Job("clip", "stitched")
    list(copied.tune([job], RECIPE, rates=(1e-3,), steps=2))
    list(copied.train([job], RECIPE))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, x in enumerate(render(draw("train", 4))):
        Image.fromarray(((x.permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save(
            folder / f"{k}.png"
        )
    other = replace(copied, images=of_world(copied.world, folder))
    made = copied.folder(job)
    for what, where, again in (
        ("trials", made / "trials.json", other.tune([job], RECIPE, rates=(1e-3,), steps=2)),
        ("a search", copied.root / "clip/search-backbone", other.train([job], RECIPE)),
    ):
        key = "pictures" if what == "trials" else "images"
        mine, theirs = ({key: shop.images.digest} for shop in (other, copied))
        with pytest.raises(ValueError, match=refused(what, mine, where, theirs)):
            list(again)
    shutil.rmtree(copied.root / "clip/search-backbone")
    with pytest.raises(ValueError, match="expected images with prompts for stitched_prompt, got"):
        other.begin(Job("clip", "stitched_prompt"))
    wanted, known = {"rates": [1e-2]}, {"rates": [1e-3]}
    with pytest.raises(ValueError, match=refused("trials", wanted, made / "trials.json", known)):
        list(copied.tune([job], RECIPE, rates=(1e-2,), steps=2))


def test_a_pair_that_is_not_near_is_refused_the_first_time_as_the_second(world, tmp_path):
    for _ in range(2):
        found = stitching.find(world, "clip", tmp_path, Settings(), probes=40)
        with pytest.raises(ValueError, match="unknown pick '1,4': expected one of"):
            stitching.pick(found, "1,4")


def test_training_further_is_training_longer(copied):
    job = Job("clip", "feature_head")
    list(copied.train([job], replace(RECIPE, average=3.0), rate=1e-3))
    longer = replace(RECIPE, steps=9, average=3.0)
    rest = list(copied.train([job], longer, rate=1e-3))
    assert [told.record.step for told in rest] == [6, 7, 8, 9]
    assert list(copied.train([job], longer, rate=1e-3)) == []
    with pytest.raises(ValueError, match="expected a run of .*'steps': 5.*, got .*'steps': 9"):
        list(copied.train([job], RECIPE, rate=1e-3))
    alone = replace(copied, root=copied.root.parent / "alone")
    shutil.copytree(copied.root / "prepared", alone.root / "prepared")
    shutil.copytree(copied.root / "clip/search-backbone", alone.root / "clip/search-backbone")
    list(alone.train([job], longer, rate=1e-3, keep=(5,)))
    for part in ("step-5", "model"):
        a, b = (shop.folder(job) / part / "head.safetensors" for shop in (copied, alone))
        assert a.read_bytes() == b.read_bytes(), part
    a, b = (steps_of(shop.folder(job)) for shop in (copied, alone))
    assert a == b
    falling = replace(longer, steps=12, schedule="cosine")
    with pytest.raises(ValueError, match="expected a run of"):
        list(copied.train([job], falling, rate=1e-3))


def test_after_stage_one_alone_cls_is_the_probes_mean(world):
    reward = world.reward("clip")
    found = ESTIMATORS["linear_stitch"](world, reward, i=2, j=2, probes=40)
    z_t, t = torch.randn(3, *world.backbone.latent), torch.tensor(0.5)
    assert found(z_t, t, list(world.prompts[:3])).shape == (3,)
    z_0 = world.draw([NULL] * 40, Streams.of(derive(0, "linear_stitch"), rows=40).child("z_0"))
    cls = reward.head(world.backbone.decode(z_0), 2).cls.mean(0)
    torch.testing.assert_close(found.layer.cls, cls)


def test_a_latent_stitch_is_blind_to_the_noise_level(copied):
    found = copied.search("clip", "latent")
    assert {(p.i, p.j) for p in found.pairs} == {(1, j) for j in range(1, 5)}
    assert {p.features for p in found.pairs} == {4}
    model = copied.begin(Job("clip", "vae_stitch", "paper"))
    z_t, c = torch.randn(3, 4, 8, 8), list(copied.world.prompts[:3])
    with torch.no_grad():
        assert torch.equal(model(z_t, torch.tensor(0.1), c), model(z_t, torch.tensor(0.9), c))
        u = model.backbone.resume(model.backbone.trunk(z_t, torch.tensor(0.5), 1, c))
        assert torch.equal(u, copied.world.backbone.velocity(z_t, torch.tensor(0.5), c))
    with pytest.raises(ValueError, match=r"expected i in 1\.\.1, got 2"):
        model.backbone.trunk(z_t, torch.tensor(0.5), 2)
    assert isinstance(model.backbone, Latent)


def test_models_are_loaded_by_name_or_folder_and_never_on_another(copied, monkeypatch):
    job = Job("clip", "stitched")
    list(copied.train([job], RECIPE, rate=1e-3))
    made, world = copied.folder(job) / "model", copied.world
    reward = world.reward("clip")
    assert stitched(world, reward, model=str(made)).j == 1
    monkeypatch.setattr(type(world), "trained", lambda *_: {"mine": made})
    assert stitched(world, reward, model="mine").j == 1
    with pytest.raises(
        FileNotFoundError, match=r"ships with the world 'shapes' .*\(mine\), got 'x'"
    ):
        stitched(world, reward, model="x")
    with pytest.raises(ValueError, match="expected reward"):
        stitched(world, world.reward("hps"), model=str(made))
    with pytest.raises(ValueError, match=r"expected i in 1\.\.1, got 3"):
        VaeStitched.from_pretrained(made, world.backbone, reward)


def test_a_model_can_be_kept_in_half_the_bytes(copied):
    job, world = Job("clip", "feature_head"), copied.world
    list(copied.train([job], RECIPE, rate=1e-3))
    made, smaller = copied.folder(job) / "model", copied.root / "smaller"
    assert run("export", made, smaller) == 0
    whole, half = (f / "head.safetensors" for f in (made, smaller))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    models = [
        FeatureHead.from_pretrained(folder, world.backbone, world.reward("clip"))
        for folder in (made, smaller)
    ]
    for a, b in zip(*(model.head.parameters() for model in models), strict=True):
        assert torch.equal(a.half(), b.half())
        assert b.dtype == torch.float32
    assert run("export", made, smaller) == 2
    assert run("export", copied.root / "nowhere", copied.root / "new") == 2


def test_the_commands_search_tune_and_train(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stitching, "Workshop", partial(Workshop, checked=16))
    given = ("shapes", "--reward", "aesthetic", "--out", tmp_path)
    assert run("search", *given, "--probes", 40) == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.endswith(("paper", "cheap"))]) >= 1
    few = ("--steps", 2, "--batch", 4, "--images", 16)
    assert run("tune", *given, *few, "--arm", "stitched_free", "--arm", "stitched_prompt") == 0
    tuned = capsys.readouterr().out
    assert re.fullmatch(
        r"aesthetic stitched_free: \S+, held-out loss \S+ \(\S+ \S+, \S+ \S+, \S+ \S+\)\n", tuned
    )
    assert run("train", *given, *few, "--arm", "stitched_prompt", "--pick", "paper") == 0
    made = tmp_path / "aesthetic" / "stitched_prompt-paper" / "model"
    assert f"in {made}" in capsys.readouterr().out
    world = shapes_world()
    model = Stitched.from_pretrained(made, world.backbone, world.reward("aesthetic"))
    assert (str(model.target), model.gain is None) == ("mean | prompt", False)
    about = json.loads((made / "stitch.json").read_text())["about"]
    assert (about["recipe"]["loss"], about["arm"], about["pick"]) == (
        "score",
        "stitched_prompt",
        "paper",
    )


def test_a_folder_of_images_can_be_searched(tmp_path, capsys):
    for k, x in enumerate(render(draw("train", 60))):
        numbers = ((x.movedim(0, -1) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(numbers).save(tmp_path / f"{k}.png")
    given = ("--reward", "clip", "--out", tmp_path / "out", "--pictures", tmp_path)
    assert run("search", "shapes", *given, "--probes", 40) == 2
    assert "expected 200 images for 'held' in" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert run("search", "shapes", *given[:-1], tmp_path / "none") == 2
    assert "expected at least one image (.png, .jpg" in capsys.readouterr().err


def test_processes_do_not_share_a_gpu(tmp_path, capsys, monkeypatch):
    given = ("shapes", "--reward", "clip", "--out", tmp_path)
    for device in ("cuda", "gpu"):
        assert run("train", *given, "--device", device) == 2
        assert "expected a device of this machine, cpu" in capsys.readouterr().err
    monkeypatch.setattr("stitchvm.workers.workers", lambda: Launched(1, 2))
    assert run("search", *given) == 2
    assert "expected one process for a search, got 2" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert run("train", *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "expected cuda:1 for process 1 of 2, as --device cuda gives it, got cpu" in said
    assert not list(tmp_path.iterdir())


def test_commands_say_what_is_missing(tmp_path, capsys):
    few = ("--steps", 2, "--batch", 4, "--images", 16)
    given = ("train", "shapes", *few, "--out", tmp_path)
    for pick, said in (("cheap", ""), ("4,1", " --pick 4,1")):
        assert run(*given, "--reward", "clip", "--arm", "stitched_snr", "--pick", pick) == 2
        err = capsys.readouterr().err
        assert "expected trials of learning rates in" in err
        tune = f"stitchbench stitch tune ... --reward clip --arm stitched_free{said}`"
        assert f"{tune} makes them, and --rate goes without" in err
    assert run(*given, "--reward", "beauty") == 2
    assert "expected a reward in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # refused before any work
    assert run("search", "shapes", "--reward", "beauty", "--out", tmp_path) == 2
    assert "expected a reward in" in capsys.readouterr().err
