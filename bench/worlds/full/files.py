"""Files of published weights, from the hub or from a folder of copies.

    the hub     its cache; a revision is pinned, and a file there is what its name says
    a folder    ROOT/<owner>/<name>/..., each with a SHA256SUMS of the form that sha256sum writes

A file of a folder is compared with its digest once, and again whenever its size or time changes.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.published import Source
from stitchvm.models.refusals import from_the_hub
from stitchvm.saved import put

SUMS, COMPARED = "SHA256SUMS", ".compared.json"
CHUNK = 1 << 22  # bytes
HUB_COPIES = ".cache"  # what huggingface_hub keeps beside files that it writes to a folder
INCOMPLETE = ".incomplete"
TWICE = "*.fp16*"  # the same weights, rounded


class Files(ABC):
    """Where the files of sources are."""

    @abstractmethod
    def folder(self, source: Source) -> Path:
        """The folder that holds a source's files, whole.

        Raises:
            FileNotFoundError: if a file is missing and cannot be had.
            ValueError: if access is refused, or a file is not what it should be.
        """

    @abstractmethod
    def identity(self, source: Source) -> str:
        """Which files these are; of what cannot be had, that it is absent."""


class Hub(Files):
    """The hub's cache; what is not there is downloaded."""

    def folder(self, source: Source) -> Path:
        """The snapshot of a source's revision."""
        return download(source)

    def identity(self, source: Source) -> str:
        """Repository and commit."""
        return f"{source.repo}@{source.revision or 'newest'}"


class Copies(Files):
    """A folder of copies.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: if there is none.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(
                f"expected weights to be random, hub, or a folder of copies, got {str(root)!r}, "
                f"which is no folder"
            )
        self.root = root

    def folder(self, source: Source) -> Path:
        """ROOT/<owner>/<name>, once all files in it are known to be what its digests say."""
        folder = self.root / source.repo
        sums = listed(folder)
        for pattern in source.files:
            needed = "*" not in pattern or pattern.endswith("/*")
            if needed and not any(fnmatch(name, pattern) for name in sums):
                raise FileNotFoundError(f"expected {pattern} in {folder}, got none in {SUMS}")
        if strange := sorted(name for name in _there(folder) if name not in sums):
            raise ValueError(f"expected all files of {folder} in {SUMS}, got {strange[0]} besides")
        compare(folder, sums)
        return folder

    def identity(self, source: Source) -> str:
        """Repository, and digest of its digests."""
        if not (self.root / source.repo).is_dir():
            return f"{source.repo} absent"
        sums = listed(self.root / source.repo)
        text = "\n".join(f"{digest}  {name}" for name, digest in sorted(sums.items()))
        return f"{source.repo}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def files_of(weights: str) -> Files:
    """What a world's `weights` stand for: `hub`, or a folder.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    return Hub() if weights == "hub" else Copies(Path(weights))


def download(source: Source, to: Path | None = None) -> Path:
    """A source's files from the hub, in its cache or in a folder; what is there already stays.

    Raises:
        ValueError: if they are neither there nor to be had: see `from_the_hub`.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow

    given: dict[str, Any] = {} if to is None else {"local_dir": to}
    with from_the_hub(source.repo, source.revision, terms=f"its licence ({source.licence})"):
        return Path(
            snapshot_download(
                source.repo,
                revision=source.revision,
                allow_patterns=[*source.files],
                ignore_patterns=[TWICE],
                **given,
            )
        )


def listed(folder: Path) -> dict[str, str]:
    """Digests by file, as SHA256SUMS of a folder lists them.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: for a line that sha256sum would not write.
    """
    file = folder / SUMS
    if not file.is_file():
        raise FileNotFoundError(
            f"expected {file}, got none: `stitchbench weights sum {folder}` writes it for files "
            f"that you trust"
        )
    found = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != hashlib.sha256().digest_size * 2 or not name:
            raise ValueError(f"expected a digest and a file in line {number} of {file}: {line!r}")
        found[name] = digest
    return found


def write_sums(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS of all files of a folder, and return it.

    Raises:
        FileNotFoundError: if there is no such folder, or no file in it.
        ValueError: if a download in it has not ended, or a file is no longer what its digest said.
    """
    names = _there(folder)
    if half := [name for name in names if name.endswith(INCOMPLETE)]:
        raise ValueError(f"expected whole files in {folder}, got {half[0]}, half-downloaded")
    if not names:
        raise FileNotFoundError(f"expected files in {folder}, got none")
    known = listed(folder) if (folder / SUMS).is_file() else {}
    compare(folder, {name: digest for name, digest in known.items() if name in names})
    sums = {name: _digest(folder / name) for name in names}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    put(folder / SUMS, text.encode())
    return sums


def _there(folder: Path) -> list[str]:
    """All files of a folder, in order, but for what is ours, the hub's, or about to go."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    kept = [name for name in found if name not in {SUMS, COMPARED}]
    whole = [name for name in kept if not name.startswith(f"{HUB_COPIES}/")]
    return sorted({*whole, *(name for name in kept if name.endswith(INCOMPLETE))})


def compare(folder: Path, sums: dict[str, str], *, again: bool = False) -> None:
    """Refuse files that are not what their digests say.

    Args:
        folder: Where they are.
        sums: Digests by file.
        again: Also those that were compared before and have not changed since.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for one with another digest.
    """
    known = folder / COMPARED
    before = json.loads(known.read_text()) if known.is_file() and not again else {}
    now = {}
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"expected {path}, which {SUMS} lists, got no such file")
        stat = path.stat()
        now[name] = [digest, stat.st_size, stat.st_mtime_ns]
        if before.get(name) != now[name] and (found := _digest(path)) != digest:
            raise ValueError(f"expected {path} with digest {digest}, got {found}")
    if now != before and os.access(folder, os.W_OK):
        put(known, json.dumps(now).encode())


def _digest(path: Path) -> str:
    known = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            known.update(chunk)
    return known.hexdigest()
