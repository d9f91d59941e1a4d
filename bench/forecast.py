"""What `run` says before cells of full size start: what they cost, and which do not fit.

Networks are counted from shapes, whatever weights they will have.  A GPU is asked in a process of
its own: the runner holds nothing on what cells are measured on.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch

from bench.cell import Cell
from bench.numberless import Answers
from bench.predict import Known, Predicted, predicted
from bench.predicted_table import flops
from bench.report import numbers
from bench.worlds import full

LESS = "smaller pictures take less: --world WORLD,side=512"
SIDE = 4096  # of the matrices by whose product a GPU's rate is measured
PRODUCTS = 20
# A whole sample, or an iteration of training, takes minutes to count.
QUICKLY = ("align", "value", "cost")


class Room(NamedTuple):
    """What a GPU has.

    Attributes:
        memory: Bytes.
        rate: FLOPs a second in products of bfloat16: what no step exceeds by much.
    """

    memory: int
    rate: float


def of_full_size(cell: Cell) -> bool:
    """Whether a cell runs a model of full size, whole, and its calls are quickly counted."""
    world, algorithm = cell.spec.world, cell.spec.algorithm
    whole = world.build in full.BUILDS and world.settings.get("blocks") is None
    steps = algorithm is None or algorithm.build == "guide"
    return whole and steps and not cell.quick and cell.spec.task in QUICKLY


def refused(cells: Sequence[Cell], device: str, tell: Callable[[str], None]) -> dict[str, str]:
    """Why some cells have no room on a device, by their ids; what those of full size cost is told.

    Args:
        cells: What is to run.
        device: Where: a GPU's memory counts.
        tell: Takes lines.
    """
    large = [cell for cell in cells if of_full_size(cell)]
    if not large:
        return {}
    room = asked(device) if torch.device(device).type == "cuda" else None
    answers, known, why = Answers(), Known(), dict[str, str]()
    for cell in large:
        try:
            one = next(predicted([cell], answers, known))
        except (ValueError, FileNotFoundError) as error:  # a run needs no prediction
            tell(f"{cell.id} is not predicted: {error}")
            continue
        needed = max(cost.live for cost in one.costs.values()) + one.weights
        tell(_line(one, needed, room))
        if room is not None and needed > room.memory:
            why[cell.id] = (
                f"it needs {numbers.size(needed)} beside what libraries take, and {device} has "
                f"{numbers.size(room.memory)}: it was not started"
            )
            tell(f"  {why[cell.id]}")
    if why:
        tell(f"{len(cells) - len(why)} of {len(cells)} cells fit; {LESS}")
    return why


def _line(one: Predicted, needed: int, room: Room | None) -> str:
    """What a cell costs, in words."""
    name, most = max(
        ((name, cost.flops) for name, cost in one.own.items()), key=lambda item: item[1]
    )
    took = "" if room is None else f", at least {numbers.seconds(most / room.rate)}"
    where = one.cell.coordinates
    return (
        f"{where['estimator']}, {where['reward']}, {where['world']}: {name} {flops(most)}FLOP"
        f"{took}; {numbers.size(needed)} of memory"
    )


def asked(device: str) -> Room:
    """What a GPU has, found out by a process that ends before cells start."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(measured, device).result()


def measured(device: str) -> Room:
    """What a GPU has."""
    x = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    x @ x
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        x @ x
    torch.cuda.synchronize(device)
    rate = PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - start)
    return Room(torch.cuda.get_device_properties(device).total_memory, rate)
