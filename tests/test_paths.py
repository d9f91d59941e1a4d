"""Fast paths of a model beside the same step without any, across what else never meets."""

import pytest
from records import PEAK, STEP, record

from bench.report import sheet
from bench.report.align.frame import tidy
from bench.report.align.sheet import SHEET

GB = 1_000_000_000


def step(seconds, allocated=None, live=GB):
    kinds = ("guided", "unsteered")
    peak = PEAK | {"allocated": allocated, "live": live}
    spent = {"guided": seconds, "unsteered": [1.0, 1.0, 1.0]}
    of = {"step_seconds": spent, "flops": dict.fromkeys(kinds, 10)}
    return STEP | of | {"peaks": dict.fromkeys(kinds, peak), "calls": {"blocks": 2.0}}


def measured(world, row, paths=(), reward="clip", **settings):
    """A record of a step in a world of a model, with its paths."""
    made = record("align", "untrained", [row], reward=reward)
    made["id"] = f"{world}-{reward}"
    made["coordinates"]["world"] = world
    fast = {} if paths is None else {"fast": list(paths)}
    made["spec"]["world"] = {"build": "sd35-medium", "settings": settings | fast, "source": None}
    return made


def compared(*records):
    frame = tidy(records)
    tables = SHEET.across(SHEET.split(frame))
    return tables[0].frame.to_dict("records") if tables else []


PLAIN = step([2.0, 2.0, 2.0], 10 * GB)


def test_a_path_is_held_against_the_same_step_without_it():
    slow, quick = step([2.2, 2.2, 2.2], 3 * GB), step([1.0, 1.0, 1.0], 10 * GB)
    found = compared(
        measured("plain", PLAIN),
        measured("offloaded", slow, ["offload"]),
        measured("compiled", quick, ["compile", "channels_last"]),
    )
    assert [row["paths"] for row in found] == ["offload", "compile, channels_last"]
    assert [row["time"] for row in found] == ["1.10", "0.500"]
    assert [row["with weights"] for row in found] == ["0.300", "1.00"]
    assert [row["gains"] for row in found] == ["memory", "time"]
    assert {row["world"] for row in found} == {"plain"}


def test_a_gain_is_one_by_its_whole_interval():
    unsure = step([1.0, 1.6, 2.2], 10 * GB)
    (row,) = compared(measured("plain", PLAIN), measured("quick", unsure, ["compile"]))
    assert row["gains"] == "–"


@pytest.mark.parametrize(
    "other",
    [
        measured("plain", PLAIN, reward="hps"),  # another reward
        measured("plain", PLAIN, side=512),  # other pictures
        measured("compiled", PLAIN, ["compile"]),  # a path of its own
    ],
)
def test_other_steps_are_no_yardstick(other):
    quick = measured("quick", PLAIN, ["offload"], side=1024)
    assert compared(other, quick) == []


def test_models_and_records_of_before_are_told_apart():
    large = measured("large", step([9.0, 9.0, 9.0], 20 * GB))
    large["spec"]["world"]["build"] = "sd35-large"
    found = compared(large, measured("plain", PLAIN, None), measured("quick", PLAIN, ["compile"]))
    assert [(row["world"], row["time"]) for row in found] == [("plain", "1.00")]


def test_a_cpu_says_its_live_memory():
    quick = step([2.0, 2.0, 2.0], live=GB // 2)
    (row,) = compared(
        measured("plain", step([2.0, 2.0, 2.0])), measured("quick", quick, ["offload"])
    )
    assert (row["memory"], row["gains"]) == ("0.500", "memory")


def test_the_table_stands_on_page_in_files_and_in_text(tmp_path):
    frame = tidy([measured("a DiT", PLAIN), measured("quick", PLAIN, ["compile"])])
    assert "Fast paths, over the same step without them" in sheet.text(SHEET, frame, [], 200)
    files, page = sheet.write(SHEET, frame.assign(pictures=None), [], [], tmp_path)
    assert tmp_path / "tables" / "paths.md" in files
    said = page.read_text()
    assert "Fast paths, over the same step without them" in said
    assert "not in turns" in said
    assert "A DiT world: did not hold" in said  # a model keeps its letters


def test_without_paths_there_is_no_table():
    assert compared(measured("plain", PLAIN), measured("older", PLAIN, None)) == []
