"""What `run` says before cells of full size start: what they cost, and which do not fit.

Networks are counted from shapes, whatever weights they will have.  A GPU is asked in a process of
its own, by a few velocities of the first world with random weights: the runner holds nothing on
what cells are measured on.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch

from bench import machine
from bench.asked import shapes_of
from bench.cell import Cell, Spec
from bench.meter import seconds
from bench.numberless import Answers
from bench.part import Part
from bench.predict import Known, Predicted, predicted
from bench.predicted_table import flops
from bench.protocols import AlignProtocol
from bench.report import numbers
from bench.worlds import full
from bench.worlds import make as make_world
from stitchvm.backbone import NULL
from stitchvm.flops import count_flops

LESS = "smaller pictures take less: --world WORLD,side=512"
OFFLOAD = "offload"
SIDE = 4096  # of the matrices by whose product a GPU's rate is measured where no model fits
PRODUCTS, STEPS = 20, 3
# A whole sample, or an iteration of training, takes minutes to count.
QUICKLY = ("align", "value", "cost")


class Room(NamedTuple):
    """What a GPU and its machine have.

    Attributes:
        memory: Bytes.
        rate: FLOPs a second.
        sure: How times by that rate compare with real ones: `about`, where it is that of a model's
            steps, or `at least`, where it is that of products of bfloat16.
        main: Bytes of main memory.
    """

    memory: int
    rate: float
    sure: str = "at least"
    main: float = math.inf


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
    on_gpu = torch.device(device).type == "cuda"
    room = asked(device, large[0].spec.world) if on_gpu else None
    answers, known, why = Answers(), Known(), dict[str, str]()
    for cell in large:
        try:
            one = next(predicted([cell], answers, known))
        except (ValueError, FileNotFoundError) as error:  # a run needs no prediction
            tell(f"{cell.id} is not predicted: {error}")
            continue
        needed = _needed(one)
        tell(_line(one, needed, room))
        if room is not None and (wanted := _beyond(one, room, device)):
            why[cell.id] = f"it needs {wanted}: it was not started"
            tell(f"  {why[cell.id]}{_relief(cell, room, answers, known)}")
    if why:
        tell(f"{len(cells) - len(why)} of {len(cells)} cells fit; {LESS}")
    return why


def _beyond(one: Predicted, room: Room, device: str) -> str:
    """What a cell needs that there is not, in words; nothing where there is."""
    if (needed := _needed(one)) > room.memory:
        return (
            f"{numbers.size(needed)} beside what libraries take, and {device} has "
            f"{numbers.size(room.memory)}"
        )
    if one.waiting > room.main:
        have = numbers.size(room.main)
        return f"{numbers.size(one.waiting)} of main memory, and the machine has {have}"
    return ""


def _needed(one: Predicted) -> int:
    """Bytes on a GPU, with what its calls are held against."""
    return max(cost.live for cost in one.costs.values()) + one.weights


def _relief(cell: Cell, room: Room, answers: Answers, known: Known) -> str:
    """The first change that makes room for a cell, in words; nothing where none does."""
    for some in (*((words,) for words in RELIEFS), tuple(RELIEFS)):
        spec = cell.spec
        for words in some:
            spec = RELIEFS[words](spec)
        one = next(predicted([cell.model_copy(update={"spec": spec})], answers, known))
        if not _beyond(one, room, ""):
            main = f" and {numbers.size(one.waiting)} of main memory" if one.waiting else ""
            return f"; with {' and '.join(some)} {numbers.size(_needed(one))}{main} would do"
    return ""


def _without_classic(spec: Spec) -> Spec:
    """A cell that does not time classic DPS beside its own step, if it did."""
    if not isinstance(spec.protocol, AlignProtocol):
        return spec
    protocol = spec.protocol.model_copy(update={"classic": False})
    return spec.model_copy(update={"protocol": protocol})


def _offloaded(spec: Spec) -> Spec:
    """A cell whose generator's blocks wait in main memory."""
    fast = [*spec.world.settings.get("fast", ())]
    fast += [] if OFFLOAD in fast else [OFFLOAD]
    settings = spec.world.settings | {"fast": fast}
    return spec.model_copy(update={"world": spec.world.model_copy(update={"settings": settings})})


RELIEFS: dict[str, Callable[[Spec], Spec]] = {
    "--set classic=false": _without_classic,
    "fast=[offload] in its world": _offloaded,
}


def _line(one: Predicted, needed: int, room: Room | None) -> str:
    """What a cell costs, in words."""
    name, most = max(
        ((name, cost.flops) for name, cost in one.own.items()), key=lambda item: item[1]
    )
    sure = "at least" if one.waiting else "" if room is None else room.sure  # copies take time
    took = "" if room is None else f", {sure} {numbers.seconds(most / room.rate)}"
    where = one.cell.coordinates
    main = f", {numbers.size(one.waiting)} of main memory" if one.waiting else ""
    return (
        f"{where['estimator']}, {where['reward']}, {where['world']}: {name} {flops(most)}FLOP"
        f"{took}; {numbers.size(needed)} of memory{main}"
    )


def asked(device: str, world: Part) -> Room:
    """What a GPU has, found out by a process that ends before cells start."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(measured, device, world).result()


def measured(device: str, world: Part) -> Room:
    """What a GPU has."""
    memory = torch.cuda.get_device_properties(device).total_memory
    whole = machine.memory()[1]
    main = math.inf if whole is None else whole
    try:
        return Room(memory, by_steps(device, world), "about", main)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Room(memory, by_products(device), main=main)


@torch.no_grad()
def by_steps(device: str, world: Part) -> float:
    """FLOPs a second of velocities with guidance, of a world's shapes and random weights."""
    settings = {name: value for name, value in world.settings.items() if name != "fast"}
    plain = world.model_copy(update={"settings": settings})
    made = make_world(shapes_of(plain), device)
    z_t = torch.zeros(2, *made.backbone.latent, device=device)
    t, c = torch.full((), 0.5, device=device), [NULL, made.prompts[0]]
    step, where = partial(made.backbone.velocity, z_t, t, c), torch.device(device)
    flops = count_flops(step, where)  # it runs for the first time there
    return flops / min(seconds(step, where)[0] for _ in range(STEPS))


def by_products(device: str) -> float:
    """FLOPs a second of products of bfloat16, which no step exceeds by much."""
    x = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    x @ x
    spent = seconds(lambda: [x @ x for _ in range(PRODUCTS)], torch.device(device))[0]
    return PRODUCTS * 2 * SIDE**3 / spent
