"""What `run` says before cells of full size start, and which of them it does not start."""

from types import SimpleNamespace

import pytest
import torch

from bench import forecast
from bench.plan import plan
from bench.suite import load

SMALL = {"build": "sd35-medium", "side": 64, "name": "Medium at 64 px"}
STEPS = ("DPS + StitchVM", "DPS, weights not frozen")


@pytest.fixture(scope="module")
def cells():
    found = plan(load("cost-dps"), changes={"world": [SMALL], "reward": ["aesthetic"]})
    named = {cell.coordinates["estimator"]: cell for cell in found}
    return [named[step] for step in STEPS]


def told(cells, device):
    lines = []
    kept = forecast.fitting(cells, device, lines.append)
    return [cell.coordinates["estimator"] for cell in kept], lines


def test_all_cells_of_a_cpu_are_told_and_kept(cells):
    kept, lines = told(cells, "cpu")
    assert kept == list(STEPS)
    assert [line.partition(",")[0] for line in lines] == ["DPS + StitchVM", "DPS"]
    assert all("FLOP; " in line and "GB of memory" in line for line in lines)


def test_what_a_gpu_has_no_room_for_is_not_started(cells, monkeypatch):
    needed = [one.live + one.weights for one in forecast.predicted(cells)]
    assert needed[0] < needed[1]
    room = SimpleNamespace(total_memory=sum(needed) // 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: room)
    monkeypatch.setattr(forecast, "rate", lambda _: 1e14)
    kept, lines = told(cells, "cuda:0")
    assert kept == ["DPS + StitchVM"]
    assert "at least" in lines[0]
    assert "not started: it needs" in lines[2]
    assert lines[3].startswith("1 of 2 cells fit; smaller pictures take less")


def test_what_cannot_be_predicted_runs_all_the_same(cells, monkeypatch):
    def refuse(*_):
        raise ValueError("no shapes")

    monkeypatch.setattr(forecast, "predicted", refuse)
    kept, lines = told(cells, "cpu")
    assert kept == list(STEPS)
    assert "is not predicted: no shapes" in lines[0]


def test_rehearsals_are_not_told():
    quick = plan(load("cost-dps"), quick=True)
    assert told(quick, "cpu")[1] == []
