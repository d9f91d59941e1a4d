"""Seconds, peak bytes and counted calls, by wrapping: what is measured doesn't know.

Time and memory are read in separate calls.  Peak memory has several meanings and each has one
name: `live` is tensor storage made during the call, above weights and inputs - deterministic on a
CPU; `process` the process's high-water mark; on a GPU `allocated` and `reserved`.  All in bytes.
"""

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stitchvm.backbone import Backbone
from stitchvm.memo import Memory
from stitchvm.reward import Reward

KINDS = ("velocity", "trunk", "blocks", "decode", "reward", "tail")


class Watch(NamedTuple):
    """How to count one method: its arguments, latents in the first of them, and the cost each."""

    arguments: tuple[str, ...]
    rows: Callable[[Any], int]
    cost: Callable[[Any, dict[str, Any]], dict[str, int]]


BACKBONE = {
    "velocity": Watch(("z_t", "t", "c"), len, lambda u, _: {"velocity": 1, "blocks": u.depth}),
    "trunk": Watch(("z_t", "t", "i", "c"), len, lambda _, a: {"trunk": 1, "blocks": a["i"]}),
    "resume": Watch(
        ("state",), lambda s: len(s.z_t), lambda u, a: {"blocks": u.depth - a["state"].i}
    ),
    "advance": Watch(
        ("state", "i"), lambda s: len(s.z_t), lambda _, a: {"blocks": a["i"] - a["state"].i}
    ),
    "decode": Watch(("z_0",), len, lambda *_: {"decode": 1}),
}
REWARD = {
    "forward": Watch(("x", "c"), len, lambda *_: {"reward": 1}),
    "features": Watch(("x",), len, lambda *_: {"reward": 1}),
    "tail": Watch(("h", "j"), lambda h: len(h.map), lambda *_: {"tail": 1}),
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
            self._inside = True
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False

        return counted

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


def seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of one call, and what it returned."""
    start = synchronized(device)
    result = call()
    return synchronized(device) - start, result


class Live(TorchDispatchMode):
    """Peak of tensor storage made while it is active, in bytes.

    Args:
        standing: Tensors that were there before: weights, inputs.
    """

    def __init__(self, standing: Iterator[Tensor]) -> None:
        super().__init__()
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
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

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
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        reset = reset_high_water_mark()
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        allocated = torch.cuda.max_memory_allocated(device)
        return {
            "live": allocated - before,
            "process": high_water_mark() if reset else None,
            "allocated": allocated,
            "reserved": torch.cuda.max_memory_reserved(device),
        }
    live, reset = Live(standing), reset_high_water_mark()
    with live:
        call()
    mark = high_water_mark() if reset else None
    return {"live": live.peak, "process": mark, "allocated": None, "reserved": None}


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
