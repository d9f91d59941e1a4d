"""Add a judge to samples that are kept, without generating again.

A judge's scores lie beside the record of the attempt that made the samples, as judge-<name>.json;
the record stays as it was.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from bench.cell import Spec, label
from bench.judging import Scorer
from bench.resolve import resolve, source_digest
from bench.store import Store
from bench.worlds import make
from stitchvm.world import World

PHASES = {"eval": "z_0", "unsteered": "unsteered_z_0"}  # of rows, and their latents
AT_ONCE = 64  # pictures


def rescore(store: Store, judge: str, device: str = "cpu") -> Iterator[tuple[str, bool]]:
    """Score the kept samples of every `align` cell.

    Args:
        store: Where they are.
        judge: A reward of the cell's world, one of its judges, or `file.py:build`.
        device: Where to compute.

    Yields:
        Each cell, and whether its samples were kept.

    Raises:
        UnknownName: for a judge nobody knows.
        ValueError: if the store has no samples of the align task.
    """
    records = [r for r in store.latest().values() if r["spec"]["task"] == "align"]
    ok = [record for record in records if record["status"] == "ok"]
    if not ok:
        raise ValueError(f"expected samples of the align task in {store.path}, found none")
    worlds: dict[str, World] = {}
    for record in ok:
        spec = Spec.model_validate(record["spec"])
        if (key := spec.world.model_dump_json()) not in worlds:
            worlds[key] = make(spec.world, device)
        world = worlds[key]
        arrays = store.samples(record["id"], record["attempt"])
        scores = _scores(world, _judge(world, judge), record["rows"], arrays)
        if scores:
            digest = source_digest(judge, dict.fromkeys(_known(world), make))
            about = {"judge": judge, "source": digest, "scores": scores}
            store.add_judge(record["id"], record["attempt"], called(judge), about)
        yield record["id"], bool(scores)


def _known(world: World) -> tuple[str, ...]:
    return (*world.rewards, *world.judges)


def _judge(world: World, judge: str) -> Scorer:
    if judge in _known(world):
        return world.reward(judge)
    known = {name: (lambda w, name=name: w.reward(name)) for name in _known(world)}
    return resolve(judge, known, "judge")(world)


@torch.no_grad()
def _scores(
    world: World, judge: Scorer, rows: list[dict[str, Any]], arrays: Mapping[str, np.ndarray]
) -> dict[str, list[list[float]]]:
    """Of each phase whose latents are kept, a list per prompt."""
    found = {}
    for row in rows:
        name = PHASES.get(row["phase"])
        if name is None or name not in arrays:
            continue
        z_0 = torch.from_numpy(arrays[name]).to(world.backbone.empty_latents(0))
        each = len(z_0) // len(row["prompts"])
        c = [text for text in row["prompts"] for _ in range(each)]
        parts = [
            judge(world.backbone.decode(z_0[first : first + AT_ONCE]), c[first : first + AT_ONCE])
            for first in range(0, len(c), AT_ONCE)
        ]
        found[row["phase"]] = torch.cat(parts).double().cpu().unflatten(0, (-1, each)).tolist()
    return found


def called(judge: str) -> str:
    """What tables call a judge."""
    return label(judge)
