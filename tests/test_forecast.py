"""What `run` says before cells of full size start, and which of them it does not start."""

import types

import pytest
import torch

from bench import forecast, machine
from bench.how import How
from bench.part import Part
from bench.plan import plan
from bench.report import numbers
from bench.run import run
from bench.store import Store
from bench.suite import load

SMALL = {"build": "sd35-medium", "side": 64, "blocks": 4, "name": "Medium at 64 px"}
STEPS = ("DPS + StitchVM", "DPS, weights not frozen")


@pytest.fixture(scope="module")
def cells():
    found = plan(load("cost-dps"), changes={"world": [SMALL], "reward": ["aesthetic"]})
    named = {cell.coordinates["estimator"]: cell for cell in found}
    return [named[step] for step in STEPS]


@pytest.fixture(autouse=True)
def few_blocks_count(monkeypatch):
    """As those of a whole model do: to count all takes long."""
    whole = {"blocks": None}
    plainly = forecast.of_full_size

    def of_full_size(cell):
        world = cell.spec.world.model_copy(update={"settings": cell.spec.world.settings | whole})
        return plainly(
            cell.model_copy(update={"spec": cell.spec.model_copy(update={"world": world})})
        )

    monkeypatch.setattr(forecast, "of_full_size", of_full_size)


def told(cells, device):
    lines = []
    return list(forecast.refused(cells, device, lines.append)), lines


def test_all_cells_of_a_cpu_are_told_and_none_is_refused(cells):
    refused, lines = told(cells, "cpu")
    assert refused == []
    assert [line.partition(",")[0] for line in lines] == ["DPS + StitchVM", "DPS"]
    assert all("FLOP; " in line and "GB of memory" in line for line in lines)


def test_what_a_gpu_has_no_room_for_is_recorded_and_not_started(cells, monkeypatch, tmp_path):
    needed = [max(c.live for c in one.costs.values()) + one.weights
              for one in forecast.predicted(cells)]  # fmt: skip
    assert needed[0] < needed[1]  # though both time classic DPS
    room = forecast.Room(sum(needed) // 2, 1e14)
    monkeypatch.setattr(forecast, "asked", lambda *_: room)
    refused, lines = told(cells, "cuda:0")
    assert refused == [cells[1].id]
    assert "at least" in lines[0]
    assert "it was not started" in lines[2]
    assert "would do" not in lines[2]  # not even without classic DPS, and streamed
    assert lines[3].startswith("1 of 2 cells fit; smaller pictures take less")
    how = How("inline", refused={cells[1].id: lines[2].strip()})
    store = Store(tmp_path)
    assert run(cells[1:], store, how)["error"] == 1
    (record,) = store.records(cells[1].id)
    assert record["status"] == "oom_gpu"
    assert "it was not started" in record["reason"]


@pytest.mark.parametrize(
    ("step", "spared", "said"),
    [
        (0, {"classic": False}, "with --set classic=false"),
        (
            0,
            {"classic": False, "fast": ["offload"]},
            "with --set classic=false and fast=[offload]",
        ),
        (1, {"fast": ["offload"]}, "with fast=[offload] in its world"),
    ],
)
def test_what_has_no_room_is_told_what_would_make_some(step, spared, said, cells, monkeypatch):
    fast = spared.get("fast", [])
    cell = cells[step]
    world = cell.spec.world.model_copy(
        update={"settings": cell.spec.world.settings | {"fast": fast}}
    )
    protocol = cell.spec.protocol.model_copy(update={"classic": spared.get("classic", True)})
    spec = cell.spec.model_copy(update={"world": world, "protocol": protocol})
    (one,) = forecast.predicted([cell.model_copy(update={"spec": spec})])
    needed = max(cost.live for cost in one.costs.values()) + one.weights
    monkeypatch.setattr(forecast, "asked", lambda *_: forecast.Room(needed, 1e14))
    refused, lines = told([cell], "cuda:0")
    assert refused == [cell.id]
    assert said in lines[1]
    main = f" and {numbers.size(one.waiting)} of main memory" if fast else ""
    assert f"{numbers.size(needed)}{main} would do" in lines[1]


def test_what_main_memory_cannot_hold_is_refused_as_well(cells, monkeypatch):
    (own,) = forecast.predicted([offloaded(cells[0])])
    room = forecast.Room(10**12, 1e14, main=own.waiting - 1)
    monkeypatch.setattr(forecast, "asked", lambda *_: room)
    refused, lines = told([offloaded(cells[0])], "cuda:0")
    assert refused == [own.cell.id]
    size = numbers.size(own.waiting)
    assert lines[0].endswith(f"of memory, {size} of main memory")
    assert "at least" in lines[0]  # by resident weights: copies come on top
    assert lines[1].startswith(f"  it needs {size} of main memory, and the machine has ")
    assert "would do" not in lines[1]
    plain = forecast.Room(own.weights, 1e14, main=own.waiting - 1)
    monkeypatch.setattr(forecast, "asked", lambda *_: plain)
    assert "would do" not in told(cells[:1], "cuda:0")[1][1]  # there is nowhere to wait


def offloaded(cell):
    world = cell.spec.world.model_copy(
        update={"settings": cell.spec.world.settings | {"fast": ["offload"]}}
    )
    return cell.model_copy(update={"spec": cell.spec.model_copy(update={"world": world})})


def test_a_machine_is_timed_by_steps_and_where_none_fits_by_products(monkeypatch):
    given = Part(build="shapes")
    monkeypatch.setattr(forecast, "SIDE", 64)
    assert 1e6 < forecast.by_steps("cpu", given) < 1e14
    memory = types.SimpleNamespace(total_memory=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    room = forecast.measured("cpu", given)
    assert (room.memory, room.sure) == (7, "about")
    assert room.main == machine.memory()[1]

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(forecast, "by_steps", full)
    room = forecast.measured("cpu", given)
    assert (room.memory, room.sure) == (7, "at least")
    assert room.rate > 1e6


def test_what_cannot_be_predicted_runs_all_the_same(cells, monkeypatch):
    def refuse(*_):
        raise ValueError("no shapes")

    monkeypatch.setattr(forecast, "predicted", refuse)
    refused, lines = told(cells, "cpu")
    assert refused == []
    assert "is not predicted: no shapes" in lines[0]


def test_costs_of_estimators_and_training_are_told_as_steps_are():
    found = [forecast.of_full_size(cell) for cell in plan(load("cost-estimators"))]
    assert found == [True] * 10


def test_rehearsals_are_not_told():
    quick = plan(load("cost-dps"), quick=True)
    assert told(quick, "cpu")[1] == []
