"""Records: written whole, never changed, and read with suspicion."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

import bench
from bench import suite as suites
from bench.how import INLINE
from bench.plan import plan
from bench.run import run
from bench.store import Store, commit

TINY = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}


@pytest.fixture(scope="module")
def cells():
    suite = suites.Suite(
        name="tiny",
        about="a test",
        minutes=0.1,
        defaults={"world": TINY, "reward": "quadratic", "prompts": 3, "members": 2, "calls": 1}
        | {"sigmas": [0.25, 0.75], "replicates": 2, "batch": 4},
        axes={"estimator": ["truth", "constant", "tweedie"]},
    )
    return plan(suite)


@pytest.fixture(scope="module")
def full(cells, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    run(cells, store, INLINE)
    return store


def copied(full: Store, path: Path) -> Store:
    for file in full.path.rglob("*"):
        if file.is_file():
            target = path / file.relative_to(full.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return Store(path)


def record_of(store: Store, cell) -> Path:
    return store.path / "cells" / cell.id / "0001" / "result.json"


def test_records_hold_what_a_reader_needs(full, cells):
    record = json.loads(record_of(full, cells[2]).read_bytes())
    assert record["id"] == cells[2].id
    settings = {
        "posterior": "prompt", "decoder": "full", "reuse": False, "cfg": 1.0, "graph": "frozen"
    }  # fmt: skip
    assert record["spec"]["estimator"] == {
        "build": "tweedie", "settings": settings, "source": None, "digest": None
    }  # fmt: skip
    assert {"commit", "dirty", "threads", "device", "device_name"} <= set(record["environment"])
    assert record["environment"]["versions"]["torch"]
    assert record["spec"]["world"]["settings"]["dtype"] == "float64"
    assert {"build", "latents", "measured", "reference", "harness"} <= set(record["phases"])
    row = record["rows"][0]
    assert len(row["metrics"]["bias"]) == 3
    assert len(row["call_seconds"]) == len(row["call_rows"]) == 2
    assert row["target"]["text"] == "mean | prompt"


def test_samples_are_kept_per_replicate_prompt_group_and_member(full, cells):
    samples = full.samples(cells[2].id, "0001")
    assert samples["value"].shape == (2, 1, 3, 1, 2)
    assert samples["truth"].shape == samples["realised"].shape == (2, 3, 1, 2)
    assert samples["sigma"].tolist() == [0.25, 0.75]
    record = json.loads(record_of(full, cells[2]).read_bytes())
    bias = (samples["value"].mean(1) - samples["truth"]).mean(axis=(2, 3))
    np.testing.assert_allclose(bias[0], record["rows"][0]["metrics"]["bias"], rtol=1e-12)


def test_the_frame_has_one_row_per_cell_and_noise_level(full):
    frame = bench.load(full.path)
    assert len(frame) == 6
    tweedie = frame[frame.estimator == "tweedie"].set_index("sigma")
    assert (tweedie.bias_lo < tweedie.bias).all()
    np.testing.assert_allclose(tweedie.rmse**2, tweedie.mse, rtol=1e-12)
    constant = frame[frame.estimator == "constant"].set_index("sigma")
    by_hand = 1 - tweedie.mse / constant.mse
    np.testing.assert_allclose(tweedie.skill, by_hand, rtol=1e-12)
    pairs = zip(tweedie.mse_by_prompt, constant.mse_by_prompt, strict=True)
    assert tweedie.won.tolist() == [np.mean(mse < of) for mse, of in pairs]
    assert constant.won.isna().all()
    assert (tweedie.rmse_iqm <= tweedie.mse_by_prompt.map(max) ** 0.5).all()
    assert frame[frame.estimator == "constant"].gradient_cosine.isna().all()
    assert frame[frame.estimator == "truth"].mse.max() == 0


def test_a_complete_cell_is_not_run_again(full, cells, tmp_path):
    store = copied(full, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run(cells, store, INLINE) == {"ok": 0, "error": 0, "before": 3}
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "skipped, not readable as JSON"),
        (lambda _: b"", "skipped, not readable as JSON"),
        (lambda _: b'{"answer": 42}', "skipped, no record of ours"),
        (lambda _: b"[1, 2]", "skipped, no record of ours"),
        (lambda data: data.replace(b'"schema": 1', b'"schema": 99'), "expected schema 1, got 99"),
        (lambda data: data.replace(b'"seed": 0', b'"seed": 7'), "its id is not the digest"),
        (lambda _: b"\xff\xfe", "skipped, not readable as JSON"),
        (lambda data: data.replace(b'"task": "value"', b'"task": "other"'), "spec.task: Input"),
        (lambda data: data.replace(b'"sigma":', b'"sigmo":'), "rows.0.sigma: Field required"),
        (lambda data: data.replace(b'"threads": 1', b'"threads": "x"'), "skipped, no record"),
    ],
)
def test_a_damaged_record_is_reported_and_skipped_and_others_still_used(
    full, cells, tmp_path, damage, message
):
    store = copied(full, tmp_path)
    path = record_of(store, cells[0])
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    assert set(store.latest()) == {cells[1].id, cells[2].id}
    assert len(store.problems) == 1
    assert message in store.problems[0]
    assert cells[0].id in store.problems[0]
    assert path.read_bytes() == damaged  # never deleted, never repaired
    assert run(cells, store, INLINE)["ok"] == 1  # a new attempt beside it
    assert (path.parent.parent / "0002" / "result.json").is_file()
    assert path.read_bytes() == damaged


def test_half_written_attempts_are_no_records(full, cells, tmp_path):
    store = copied(full, tmp_path)
    attempt = store.begin(cells[0].id)
    (attempt / ".result.json.123").write_text("{")
    assert set(store.latest()) == {c.id for c in cells}
    assert store.problems == []


def test_a_full_disk_leaves_no_record(full, cells, tmp_path, monkeypatch):
    store = Store(tmp_path)
    record = json.loads(record_of(full, cells[0]).read_bytes())
    attempt = store.begin(cells[0].id)

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.write(attempt, record, {})
    assert store.done() == set()


def test_a_store_path_that_is_a_file(tmp_path):
    file = tmp_path / "store"
    file.write_text("")
    with pytest.raises(ValueError, match=f"expected a folder for the store, got the file {file}"):
        Store(file)


def test_a_store_that_cannot_be_written_to(tmp_path, monkeypatch, cells):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ValueError, match=f"expected a store that can be written to, got {tmp_path}"
                                         ".*Permission denied"):  # fmt: skip
        run(cells, Store(tmp_path), INLINE)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path, cells):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="expected a store that can be written to"):
        run(cells, Store(tmp_path / "inside"), INLINE)


def test_a_missing_store_is_empty_and_cannot_be_loaded(tmp_path):
    assert Store(tmp_path / "none").latest() == {}
    with pytest.raises(ValueError, match="expected a store with records at .*none, found none"):
        bench.load(tmp_path / "none")


def test_loading_warns_of_what_it_skips(full, cells, tmp_path):
    store = copied(full, tmp_path)
    record_of(store, cells[0]).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped, not readable as JSON"):
        assert len(bench.load(tmp_path)) == 4


def test_a_file_that_cannot_be_written_is_named_as_it_was_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "record.json"
    with pytest.raises(NotADirectoryError) as refused:
        commit(path, b"{}")
    assert refused.value.filename == str(path)
