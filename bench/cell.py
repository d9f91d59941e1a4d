"""A cell is one measured run: a fully resolved specification and the digest that names it.

The id is SHA-256 over canonical JSON: sorted keys, defaults written out, digests of weights and
prompts in, and nothing in that does not change the result (a device's number, paths, who runs it).
Latents are a function of what is in: their recipe identifies them, and records keep the digest of
what was measured.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bench.part import JOINT, Model, Part, named
from bench.protocols import AnyProtocol

Task = Literal["value", "robustness", "interface", "cost", "align", "train"]

SCHEMA = 1  # of specifications and records; a change of meaning is a new number
PATHS = ("pictures", "models", "sets", "training")  # that a world of ours reads
SUFFIXES = {".py", ".txt", ".jsonl"}  # of users' files
LATER: dict[str, Any] = {
    "algorithm": None,
    "metrics": [],
    "judges": [],
    "gradients": True,
    "fast": [],
    "captions": "mscoco",
    "preferences": "hpdv2",
    "classic": True,
}


class Spec(Model):
    """Everything a result depends on.

    Attributes:
        task: The protocol's name.
        world, reward, estimator: What is measured.
        protocol: How.
        prompts: Digest of the prompts' texts.
        seed: Of latents and of the estimators' randomness.
        device: Kind of device, `cpu` or `cuda`: seconds and bytes depend on it.
        threads: CPU threads.
        algorithm: What the estimator is plugged into, of `align` and `train`.
        schema_version: Of this specification.
    """

    task: Task = "value"
    world: Part
    reward: Part
    estimator: Part
    protocol: AnyProtocol
    prompts: str
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    algorithm: Part | None = None
    schema_version: int = SCHEMA

    @property
    def id(self) -> str:
        """The digest that names the cell, 16 hex digits."""
        return identity(self.model_dump(mode="json"))


def identity(spec: dict[str, Any]) -> str:
    """The id of a specification as plain data.

    A user's file counts by its name and content, not by the folder it lies in; so do the folders
    that our worlds read, whose content their digest says.  Where a field that came `LATER` says
    what was so before it, it is not in the digest either.
    """
    world = spec.get("world")
    if isinstance(world, dict) and world.get("source") is None:
        spec = spec | {"world": world | {"settings": _read(world.get("settings", {}))}}
    return digest(_identified(spec))


def _read(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a world of ours without the paths of what it reads."""
    kept = {name: value for name, value in settings.items() if name not in PATHS}
    if "weights" in kept and kept["weights"] not in {"random", "hub"}:
        kept["weights"] = "copies"
    return kept


def _identified(data: Any) -> Any:
    if isinstance(data, list):
        return [_identified(value) for value in data]
    if not isinstance(data, dict):
        return data
    kept = {
        name: _identified(value)
        for name, value in data.items()
        if not (name in LATER and value == LATER[name])
    }
    if isinstance(data.get("build"), str) and isinstance(data.get("source"), str):
        kept["build"] = named(data["build"], data["source"])
    return kept


def digest(data: Any) -> str:
    """SHA-256 of plain data in canonical JSON, first 16 hex digits.

    Key order, tuples against lists and 1 against 1.0 make no difference.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot say.
    """
    text = json.dumps(_canonical(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _canonical(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_canonical(value) for value in data]
    if isinstance(data, float) and math.isfinite(data) and data == int(data):
        return int(data)
    return data


class Cell(Model):
    """A specification under the names a table shows.

    Attributes:
        spec: What is measured.
        suite: Which suite asked.
        coordinates: Where the cell stands in its suite: what tables split and `--only` selects by.
        quick: Whether the suite was shortened.
    """

    spec: Spec
    suite: str
    coordinates: dict[str, str]
    quick: bool = False

    @property
    def id(self) -> str:
        """The specification's digest."""
        return self.spec.id

    @property
    def label(self) -> str:
        """The estimator's name in tables."""
        return self.coordinates["estimator"]


def label(value: Any) -> str:
    """What a table calls a part: its name, or its build and settings."""
    if isinstance(value, Mapping):
        if "name" in value:
            return str(value["name"])
        given = {k: v for k, v in value.items() if k != "build"}
        settings = ", ".join(f"{k}={label(v)}" for k, v in given.items())
        build = label(value.get("build", ""))
        return f"{build}({settings})" if settings else build
    return JOINT.join(map(_stem, str(value).split(JOINT)))


def _stem(text: str) -> str:
    """A user's file without folder and suffix; any other name as it is."""
    path = Path(text.partition(":")[0])
    return path.stem if path.suffix in SUFFIXES else text
