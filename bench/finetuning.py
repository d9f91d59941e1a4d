"""Stage 2 in a folder: checkpoint, log, what was kept on the way, and the finished model.

<folder>/run.json                       of what it was begun
<folder>/checkpoint.pt, log.jsonl       how far it has come, and each step
<folder>/step-N/, model/                the value model after N steps, and at the end
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.spent import timed
from stitchvm.distill import CHECKPOINT, Recipe, Record, Student, averaged, distill, last_record
from stitchvm.saved import put
from stitchvm.teacher import Lessons
from stitchvm.workers import ALONE, Workers

Plain = dict[str, Any]
MODEL, LOG, BEGUN = "model", "log.jsonl", "run.json"


def finetune(
    model: Student,
    data: Lessons,
    recipe: Recipe,
    folder: Path,
    about: dict[str, object],
    keep: Sequence[int] = (),
    *,
    workers: Workers = ALONE,
    micro: int | None = None,
) -> Iterator[Record]:
    """Stage 2 in a folder; killed at any moment, the same call goes on.

    A finished model is trained further by a recipe of more steps; what it was is kept as `step-N`.

    Args:
        model: After stage 1.
        data: What to learn from.
        recipe: How.
        folder: Of checkpoint, log and the finished model; all processes must see it.
        about: What to say of how it was made.
        keep: Steps after which the value model is kept as well.
        workers: The processes that train it together; the first writes.
        micro: Images whose graphs are kept at once.

    Yields:
        The records that were not made before.

    Raises:
        ValueError: if the folder is of another model, recipe or origin.
    """
    begun = json.loads(json.dumps({**about, "recipe": asdict(recipe)}))
    finished = _begun(begun, recipe, folder)
    workers.wait()  # until all have read it
    if finished == recipe.steps:
        return
    kept = partial(_keep, model, folder, begun, keep)
    if workers.first:
        if finished is not None:
            _set_aside(folder / MODEL, folder / f"step-{finished}")
        folder.mkdir(parents=True, exist_ok=True)
        put_json(folder / BEGUN, begun)
        made = last_record(folder)
        _go_back(folder / LOG, made)
        if made is not None:
            kept(made.step)
    workers.wait()
    device = next(w for part in model.trained().values() for w in part.values()).device
    steps = distill(model, data, recipe, folder, keep=keep, workers=workers, micro=micro)
    for record, spent in timed(steps, device, workers.count):
        if workers.first:
            with (folder / LOG).open("a") as lines:
                lines.write(json.dumps(record._asdict() | spent.plain()) + "\n")
            kept(record.step)
        yield record
    if workers.first:
        model.save_pretrained(folder / MODEL, begun)
    workers.wait()


def _begun(wanted: Plain, recipe: Recipe, folder: Path) -> int | None:
    """After how many steps the finished model of a folder ended; None without one.

    Raises:
        ValueError: if the folder is of another model, recipe or origin.
    """
    made = (folder / MODEL).is_dir() or (folder / CHECKPOINT).is_file()
    if not made or not (folder / BEGUN).is_file():
        return None  # what failed before its first checkpoint binds nobody
    known = json.loads((folder / BEGUN).read_text())
    earlier = Recipe(**known["recipe"])
    if recipe.continues(earlier):
        wanted = {**wanted, "recipe": known["recipe"]}
    same("a run", wanted, known, folder)
    return earlier.steps if (folder / MODEL).is_dir() else None


def _keep(model: Student, folder: Path, about: Plain, keep: Sequence[int], step: int) -> None:
    """Keep what a model has come to, if that step was asked for."""
    where = folder / f"step-{step}"
    if step in keep and not where.is_dir():
        with averaged(model, folder):
            model.save_pretrained(where, about)


def same(what: str, wanted: Plain, known: Plain, where: Path) -> None:
    """Refuse what was made of something else, naming what differs."""
    mine, theirs = _differing(wanted, known), _differing(known, wanted)
    if mine or theirs:
        raise ValueError(f"expected {what} of {mine} in {where}, got {theirs}")


def _differing(a: Plain, b: Plain) -> Plain:
    """What of one the other has not, or has otherwise."""
    found: Plain = {}
    for key, value in a.items():
        other = b.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := _differing(value, other):
                found[key] = inner
        elif key not in b or value != other:
            found[key] = value
    return found


def _set_aside(model: Path, kept: Path) -> None:
    """Keep a finished model under another name; where it is kept already, drop it."""
    if not kept.is_dir():
        model.rename(kept)
        return
    dropped = model.with_name(f"{model.name}.old")
    shutil.rmtree(dropped, ignore_errors=True)
    model.rename(dropped)
    shutil.rmtree(dropped)


def _go_back(log: Path, made: Record | None) -> None:
    """Leave in a log the steps up to a checkpoint's; what follows is made again."""
    kept: list[str] = []
    last = 0
    for line in log.read_text().splitlines() if log.is_file() else []:
        if made is None or not line.endswith("}") or json.loads(line)["step"] > made.step:
            break
        kept.append(line)
        last = json.loads(line)["step"]
    if made is not None and last < made.step:
        kept.append(json.dumps(made._asdict()))
    put(log, "".join(f"{line}\n" for line in kept).encode())


def put_json(path: Path, what: object) -> None:
    """Write JSON that is there whole or not at all."""
    put(path, (json.dumps(what, indent=1) + "\n").encode())
