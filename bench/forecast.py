"""What `run` says before cells of full size start: what they cost, and which do not fit."""

import time
from collections.abc import Callable, Sequence

import torch

from bench.cell import Cell
from bench.numberless import Answers
from bench.predict import Known, Predicted, predicted
from bench.predicted_table import YARDSTICKS, flops
from bench.report import numbers
from bench.worlds import full

LESS = "smaller pictures take less: --world WORLD,side=512"
SIDE = 4096  # of the matrices by whose product a GPU's rate is measured
PRODUCTS = 20
PREDICTED = ("align", "value")  # an iteration of training takes minutes to count


def of_full_size(cell: Cell) -> bool:
    """Whether a cell runs a model of full size, whole."""
    world, settings = cell.spec.world, cell.spec.world.settings
    whole = world.build in full.BUILDS and settings.get("blocks") is None
    return whole and not cell.quick and cell.spec.task in PREDICTED


def fitting(cells: Sequence[Cell], device: str, tell: Callable[[str], None]) -> list[Cell]:
    """The cells that a device has room for; what those of full size cost is told.

    Args:
        cells: What is to run.
        device: Where: on a GPU its memory counts, and its rate, measured now.
        tell: Takes lines.
    """
    large = [cell for cell in cells if of_full_size(cell)]
    if not large:
        return list(cells)
    gpu = torch.device(device).type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if gpu else None
    speed = rate(device) if gpu else None
    answers, known, fit = Answers(), Known(), {cell.id: True for cell in cells}
    for cell in large:
        try:
            one = next(predicted([cell], answers, known))
        except ValueError as error:  # a run needs no prediction
            tell(f"{cell.id} is not predicted: {error}")
            continue
        needed = one.live + one.weights
        tell(_line(one, needed, speed))
        if room is not None and needed > room:
            fit[cell.id] = False
            tell(
                f"  not started: it needs {numbers.size(needed)} beside what libraries take, and "
                f"{device} has {numbers.size(room)}"
            )
    if not all(fit.values()):
        tell(f"{sum(fit.values())} of {len(fit)} cells fit; {LESS}")
    return [cell for cell in cells if fit[cell.id]]


def _line(one: Predicted, needed: int, speed: float | None) -> str:
    """What a cell costs, in words."""
    name, most = max(
        ((name, cost.flops) for name, cost in one.costs.items() if name not in YARDSTICKS),
        key=lambda item: item[1],
    )
    took = "" if speed is None else f", at least {numbers.seconds(most / speed)}"
    where = one.cell.coordinates
    return (
        f"{where['estimator']}, {where['reward']}, {where['world']}: {name} {flops(most)}FLOP"
        f"{took}; {numbers.size(needed)} of memory"
    )


def rate(device: str) -> float:
    """FLOPs a second of a GPU in products of bfloat16: what no step exceeds by much."""
    x = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    x @ x
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        x @ x
    torch.cuda.synchronize(device)
    return PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - start)
