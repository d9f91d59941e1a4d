"""Cells of one name: told apart by what differs, or one stands for both."""

import copy

import pytest
import records

from bench.cell import identity
from bench.frame import latest
from bench.namesakes import shown, told_apart
from bench.report.book import chapters, said, write
from bench.store import Store

FIRST, SECOND = "3f4c" + "0" * 12, "9a0b" + "0" * 12


def changed(made, *, protocol=None, settings=None, **estimator):
    """A record of another specification."""
    out = copy.deepcopy(made)
    part = out["spec"]["estimator"]
    part |= estimator | {"settings": part["settings"] | (settings or {})}
    out["spec"]["protocol"] |= protocol or {}
    return out | {"id": identity(out["spec"])}


def mine(source=FIRST, **changes):
    one = records.value("mine")
    return changed(one, build="mine.py", source=source, **changes)


def names(made):
    return [record["coordinates"]["estimator"] for record in shown(told_apart(made))]


def test_versions_of_a_file_are_told_apart_by_its_digest():
    constant = records.value("constant", build="constant")
    assert names([mine(), constant, mine(SECOND)]) == ["mine (3f4c)", "constant", "mine (9a0b)"]


def test_digits_are_as_many_as_tell_digests_apart():
    assert names([mine("3f4c11" + "0" * 10), mine("3f4c12" + "0" * 10)]) == [
        "mine (3f4c11)", "mine (3f4c12)"]  # fmt: skip


def test_one_of_a_name_keeps_it():
    assert names([mine(), mine()][:1]) == ["mine"]
    other = records.value("mine", reward="linear")
    assert names([mine(), other]) == ["mine", "mine"]  # of other tables


@pytest.mark.parametrize("field", ["quick", "seed", "dtype"])
def test_runs_that_share_no_table_keep_their_names(field):
    other = mine(SECOND)
    if field == "quick":
        other |= {"quick": True}
    elif field == "seed":
        other["spec"]["seed"] = 1
    else:
        other["spec"]["world"]["settings"]["dtype"] = "float64"
    assert names([mine(), other]) == ["mine", "mine"]


def test_no_more_is_said_than_tells_apart():
    found = names([mine(settings={"shrink": 0.9}), mine(SECOND, settings={"shrink": 0.8})])
    assert found == ["mine (3f4c)", "mine (9a0b)"]
    found = names([mine(settings={"shrink": x}) for x in (0.9, 0.8)])
    assert found == ["mine (shrink=0.9)", "mine (shrink=0.8)"]
    found = names([mine(), mine(SECOND), mine(SECOND, protocol={"steps": 7})])
    assert found == ["mine (3f4c, steps=40)", "mine (9a0b, steps=40)", "mine (9a0b, steps=7)"]


def test_weights_and_long_values_tell_apart():
    assert names([mine(digest=x) for x in ("abcdef", "fedcba")]) == [
        "mine (weights abcd)", "mine (weights fedc)"]  # fmt: skip
    several = [mine(settings={"folder": "x" * 40 + end}) for end in "ab"]
    assert len(set(names(several))) == len(several)


@pytest.mark.parametrize("more_first", [True, False])
def test_a_cell_with_gradients_stands_for_one_without(more_first):
    more, less = (mine(protocol={"gradient": x}) for x in (True, False))
    found = told_apart([more, less] if more_first else [less, more])
    assert [record["id"] for record in shown(found)] == [more["id"]]
    assert names(found) == ["mine"]
    [covered] = [record for record in found if record["covered"]]
    assert more["id"] in covered["reason"]


def test_metrics_of_another_file_stand_for_no_others():
    one, other = ([{"build": "m.py", "name": name, "settings": {}}] for name in ("a", "b"))
    plain, with_one = mine(), mine(protocol={"metrics": one})
    assert names([plain, with_one]) == ["mine"]
    assert names([mine(protocol={"metrics": other}), with_one]) == [
        "mine (metrics=b)", "mine (metrics=a)"]  # fmt: skip


def test_no_cell_stands_for_one_that_differs_in_more_or_failed():
    more, less = (mine(protocol={"gradient": x}) for x in (True, False))
    slower = changed(less, protocol={"calls": 7})
    assert len(names([more, slower])) == 2
    assert names([more | {"status": "error", "rows": []}, less]) == [
        "mine (gradient=True)", "mine (gradient=False)"]  # fmt: skip


def test_a_store_of_an_edited_file_is_read_and_reported(tmp_path):
    broken = mine("c0de" + "0" * 12) | {"status": "error", "reason": "no", "rows": []}
    constant = records.value("constant", build="constant")
    store = records.stored(tmp_path / "store", [constant, mine(), mine(SECOND), broken])
    assert not store.problems
    [chapter] = chapters(Store(store.path).latest().values())
    text = said(chapter, 80)
    assert all(f"mine ({digits})" in text for digits in ("3f4c", "9a0b", "c0de"))
    files, page = write(store, tmp_path / "out")
    assert "mine (3f4c)" in page.read_text()
    [table] = [path for path in files if path.name == "values.md"]
    assert "mine (c0de) (error)" in table.read_text()


def test_frames_have_the_same_names(tmp_path):
    store = records.stored(tmp_path / "store", [mine(), mine(SECOND)])
    found = latest(store.path, "value")
    assert sorted(r["coordinates"]["estimator"] for r in found) == ["mine (3f4c)", "mine (9a0b)"]


@pytest.mark.parametrize("task", ["align", "train", "cost", "robustness"])
def test_rows_of_every_task_are_told_apart(task):
    made = [
        changed(records.record(task, name="mine"), build="mine.py", source=source)
        for source in (FIRST, SECOND)
    ]
    [chapter] = chapters(made)
    column = "method" if "method" in chapter.frame else "estimator"
    assert [name.split(")")[0] for name in chapter.frame[column].unique()] == [
        "mine (3f4c", "mine (9a0b"]  # fmt: skip
