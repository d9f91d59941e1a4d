"""What processes remember for each other: truth banks, prompts' embeddings, digests of pictures.

All of it can be made again, and lies in $STITCHVM_CACHE, or stitchvm-bench in the user's cache
folder.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stitchvm.saved import put


def root() -> Path:
    """The folder."""
    if named := os.environ.get("STITCHVM_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stitchvm-bench"


def digests(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of files of a folder; one is read again when its size, times or place have changed.

    Args:
        folder: Where they are.
        files: Which.
    """
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    known = root() / "digests" / f"{place}.json"
    now, found, before = {}, {}, _read(known)
    for path in files:
        name, stat = path.relative_to(folder).as_posix(), path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        of, *seen = before.get(name, [""])
        found[path] = of if seen == state else hashlib.sha256(path.read_bytes()).hexdigest()
        now[name] = [found[path], *state]
    if now != before:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            put(known, json.dumps(now).encode())
        except OSError:  # nobody's work depends on it
            pass
    return found


def _read(path: Path) -> dict[str, Any]:
    """What was remembered; nothing where there is nothing, or only part of it."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
