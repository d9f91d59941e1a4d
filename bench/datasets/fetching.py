"""Fetching a published list: whole, of the right digest, or not at all.

Where the digest is known it is pinned here.  Else the first fetch writes it into `sha256.json`
beside the file, and every later fetch and every reader holds the file to it.
"""

import http.client
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.datasets import ava, captions, drawbench, geneval, hpdv2, imagereward
from bench.datasets.files import SUMS, recorded, sha256
from bench.datasets.hub import PREFIX
from bench.resolve import UnknownName
from bench.store import commit
from stitchvm.models.refusals import from_the_hub

PATIENCE = 60.0  # seconds without an answer
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Published:
    """A list that others publish.

    Attributes:
        file: What it is called in a data set's layout.
        read: Reads it, and refuses what is broken.
        where: `hub:OWNER/NAME@REVISION/FILE`, `https://...`, or None: only by hand.
        sha256: Its digest, where we know it.
        terms: Under which it may be used.
    """

    file: str
    read: Callable[[Path], Any]
    where: str | None
    sha256: str | None
    terms: str


PUBLISHED: dict[str, Published] = {
    "drawbench": Published(
        "drawbench.csv",
        drawbench.read,
        "hub:sayakpaul/drawbench@ad794cba698c253ffdb6d18eff3fc87b004c1135/"
        "DrawBench Prompts - Sheet1.csv",
        None,
        "Apache-2.0 (the hub's page)",
    ),
    "geneval": Published(
        "evaluation_metadata.jsonl",
        geneval.metadata,
        f"{RAW}/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/"
        "prompts/evaluation_metadata.jsonl",
        "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        "MIT",
    ),
    "hpdv2": Published(
        "test.json", hpdv2.rankings, "hub:ymhao/HPDv2@main/test.json", None, "Apache-2.0"
    ),
    "imagereward": Published(
        "test.json",
        imagereward.rankings,
        f"{RAW}/THUDM/ImageReward/c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb/data/test.json",
        "77cff6c2d0522006f52f0b637ef8302db1782b2b761e378c124a012a3c7fc58e",
        "Apache-2.0",
    ),
    "mscoco": Published("dataset_coco.json", captions.karpathy, None, None, "CC BY 4.0"),
    "flickr30k": Published(
        "dataset_flickr30k.json", captions.karpathy, None, None, "research and education"
    ),
    "ava": Published("AVA.txt", ava.ratings, None, None, "research"),
}


def fetch(name: str, to: Path, source: str | None = None) -> Path:
    """Put a published list into a folder, and its digest beside it.

    Args:
        name: A key of `PUBLISHED`.
        to: The folder.
        source: A path, `https://...` or `hub:OWNER/NAME@REVISION/FILE`; None: where it is
            published.

    Returns:
        The file.

    Raises:
        UnknownName: for a list nobody knows.
        ValueError: if it cannot be had, is not whole, or has another digest: nothing changed.
    """
    if name not in PUBLISHED:
        raise UnknownName("list", name, PUBLISHED)
    wanted = PUBLISHED[name]
    source = source or wanted.where
    if source is None:
        raise ValueError(
            f"expected --from PATH: {name} must be had from its authors "
            f"(bench/datasets/{name}.py says where)"
        )
    data, known = _got(source), recorded(to)
    expected, got = wanted.sha256 or known.get(wanted.file), sha256(data)
    if expected not in {None, got}:
        raise ValueError(
            f"expected sha256 {expected} of {name}, got {got} from {source}: it is not whole, or "
            f"another version"
        )
    _refuse_broken(wanted, data, source)
    sums = json.dumps(known | {wanted.file: got}, indent=1, sort_keys=True)
    try:
        to.mkdir(parents=True, exist_ok=True)
        commit(to / wanted.file, data)
        commit(to / SUMS, f"{sums}\n".encode())
    except OSError as error:
        raise ValueError(f"expected a folder to write to, got {to}: {error.strerror}") from error
    return to / wanted.file


def _refuse_broken(wanted: Published, data: bytes, source: str) -> None:
    """Read it where nobody sees it, before it is put into its place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / wanted.file
        path.write_bytes(data)
        try:
            wanted.read(path)
        except ValueError as error:
            raise ValueError(f"{error}".replace(str(path), source)) from None


def _got(source: str) -> bytes:
    if source.startswith("https://"):
        return _downloaded(source)
    path = _cached(source) if source.startswith(PREFIX) else Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"expected a file {path}, found none")
    return path.read_bytes()


def _downloaded(address: str) -> bytes:
    """What an address answers, all of it.

    Raises:
        ValueError: if it does not, or breaks off.
    """
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise ValueError(f"expected a file at {address}, got {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"expected {address} to answer, got {error}: get the file on another machine and give "
            f"it with --from PATH"
        ) from error


def _cached(source: str) -> Path:
    """A file of the hub, in its cache.

    Raises:
        ValueError: if it cannot be had, saying what to do.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow to import

    name, at, rest = source.removeprefix(PREFIX).partition("@")
    revision, slash, file = rest.partition("/")
    if not (at and slash and revision and file):
        raise ValueError(f"expected hub:OWNER/NAME@REVISION/FILE, got {source!r}")
    with from_the_hub(name, revision, "data set"):
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
