"""Result files: cells/<id>/<attempt>/result.json, samples.npz and judge-<name>.json beside it.

A record is written under a temporary name, synced and renamed: present means complete.  Attempts
are never changed; a cell counts as done when one of its attempts is ok.  Numbers are as measured:
unrounded, bytes and seconds.  A record that cannot be read is reported and skipped, never deleted.

An attempt's folder appears together with the file that names its owner, or not at all, so it is
the lock of its cell as well: while it has no record and its owner lives, nobody else begins one.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from bench.cell import SCHEMA, Spec, identity
from bench.owner import OWNER, Owner, me
from bench.owner import of as owner_of
from bench.repeats import together
from bench.rows import ROWS
from bench.statuses import Status

RECORD, SAMPLES, JUDGE, LOG = "result.json", "samples.npz", "judge-", "log.txt"
CHECKSUM = "checksum"  # of all else in a record
MOST = 300  # characters of what is wrong with one
TAIL_LINES, TAIL_BYTES = 30, 8192  # of a log, that are shown


class Versions(BaseModel):
    """What a reader relies on in versions."""

    python: str | None
    torch: str | None


class Environment(BaseModel):
    """What a reader relies on in an environment, and below it what older records lack.

    Attributes:
        versions: Of Python and packages; null for what was absent.
        commit: Of the checkout; null outside one.
        dirty: Whether it was changed since.
        device: Where the cell ran, `cpu` or `cuda:0`.
        device_name: Its model.
        threads: CPU threads.
        cores: Of the machine.
        affinity: The cores that the process might use.
        quota: How many cores a container granted; null for no limit.
        memory_bytes: Of the machine.
        cuda: Libraries and switches of a GPU that change its speed; null on a CPU.
        before, after: Load, other processes, memory, and of a GPU its clock, throttling and other
            processes, when the measurement began and when it ended (`environment.conditions`).
        disturbed: What of that makes the seconds doubtful, in words.
    """

    versions: Versions
    commit: str | None
    dirty: bool | None
    device: str
    device_name: str | None
    threads: int
    cores: int | None = None
    affinity: list[int] | None = None
    quota: float | None = None
    memory_bytes: int | None = None
    cuda: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    disturbed: list[str] = Field(default_factory=list)


class Code(BaseModel):
    """The same in what a record says of the code that measured it."""

    roots: list[str]
    digest: str


class Record(BaseModel):
    """What a reader relies on in a record."""

    id: str
    spec: Spec
    suite: str
    coordinates: dict[str, str]
    status: Status
    started: str
    quick: bool = False
    isolation: str | None = None
    reason: str | None = None
    rows: list[dict[str, Any]]
    environment: Environment
    code: Code | None = None

    @model_validator(mode="after")
    def _placed(self) -> Self:
        needed = {"estimator", "world", "reward", "variant", *self.spec.protocol.SHOWN}
        needed |= set() if self.spec.algorithm is None else {"algorithm"}
        if lacking := sorted(needed - set(self.coordinates)):
            raise ValueError(f"expected the coordinate {lacking[0]!r}, got none")
        return self


class Judged(BaseModel):
    """What a reader relies on in a further judge's scores: of each phase a list a prompt."""

    scores: dict[str, list[Annotated[list[float], Field(min_length=1)]]]


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

    @classmethod
    def of(cls, attempt: Path) -> "Store":
        """The store of an attempt's folder."""
        return cls(attempt.parents[2])

    def begin(self, cell: str, *, unlock: bool = False) -> Path | Owner:
        """A new attempt's folder, which this process owns, or who is at work on the cell.

        Args:
            cell: Its id.
            unlock: Whether to begin one even so.
        """
        folder = self.path / "cells" / cell
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            last = max(self.attempts(cell), default=0)
            if last and not unlock and (other := self.at_work(folder / f"{last:04d}")):
                return other
            made = Path(tempfile.mkdtemp(prefix=".begun-", dir=folder))
            try:
                commit(made / OWNER, json.dumps(me()._asdict()).encode())
                made.chmod(0o777 & ~_umask())
                made.rename(folder / f"{last + 1:04d}")
            except OSError as error:
                shutil.rmtree(made, ignore_errors=True)
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
            else:
                return folder / f"{last + 1:04d}"

    def attempts(self, cell: str) -> list[int]:
        """The numbers of a cell's attempts, in no order."""
        folder = self.path / "cells" / cell
        return [int(p.name) for p in folder.iterdir() if p.name.isdigit()]

    @staticmethod
    def at_work(attempt: Path) -> Owner | None:
        """Who is at work in an attempt: nobody once it has a record or its owner died."""
        owner = None if (attempt / RECORD).is_file() else owner_of(attempt)
        return owner if owner is not None and owner.alive else None

    def owners(self, cells: Iterable[str]) -> Iterator[Owner]:
        """Who is at work on cells, an owner for each that has one."""
        for cell in cells:
            folder = self.path / "cells" / cell
            last = max(self.attempts(cell), default=0) if folder.is_dir() else 0
            owner = self.at_work(folder / f"{last:04d}") if last else None
            if owner is not None:
                yield owner

    def withdraw(self, attempt: Path) -> None:
        """Give back an attempt that was begun and in which nothing was done."""
        gone = attempt.with_name(f".withdrawn-{attempt.name}-{os.getpid()}")
        attempt.rename(gone)  # at once: an emptied folder would be another runner's to take
        shutil.rmtree(gone)

    def write(self, attempt: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Commit an attempt: arrays first, the record last."""
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            record = record | {"samples_bytes": buffer.getbuffer().nbytes}
            commit(attempt / SAMPLES, buffer.getvalue())
        plain = json.loads(json.dumps(record, allow_nan=False))
        text = json.dumps(plain | {CHECKSUM: checksum(plain)}, indent=1, sort_keys=True)
        commit(attempt / RECORD, text.encode())

    def add_judge(self, cell: str, attempt: str, judge: str, scores: dict[str, Any]) -> None:
        """Put a further judge's scores of kept samples beside an attempt's record."""
        text = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False)
        commit(self.path / "cells" / cell / attempt / f"{JUDGE}{judge}.json", text.encode())

    def judges(self, cell: str, attempt: str) -> dict[str, dict[str, Any]]:
        """What further judges said of an attempt's samples, by name."""
        files = sorted((self.path / "cells" / cell / attempt).glob(f"{JUDGE}*.json"))
        read = {file.stem.removeprefix(JUDGE): self._judge(file) for file in files}
        return {name: judge for name, judge in read.items() if judge is not None}

    def _judge(self, path: Path) -> dict[str, Any] | None:
        try:
            found = _parsed(path)
            Judged.model_validate(found)
        except (OSError, ValueError, RecursionError) as error:
            self._skip(path.relative_to(self.path), f"no scores: {error}")
            return None
        return found

    def records(self, cell: str = "*") -> Iterator[dict[str, Any]]:
        """Every readable record, oldest attempt first; what is not readable joins `problems`.

        Args:
            cell: One cell's id, or all.
        """
        self.problems = []
        for path in sorted(self.path.glob(f"cells/{cell}/*/{RECORD}")):
            record = self._read(path)
            if record is not None:
                attempt = path.parent.name
                judges = self.judges(record["id"], attempt)
                found = {"attempt": attempt, "log": _tail(path.with_name(LOG))}
                yield record | found | ({"judges": judges} if judges else {})

    def latest(self, cell: str = "*") -> dict[str, dict[str, Any]]:
        """Per cell the latest attempt that is ok, else the latest, with what repeats it.

        Args:
            cell: One cell's id, or all.
        """
        best: dict[str, dict[str, Any]] = {}
        known: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in self.records(cell):
            known[record["id"]].append(record)
            have = best.get(record["id"])
            if have is None or record["status"] == "ok" or have["status"] != "ok":
                best[record["id"]] = record
        return {name: together(record, known[name]) for name, record in best.items()}

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
            record = _parsed(path)
        except (OSError, ValueError, RecursionError) as error:
            self._skip(where, f"not readable as JSON: {error}")
            return None
        problem = self.fault(record, path.parent.parent.name) or _torn(record, path.parent)
        if problem is None:
            return record
        self._skip(where, problem)
        return None

    def _skip(self, where: Path, why: str) -> None:
        """Note what is not used, in one line whatever a file holds."""
        line = "".join(c if c.isprintable() else " " for c in why)
        self.problems.append(f"{where}: skipped, {shorten(line, MOST, placeholder=' ...')}")

    def fault(self, record: Any, folder: str | None = None) -> str | None:
        """What keeps a record from being used, None if nothing does.

        Args:
            record: What is meant as one.
            folder: The cell's folder that it lies in, if it does.
        """
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
        if not record["id"] == identity(record["spec"]) == (folder or record["id"]):
            return "its id is not the digest of its specification"
        right = checksum(record)
        if record.get(CHECKSUM, right) != right:  # an older record has none
            return "changed since it was written: its checksum is another"
        return None


def checksum(record: dict[str, Any]) -> str:
    """Digest of all else in a record, 16 hex digits."""
    rest = {name: value for name, value in record.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _parsed(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """JSON of a file, which never says NaN or infinity."""

    def refuse(text: str) -> None:
        raise ValueError(f"expected finite numbers, got {text}")

    return json.loads(path.read_bytes(), parse_constant=refuse)


def _torn(record: dict[str, Any], attempt: Path) -> str | None:
    """What is wrong with the samples that a record came with."""
    expected = record.get("samples_bytes")
    if expected is None:
        return None
    try:
        found = (attempt / SAMPLES).stat().st_size
    except OSError as error:
        return f"its samples: {error.strerror}"
    return None if found == expected else f"its samples: expected {expected} bytes, got {found}"


def _tail(log: Path) -> list[str]:
    """The last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def commit(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # as where nothing can be written
            temporary.unlink()  # of a full disk, what it holds is needed
        error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
