"""Result files: cells/<id>/<attempt>/result.json, samples.npz and judge-<name>.json beside it.

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
from pydantic import BaseModel, ValidationError

from bench.cell import SCHEMA, Spec, identity

RECORD, SAMPLES, JUDGE = "result.json", "samples.npz", "judge-"


class Row(BaseModel):
    """What a reader relies on in a row; whatever else is there stays."""

    sigma: float
    sigma_reference: float
    target: dict[str, Any]
    estimand: dict[str, Any]
    realises: str
    z_digest: str
    latents: int
    replicates: int
    nonfinite: int
    metrics: dict[str, list[float | None] | None]
    call_seconds: list[float]
    call_rows: list[int]
    gradient_seconds: list[float]
    gradient_rows: list[int]
    peak: dict[str, int | None] | None
    gradient_peak: dict[str, int | None] | None
    calls: dict[str, float]


class TestedRow(BaseModel):
    """The same of embeddings that were tested."""

    sigma: float
    sigma_reference: float
    z_digest: str
    length: float
    marks: dict[str, list[Any]]
    call_seconds: list[float]
    call_rows: list[int]
    calls: dict[str, float]


class InterfaceRow(BaseModel):
    """The same of a pair (i, j)."""

    i: int
    j: int
    picked: list[str]
    loss: float
    normalised: float
    r2: float
    held_loss: float
    held_normalised: float
    held_r2: float
    cost: float
    seconds: float
    clean_recall: float
    metrics: dict[str, list[float]]


class CostRow(BaseModel):
    """The same of two things timed in turns."""

    what: str
    batch: int
    against: str
    unit: str
    seconds: list[float]
    against_seconds: list[float]
    flops: int | None
    against_flops: int | None
    peak: dict[str, int | None] | None
    against_peak: dict[str, int | None] | None


class AlignRow(BaseModel):
    """The same of samples that were made one way, or of a step that was timed."""

    phase: str
    metrics: dict[str, list[float | None]]


class _AlignRows(BaseModel):
    rows: list[AlignRow]


class TrainRow(BaseModel):
    """The same of a run, or of a step that was timed."""

    phase: str
    rate: float


class _TrainRows(BaseModel):
    rows: list[TrainRow]


class _Rows(BaseModel):
    rows: list[Row]


class _TestedRows(BaseModel):
    rows: list[TestedRow]


class _InterfaceRows(BaseModel):
    rows: list[InterfaceRow]


class _CostRows(BaseModel):
    rows: list[CostRow]


ROWS: dict[str, type[BaseModel]] = {
    "value": _Rows,
    "robustness": _TestedRows,
    "interface": _InterfaceRows,
    "cost": _CostRows,
    "align": _AlignRows,
    "train": _TrainRows,
}


class Environment(BaseModel):
    """What a reader relies on in an environment."""

    versions: dict[str, str | None]
    commit: str | None
    dirty: bool | None
    device: str
    device_name: str | None
    threads: int


class Record(BaseModel):
    """What a reader relies on in a record."""

    id: str
    spec: Spec
    suite: str
    coordinates: dict[str, str]
    status: str
    rows: list[dict[str, Any]]
    environment: Environment


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
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            _commit(attempt / SAMPLES, buffer.getvalue())
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        _commit(attempt / RECORD, text.encode())

    def add_judge(self, cell: str, attempt: str, judge: str, scores: dict[str, Any]) -> None:
        """Put a further judge's scores of kept samples beside an attempt's record."""
        text = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False)
        _commit(self.path / "cells" / cell / attempt / f"{JUDGE}{judge}.json", text.encode())

    def judges(self, cell: str, attempt: str) -> dict[str, dict[str, Any]]:
        """What further judges said of an attempt's samples, by name."""
        files = sorted((self.path / "cells" / cell / attempt).glob(f"{JUDGE}*.json"))
        return {f.stem.removeprefix(JUDGE): json.loads(f.read_bytes()) for f in files}

    def records(self) -> Iterator[dict[str, Any]]:
        """Every readable record, oldest attempt first; what is not readable joins `problems`."""
        self.problems = []
        for path in sorted(self.path.glob(f"cells/*/*/{RECORD}")):
            record = self._read(path)
            if record is not None:
                attempt = path.parent.name
                judges = self.judges(record["id"], attempt)
                yield record | {"attempt": attempt} | ({"judges": judges} if judges else {})

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
        problem = self._fault(record, path.parent.parent.name)
        if problem is None:
            return record
        self.problems.append(f"{where}: skipped, {problem}")
        return None

    def _fault(self, record: Any, folder: str) -> str | None:
        """What keeps a record from being used."""
        if not isinstance(record, dict) or "schema" not in record:
            return "no record of ours"
        if record["schema"] != SCHEMA:
            return f"expected schema {SCHEMA}, got {record['schema']}"
        try:
            task = Record.model_validate(record).spec.task
            ROWS[task].model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            return f"no record of ours: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        if not record["id"] == identity(record["spec"]) == folder:
            return "its id is not the digest of its specification"
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
