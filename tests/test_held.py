"""What a process held of a GPU stands in tables of records that know it, and in no others."""

import pytest
from records import COST, PEAK, STEP, record

from bench.report import cost, held
from bench.report.align import frame as align_frame
from bench.report.align.claims import CLAIMS
from bench.report.align.sheet import SHEET as ALIGN

GPU = PEAK | {"allocated": 3_000_000_000, "reserved": 4_000_000_000, "driver": 5_200_000_000}
OLDER = GPU | {"driver": None}
PROCESS = "whole process (nvidia-smi)"
WALK = {
    "phase": "walk",
    "unit": "GPU-second",
    "kinds": {"step": 3, "end": 1},
    "kind_seconds": dict.fromkeys(("unsteered", "step", "end"), [1.0, 1.1]),
    "flops": {"unsteered": 10, "step": 20, "end": 5},
    "metrics": {},
}


def timed(peak, other=None):
    """A step and a walk with a peak each; in the walk the last kind has the other."""
    kinds = ("guided", "unsteered", "classic DPS")
    ends = {"unsteered": PEAK, "step": peak, "end": peak if other is None else other}
    step = STEP | {"peaks": dict.fromkeys(kinds, peak), "calls": {"blocks": 2.0}}
    return record("align", rows=[step, WALK | {"peaks": ends}])


def compared(peak, against):
    return record("cost", rows=[COST | {"peak": peak, "against_peak": against}])


def tables(sheet, frame):
    [facet] = sheet.split(frame)
    return {table.name: table for table in sheet.tables(facet)}


def test_a_step_and_a_walk_show_the_process_beside_the_allocator():
    larger = GPU | {"driver": 6_000_000_000}
    found = tables(ALIGN, align_frame.tidy([timed(GPU, larger)]))
    [step] = found["steps"].frame.to_dict("records")
    assert (step["with weights"], step[PROCESS]) == ("3.0 GB", "5.2 GB")
    [walk] = found["walks"].frame.to_dict("records")
    assert (walk["with weights"], walk[PROCESS]) == ("3.0 GB", "6.0 GB")
    assert all(found[name].note.endswith(held.NOTE) for name in ("steps", "walks"))


def test_steps_without_classic_dps_have_no_columns_of_it():
    kinds = ("guided", "unsteered")
    of = {name: {kind: STEP[name][kind] for kind in kinds} for name in ("step_seconds", "flops")}
    step = STEP | of | {"peaks": dict.fromkeys(kinds, GPU), "calls": {"blocks": 2.0}}
    [facet] = ALIGN.split(align_frame.tidy([record("align", rows=[step])]))
    table = next(table for table in ALIGN.tables(facet) if table.name == "steps")
    assert table.title == "A guided step beside an unsteered one"
    assert not any("classic" in column for column in table.frame)
    assert {"over unsteered", "memory", "with weights"} <= set(table.frame)
    said = [evidence for claim in CLAIMS[:2] for evidence in claim.judge(facet)]
    assert said == []


def test_a_value_and_its_yardstick_show_it_each():
    found = tables(cost.SHEET, cost.tidy([compared(GPU, GPU | {"driver": 7_000_000_000})]))
    [row] = found["values"].frame.to_dict("records")
    assert (row["with weights"], row[PROCESS]) == ("3.0 GB", "5.2 GB")
    assert (row["its with weights"], row[f"its {PROCESS}"]) == ("3.0 GB", "7.0 GB")
    assert found["values"].note.endswith(held.NOTE)


@pytest.mark.parametrize(
    ("sheet", "frame"),
    [(ALIGN, align_frame.tidy([timed(PEAK)])), (cost.SHEET, cost.tidy([compared(PEAK, PEAK)]))],
)
def test_a_cpu_has_nothing_of_it(sheet, frame):
    assert not [column for column in frame if "driver" in column]
    for table in tables(sheet, frame).values():
        assert not [column for column in table.frame if "weights" in column or PROCESS in column]
        assert held.NOTE not in table.note


def test_a_gpu_whose_driver_says_nothing_shows_the_allocator_alone():
    found = tables(ALIGN, align_frame.tidy([timed(OLDER)]))
    assert "with weights" in found["steps"].frame
    assert PROCESS not in found["steps"].frame
    assert held.NOTE not in found["steps"].note


def test_where_one_of_two_knows_it_the_other_has_a_dash():
    known, unknown = timed(GPU), timed(OLDER) | {"id": "other"}
    frame = align_frame.tidy([known, unknown])
    assert tables(ALIGN, frame)["steps"].frame[PROCESS].tolist() == ["5.2 GB", "\u2013"]
