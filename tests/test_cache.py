"""Where things are remembered, and that nothing stale is."""

import os
from pathlib import Path

from bench import cache


def test_the_cache_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("STITCHVM_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    monkeypatch.delenv("STITCHVM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "stitchvm-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.root() == Path.home() / ".cache" / "stitchvm-bench"


def test_a_file_is_read_again_when_it_changed(monkeypatch, tmp_path):
    monkeypatch.setenv("STITCHVM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    files = [folder / name for name in ("a", "b")]
    for path in files:
        path.write_bytes(b"same")
    read, inside = [], Path.read_bytes
    old = files[1].stat().st_mtime_ns
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), inside(path))[1])
    first = cache.digests(folder, files)
    assert len(set(first.values())) == 1
    assert cache.digests(folder, files) == first
    assert read == files
    files[1].write_bytes(b"more")
    os.utime(files[1], ns=(old, old))  # as old and as large as what it replaces
    changed = cache.digests(folder, files)
    assert (changed[files[0]], changed[files[1]]) != (first[files[0]], first[files[1]])
    assert read == [*files, files[1]]
    assert cache.digests(folder, files[:1]) == {files[0]: first[files[0]]}
    (torn,) = (tmp_path / "cache" / "digests").iterdir()
    for bad in ("", "[1]", torn.read_text()[:-9]):
        torn.write_text(bad)
        assert cache.digests(folder, files) == changed


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("STITCHVM_CACHE", str(tmp_path / "cache"))
    found = cache.digests(tmp_path, [tmp_path / "a"])
    assert found == cache.digests(tmp_path, [tmp_path / "a"])
