"""Judging one trained model: errors by brute force, costs on a fake clock, and the command."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from baselines import ESTIMATORS
from bench import appraisal
from bench.cli import cli
from bench.stitch_commands import KINDS
from stitchvm.backbone import NULL
from stitchvm.calibrate import exchanged
from stitchvm.path import noise
from stitchvm.streams import Streams
from stitchvm.value import Target
from stitchvm.world import Shown


@pytest.fixture(scope="module")
def model(world):
    return ESTIMATORS["tweedie"](world, world.reward("quadratic"), posterior="data")


@pytest.mark.parametrize("posterior", ["data", "prompt"])
def test_errors_are_those_of_one_image_at_a_time(posterior, world, monkeypatch):
    monkeypatch.setattr(appraisal, "CHECKED", 5)  # images by which something was chosen
    reward = world.reward("quadratic")
    model = ESTIMATORS["tweedie"](world, reward, posterior=posterior)
    (level,) = appraisal.accuracy(world, reward, model, 12, (0.5,))
    shown = list(world.images("held", 17))
    z_0 = world.backbone.encode(torch.cat([part.x_0 for part in shown])[5:])
    c = [text for part in shown for text in part.c][5:]
    if posterior == "data":
        c = exchanged(c, 0)
    z_t = noise(z_0, torch.tensor(0.5).to(z_0), Streams.of(0, "evaluation", rows=12).normal(z_0))
    x, t = world.backbone.decode(z_0), torch.tensor(0.5).to(z_0)
    off, bar = [], []
    for k in range(12):
        realised = reward(x[k : k + 1], [c[k]]).item()
        others = [reward(x[m : m + 1], [c[k]]).item() for m in range(12) if m != k]
        off.append(model(z_t[k : k + 1], t, [c[k]]).item() - realised)
        bar.append(np.mean(others) - realised)
    assert level.errors["model"].mean == pytest.approx(np.sqrt(np.mean(np.square(off))))
    assert level.errors["constant"].mean == pytest.approx(np.sqrt(np.mean(np.square(bar))))
    assert level.errors["model"] == level.errors["tweedie"]  # which it is
    assert level.gained[:3] == (0, 0, 0)


def test_images_without_prompts_are_judged_under_the_worlds(world, model, monkeypatch):
    monkeypatch.setattr(appraisal, "CHECKED", 5)
    monkeypatch.setattr(appraisal, "AT_ONCE", 3)
    reward, images = world.reward("quadratic"), world.images

    def bare(split, count):
        for shown in images(split, count):
            for x in shown.x_0.split(4):
                yield Shown(x, [NULL] * len(x))

    monkeypatch.setattr(world, "images", bare)
    (level,) = appraisal.accuracy(world, reward, model, 12, (0.5,))
    z_0 = world.backbone.encode(torch.cat([part.x_0 for part in bare("held", 17)])[5:])
    c = [world.prompts[k % len(world.prompts)] for k in range(12)]
    z_t = noise(z_0, torch.tensor(0.5).to(z_0), Streams.of(0, "evaluation", rows=12).normal(z_0))
    off = model(z_t, torch.tensor(0.5).to(z_0), c) - reward(world.backbone.decode(z_0), c)
    assert level.errors["model"].mean == pytest.approx(off.square().mean().sqrt().item())
    own = ESTIMATORS["tweedie"](world, reward, posterior="prompt")
    with pytest.raises(ValueError, match="expected held-out images with prompts for a model that"):
        next(appraisal.accuracy(world, reward, own, 12, (0.5,)))


def test_every_image_gets_the_prompt_of_another():
    c = [str(k) for k in range(50)]
    found = exchanged(c, 0)
    assert sorted(found) == sorted(c)
    assert all(one != other for one, other in zip(c, found, strict=True))
    assert len({(int(b) - int(a)) % 50 for a, b in zip(c, found, strict=True)}) > 20


def test_a_model_of_another_value_is_refused(world, model, monkeypatch):
    monkeypatch.setattr(model, "target", Target("soft", "data", 1.0))
    with pytest.raises(
        ValueError, match=r"expected a model of the mean value over data .*, got one of soft"
    ):
        list(appraisal.accuracy(world, world.reward("quadratic"), model, 4))


def test_costs_are_ratios_of_turns(world, model):
    times = iter(np.cumsum([0, 1, 0, 4] * 100).tolist())  # a: from 0 to 1, b: from 1 to 5 ...
    reward = world.reward("quadratic")
    found = list(appraisal.costs(world, reward, model, lambda: next(times), (1, 3), 2))
    assert [(cost.what, cost.batch) for cost in found] == [
        ("value", 1), ("gradient", 1), ("value", 3), ("gradient", 3),
    ]  # fmt: skip
    assert all(cost.ratio[:3] == pytest.approx((0.25,) * 3) for cost in found)
    assert all(cost.flops == 1 for cost in found)


def test_the_command_prints_errors_and_costs(world, model, monkeypatch):
    monkeypatch.setattr("bench.worlds.WORLDS", {"small": lambda: world})
    monkeypatch.setitem(ESTIMATORS, "stitched", lambda *_, model: asked.append(model) or made)
    asked, made = [], model
    given = ["small", "--reward", "quadratic", "--model", "mine", "--images", 8, "--rounds", 2]
    result = CliRunner().invoke(cli, ["stitch", "eval", *map(str, given)])
    assert result.exit_code == 0, result.output
    assert asked == ["mine"]
    lines = result.output.splitlines()
    assert lines[0].startswith("mean | data; RMSE against the realised reward of 8 held-out")
    assert [line.split()[0] for line in lines[2:7]] == ["0.1", "0.25", "0.5", "0.75", "0.9"]
    assert [line.partition(":")[0] for line in lines[7:]] == [
        "value, batch 1", "gradient, batch 1", "value, batch 16", "gradient, batch 16",
    ]  # fmt: skip
    assert all("FLOPs say 1.0" in line for line in lines[7:])


def test_a_model_that_is_nowhere_is_named():
    given = ["stitch", "eval", "shapes", "--reward", "clip", "--model", "nothing"]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 2
    assert "expected a folder, or a value model that ships" in " ".join(result.output.split())


def test_the_command_knows_what_can_be_saved():
    assert set(KINDS) <= set(ESTIMATORS)
    assert all("model" in ESTIMATORS[kind].__kwdefaults__ for kind in KINDS)
