"""Seconds, peak bytes and counted calls, by wrapping: what is measured doesn't know.

Time and memory are read in separate calls.  Peak memory has several meanings and each has one
name, all in bytes:

    live        tensor storage made by the call, above weights and inputs; repeatable on a CPU
    process     the process's high-water mark in host memory (VmHWM, reset before)
    allocated   of a GPU: tensors, weights and inputs among them (max_memory_allocated)
    reserved    what the caching allocator took for them (max_memory_reserved)
    driver      what the process holds by NVML: reserved, context, libraries
    device      how much more of the whole device is in use than before, whoever uses it (NVML)

The last two are read once, at the end: the allocator keeps what it took until then.  What a
library takes past it and gives back during the call escapes them.

Seconds of a GPU are those of the clock on the wall, once queued work is done.  Stages are told
apart by events in its queue, so that nothing waits between them; what they leave of the wall's
seconds is the host's.
"""

import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import nvml
from stitchvm.backbone import Backbone, State
from stitchvm.memo import Memory
from stitchvm.reward import Reward

Clock = Callable[[], float]


class Moment(Protocol):
    """A reading of a clock; two of them differ by seconds."""

    def __sub__(self, start: Any, /) -> float:
        """Seconds since another reading."""


Moments = Callable[[], Moment]
KINDS = ("velocity", "trunk", "blocks", "decode", "reward", "tail")
STAGES = ("blocks", "decode", "reward", "tail", "backward", "rest")
PEAKS = ("live", "process", "allocated", "reserved", "driver", "device")


class Watch(NamedTuple):
    """How to count one method: its arguments, latents in the first of them, and the cost each.

    Its seconds belong to a stage.
    """

    stage: str
    arguments: tuple[str, ...]
    rows: Callable[[Any], int]
    cost: Callable[[Any, dict[str, Any]], dict[str, int]]


def _rows(state: State) -> int:
    return len(state.z_t)


BACKBONE = {
    "velocity": Watch(
        "blocks", ("z_t", "t", "c"), len, lambda u, _: {"velocity": 1, "blocks": u.depth}
    ),
    "trunk": Watch(
        "blocks", ("z_t", "t", "i", "c"), len, lambda _, a: {"trunk": 1, "blocks": a["i"]}
    ),
    "resume": Watch("blocks", ("state",), _rows, lambda u, a: {"blocks": u.depth - a["state"].i}),
    "advance": Watch(
        "blocks", ("state", "i"), _rows, lambda _, a: {"blocks": a["i"] - a["state"].i}
    ),
    "decode": Watch("decode", ("z_0",), len, lambda *_: {"decode": 1}),
}
REWARD = {
    "forward": Watch("reward", ("x", "c"), len, lambda *_: {"reward": 1}),
    "features": Watch("reward", ("x",), len, lambda *_: {"reward": 1}),
    "tail": Watch("tail", ("h", "j"), lambda h: len(h.map), lambda *_: {"tail": 1}),
}


class Calls:
    """Counts of what backbones and rewards are asked for, in latents: batch size changes nothing.

    `blocks` are backbone blocks run; `tail` are entries into a reward that bypass its head.  What
    a watched method does inside itself is part of it, not another call.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._watched: set[int] = set()
        self._inside = False
        self._clock: Moments | None = None
        self._spent: list[tuple[str, Moment, Moment]] = []

    def watch(self, module: nn.Module) -> None:
        """Count calls of every backbone and reward in a module, itself included.

        What a memory of a backbone is asked for is not counted, but what it asks for.
        """
        for part in module.modules():
            if id(part) in self._watched or isinstance(part, Memory):
                continue
            for kind, watches in ((Backbone, BACKBONE), (Reward, REWARD)):
                if isinstance(part, kind):
                    self._watched.add(id(part))
                    for name, watch in watches.items():
                        setattr(part, name, MethodType(self._counted(name, watch), part))

    def _counted(self, name: str, watch: Watch) -> Callable[..., Any]:
        """A method that counts itself, unless another counted one is calling it.

        It asks the class of whom it is bound to: a copy of a watched module has a method of its
        own, not the original's.
        """

        def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            method = partial(getattr(type(module), name), module)
            if self._inside:
                return method(*args, **kwargs)
            given = {**dict(zip(watch.arguments, args, strict=False)), **kwargs}
            rows = watch.rows(given[watch.arguments[0]])
            for kind, number in watch.cost(module, given).items():
                self.counts[kind] += rows * number
            return self._timed(watch.stage, method, *args, **kwargs)

        return counted

    def _timed(self, stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a function as part of a stage, or of the one that it is called in."""
        if self._inside:
            return function(*args, **kwargs)
        self._inside, start = True, None if self._clock is None else self._clock()
        try:
            return function(*args, **kwargs)
        finally:
            self._inside = False
            if self._clock is not None and start is not None:
                self._spent.append((stage, start, self._clock()))

    def stages(self, call: Callable[[], Any], clock: Moments) -> dict[str, float]:
        """Seconds of one call by stage, which add up to all of it.

        What is computed again in a backward pass belongs to that.

        Args:
            call: What to time; it runs once.
            clock: Tells the time; its readings are compared once the call has ended.
        """
        self._clock, self._spent = clock, []
        backward = torch.autograd.backward
        start = clock()
        try:
            with patch("torch.autograd.backward", partial(self._timed, "backward", backward)):
                call()
        finally:
            stop, self._clock = clock(), None
        spent = dict.fromkeys(STAGES, 0.0)
        for stage, since, until in self._spent:
            spent[stage] += until - since
        return spent | {"rest": (stop - start) - sum(spent.values())}

    @contextmanager
    def during(self) -> Iterator[Counter[str]]:
        """The counts of a block of code, filled in when it ends."""
        before, spent = self.counts.copy(), Counter[str]()
        yield spent
        spent.update({kind: self.counts[kind] - before[kind] for kind in KINDS})


def synchronized(device: torch.device) -> float:
    """The clock, after all work queued on a device is done; seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Queued:
    """A moment in a GPU's queue, now: an event between what is queued before and after it.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(torch.cuda.current_stream(device))

    def __sub__(self, start: "Queued") -> float:
        """Seconds of the GPU since another moment; waits for this one."""
        self.event.synchronize()
        return start.event.elapsed_time(self.event) / 1000


def seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of one call, and what it returned."""
    start = synchronized(device)
    result = call()
    return synchronized(device) - start, result


class Live(TorchDispatchMode):
    """Peak of tensor storage made while it is active, in bytes.

    Args:
        standing: Tensors that were there before: weights, inputs.
        block: Bytes that each storage is rounded up to, as an allocator does.
    """

    def __init__(self, standing: Iterator[Tensor], block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.now = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in standing}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run an operator and note the storage of what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = -(-storage.nbytes() // self.block) * self.block
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(
    call: Callable[[], Any], device: torch.device, standing: Iterator[Tensor]
) -> dict[str, int | None]:
    """Peak memory of one call, by every meaning the device offers; absent ones are None.

    Args:
        call: What to measure; it runs once.
        device: Where it runs.
        standing: Weights and inputs, which are not counted as live.
    """
    if device.type == "cuda":
        return _peak_of_gpu(call, device)
    live, reset = Live(standing), reset_high_water_mark()
    with live:
        call()
    mark = high_water_mark() if reset else None
    return dict.fromkeys(PEAKS) | {"live": live.peak, "process": mark}


def _peak_of_gpu(call: Callable[[], Any], device: torch.device) -> dict[str, int | None]:
    """The same on a GPU, whose cache is emptied first: what it holds is another call's."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    reset, before = reset_high_water_mark(), torch.cuda.memory_allocated(device)
    _, used_before = nvml.held(*nvml.identity(device))
    call()
    torch.cuda.synchronize(device)
    own, used = nvml.held(*nvml.identity(device))
    allocated = torch.cuda.max_memory_allocated(device)
    return {
        "live": allocated - before,
        "process": high_water_mark() if reset else None,
        "allocated": allocated,
        "reserved": torch.cuda.max_memory_reserved(device),
        "driver": own,
        "device": None if used is None or used_before is None else used - used_before,
    }


def reset_high_water_mark() -> bool:
    """Set VmHWM back to the present size; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def high_water_mark() -> int | None:
    """The process's peak resident bytes since the last reset (VmHWM); None without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024
