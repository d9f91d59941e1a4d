"""Making a StitchVM from the command line: search, pick, finetune, go on when killed."""

import json
from dataclasses import replace

import pytest
import torch

from baselines.vae_stitch import Latent
from bench import stitching
from bench.cli import main
from bench.worlds.shapes import shapes as shapes_world
from stitchvm.distill import Recipe
from stitchvm.search import Settings, load
from stitchvm.stitch import Stitched

RECIPE = Recipe(steps=5, batch=8, rate=1e-3, warmup=2)


@pytest.fixture(scope="module")
def world():
    return shapes_world()


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Of a search."""
    folder = tmp_path_factory.mktemp("stitch")
    stitching.find(world, "clip", folder, Settings(), probes=40)
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["stitch", *map(str, arguments)])
    return stopped.value.code


def test_a_search_is_made_once_and_not_taken_for_another(world, folder, monkeypatch):
    known = load(folder)
    monkeypatch.setattr(stitching, "search", lambda *_, **__: pytest.fail("searched again"))
    again = stitching.find(world, "clip", folder, Settings(), probes=40)
    assert again.pairs == known.pairs
    assert again.about["reward"] == "clip"
    with pytest.raises(ValueError, match=r"expected a search of .*'hps'.* in .*, got .*'clip'"):
        stitching.find(world, "hps", folder, Settings(), probes=40)


def test_picks_have_names(folder):
    found = load(folder)
    for name, pair in found.picks.items():
        assert stitching.pick(found, name) == (pair.i, pair.j)
        assert stitching.pick(found, f"{pair.i},{pair.j}") == (pair.i, pair.j)
    with pytest.raises(ValueError, match=r"unknown pick 'best': expected one of .*cheap, paper"):
        stitching.pick(found, "best")


def test_a_free_gain_makes_clean_embeddings_of_unit_length(world, folder):
    found, reward = load(folder), world.reward("clip")
    pair = stitching.pick(found, "cheap")
    model = stitching.begin(world, reward, found, pair, norm="free")
    x_0 = next(stitching.pictures(world, "train", 200))
    with torch.no_grad():
        raw = reward.tail(reward.head(x_0, 1), 1).raw
    assert (model.gain * raw.norm(dim=-1)).mean().item() == pytest.approx(1, rel=1e-5)
    assert stitching.begin(world, reward, found, pair).gain is None


def test_a_killed_finetuning_goes_on_and_logs_each_step_once(world, folder, tmp_path, monkeypatch):
    found, reward = load(folder), world.reward("clip")
    data = stitching.learned_from(world, reward, 40)
    assert len(data.c) == len(data.z_0) == 40

    def begun():
        return stitching.begin(world, reward, found, stitching.pick(found, "cheap"))

    list(stitching.finetune(begun(), data, RECIPE, tmp_path / "whole", {}))
    distil = stitching.distill
    often = lambda *given: distil(*given, every=2)  # noqa: E731
    monkeypatch.setattr(stitching, "distill", often)
    for record in stitching.finetune(begun(), data, RECIPE, tmp_path / "broken", {}):
        if record.step == 3:
            break
    assert not (tmp_path / "broken" / "model").exists()
    rest = list(stitching.finetune(begun(), data, RECIPE, tmp_path / "broken", {}))
    assert [record.step for record in rest] == [3, 4, 5]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    models = [
        Stitched.from_pretrained(tmp_path / name / "model", world.backbone, reward)
        for name in ("whole", "broken")
    ]
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)
    assert list(stitching.finetune(begun(), data, RECIPE, tmp_path / "broken", {})) == []
    about = json.loads((tmp_path / "broken" / "model" / "stitch.json").read_text())["about"]
    assert about["recipe"]["steps"] == 5
    other = replace(RECIPE, loss="score")
    with pytest.raises(
        ValueError, match=r"expected a run of .*'score'.* in .*, got .*'embedding'"
    ):
        next(stitching.finetune(begun(), data, other, tmp_path / "broken", {}))


def test_the_latent_itself_can_be_stitched(world, tmp_path):
    """The rival without a backbone: a layer on z_t, blind to the noise level."""
    reward = world.reward("clip")
    found = stitching.find(world, "clip", tmp_path, Settings(), probes=40, trunk="latent")
    assert {(p.i, p.j) for p in found.pairs} == {(1, j) for j in range(1, 5)}
    assert {p.features for p in found.pairs} == {4}
    pair = stitching.pick(found, "paper")
    model = stitching.begin(world, reward, found, pair, trunk="latent")
    data = stitching.learned_from(world, reward, 16)
    list(stitching.finetune(model, data, RECIPE, tmp_path / "made", {}))
    saved = tmp_path / "made" / "model"
    model = Stitched.from_pretrained(saved, Latent(world.backbone), reward)
    z_t, c = data.z_0[:3], list(world.prompts[:3])
    with torch.no_grad():
        assert torch.equal(model(z_t, torch.tensor(0.1), c), model(z_t, torch.tensor(0.9), c))
        u = model.backbone.resume(model.backbone.trunk(z_t, torch.tensor(0.5), 1, c))
        assert torch.equal(u, world.backbone.velocity(z_t, torch.tensor(0.5), c))
    with pytest.raises(ValueError, match=r"expected i in 1\.\.1, got 2"):
        model.backbone.trunk(z_t, torch.tensor(0.5), 2)
    with pytest.raises(ValueError, match="expected backbone"):
        Stitched.from_pretrained(saved, world.backbone, reward)


def test_the_commands_search_and_train(tmp_path, capsys):
    given = ("shapes", "--reward", "aesthetic", "--out", tmp_path)
    assert run("search", *given, "--probes", 40) == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.endswith(("paper", "cheap"))]) >= 1
    few = ("--steps", 2, "--batch", 4, "--images", 16, "--loss", "score", "--pick", "paper")
    assert run("train", *given, *few, "--norm", "free", "--condition", "prompt") == 0
    assert "step 2: loss" in capsys.readouterr().out
    i, j = load(tmp_path).picks["paper"].i, load(tmp_path).picks["paper"].j
    made = tmp_path / f"{i}-{j}-free-prompt" / "model"
    world = shapes_world()
    model = Stitched.from_pretrained(made, world.backbone, world.reward("aesthetic"))
    assert (str(model.target), model.gain is None) == ("mean | prompt", False)


def test_a_search_of_another_reward_is_not_trained_on(folder, capsys):
    assert run("train", "shapes", "--reward", "hps", "--out", folder) == 2
    assert "expected a search of reward hps in" in capsys.readouterr().err


def test_commands_say_what_is_missing(tmp_path, capsys):
    assert run("train", "shapes", "--reward", "clip", "--out", tmp_path) == 2
    assert "expected a search in" in capsys.readouterr().err
    assert run("search", "shapes", "--reward", "beauty", "--out", tmp_path) == 2
    assert "expected a reward in" in capsys.readouterr().err
