"""Where the world's trained networks lie, and that they are the ones they should be.

A folder of weights holds `digests.json`: the SHA-256 of every other file.  Its own digest is the
world's version: networks trained again are another world.
"""

import hashlib
import json
from pathlib import Path

SHIPPED = Path(__file__).parent / "weights"
DIGESTS = "digests.json"


def sign(folder: Path) -> str:
    """Write the digests of all files of a folder; returns the version."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)
    digests = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    return version(folder)


def version(folder: Path) -> str:
    """The version that a folder says it is, 16 hex digits.

    Raises:
        FileNotFoundError: if there are no weights.
    """
    if not (folder / DIGESTS).is_file():
        raise FileNotFoundError(
            f"expected the shapes world's weights in {folder}, got no {DIGESTS} there; they come "
            f"with the package, or from `stitchbench world build shapes`"
        )
    return _sha256(folder / DIGESTS)[:16]


def verify(folder: Path) -> str:
    """The version of a folder whose files are all what `digests.json` says.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file has another digest.
    """
    found = version(folder)
    for name, expected in json.loads((folder / DIGESTS).read_text()).items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"expected {name} in {folder}, got no such file")
        if (got := _sha256(path)) != expected:
            raise ValueError(
                f"expected {path} with digest {expected[:16]}, got {got[:16]}: the file was "
                f"changed after it was signed"
            )
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
