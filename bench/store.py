"""Result files: cells/<id>/<attempt>/result.json, and samples.npz beside it.

A record is written under a temporary name, synced and renamed: present means complete.  Attempts
are never changed; a cell counts as done when one of its attempts is ok.  Numbers are as measured:
unrounded, bytes and seconds.  A record that cannot be read is reported and skipped, never deleted.
"""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.cell import SCHEMA, identity

RECORD, SAMPLES = "result.json", "samples.npz"
REQUIRED = ("schema", "id", "spec", "label", "suite", "status", "rows", "environment")


class Store:
    """A folder of records.

    Args:
        path: The folder; made when first written to.

    Raises:
        ValueError: if the path is a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"expected a folder for the store, got the file {self.path}")

    def prepare(self) -> None:
        """Make sure that records can be written.

        Raises:
            ValueError: if the folder cannot be made or written to.
        """
        probe = self.path / f".write-test-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"expected a store that can be written to, got {self.path}: {error.strerror}"
            ) from None

    def begin(self, cell: str) -> Path:
        """A new attempt's folder, numbered after the last."""
        folder = self.path / "cells" / cell
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        while True:
            try:
                (folder / f"{number:04d}").mkdir()
            except FileExistsError:  # another runner was quicker
                number += 1
            else:
                return folder / f"{number:04d}"

    def write(self, attempt: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Commit an attempt: arrays first, the record last."""
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            _commit(attempt / SAMPLES, buffer.getvalue())
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        _commit(attempt / RECORD, text.encode())

    def records(self) -> Iterator[dict[str, Any]]:
        """Every readable record, oldest attempt first; what is not readable joins `problems`."""
        self.problems = []
        for path in sorted(self.path.glob(f"cells/*/*/{RECORD}")):
            record = self._read(path)
            if record is not None:
                yield record | {"attempt": path.parent.name}

    def latest(self) -> dict[str, dict[str, Any]]:
        """Per cell the latest attempt that is ok, else the latest."""
        best: dict[str, dict[str, Any]] = {}
        for record in self.records():
            have = best.get(record["id"])
            if have is None or record["status"] == "ok" or have["status"] != "ok":
                best[record["id"]] = record
        return best

    def done(self) -> set[str]:
        """Cells that need not run again."""
        return {cell for cell, record in self.latest().items() if record["status"] == "ok"}

    def samples(self, cell: str, attempt: str) -> dict[str, np.ndarray]:
        """The per-sample arrays of an attempt."""
        with np.load(self.path / "cells" / cell / attempt / SAMPLES, allow_pickle=False) as data:
            return dict(data)

    def _read(self, path: Path) -> dict[str, Any] | None:
        where = path.relative_to(self.path)
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            self.problems.append(f"{where}: skipped, not readable as JSON: {error}")
            return None
        missing = [k for k in REQUIRED if not isinstance(record, dict) or k not in record]
        if missing:
            self.problems.append(
                f"{where}: skipped, no record of ours: lacks {', '.join(missing)}"
            )
        elif record["schema"] != SCHEMA:
            self.problems.append(
                f"{where}: skipped, expected schema {SCHEMA}, got {record['schema']}"
            )
        elif not record["id"] == identity(record["spec"]) == path.parent.parent.name:
            self.problems.append(
                f"{where}: skipped, its id is not the digest of its specification"
            )
        else:
            return record
        return None


def _commit(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
