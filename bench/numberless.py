"""The meta device, where tensors have shapes and no numbers, made to run code that asks for them.

operators   what one makes of given shapes is asked of it once, and remembered
numbers     of small tensors that came from a CPU, such as times, are carried along there
questions   of other numbers are answered by yes: all is finite, equal shapes are equal
            latents; what is copied to a CPU is nought
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

ASKED = torch.ops.aten._local_scalar_dense
EQUAL = torch.ops.aten.equal
COPY = torch.ops.aten._to_copy
SOME = torch.ops.aten.index
AND = {
    getattr(torch.ops.aten, name)
    for name in ("bitwise_and", "bitwise_and_", "__and__", "__iand__")
}
FEW = 256  # numbers that are carried along
CHANGED = "its first argument"
META, CPU = torch.device("meta"), torch.device("cpu")


class Made(NamedTuple):
    """A tensor of its own storage, which an operator made."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def again(self) -> Tensor:
        """Another one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


class Answers(TorchDispatchMode):
    """Runs operators on shapes, and answers where numbers are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Any] = {}
        self._numbers = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or run an operator on shapes."""
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        packet = func._overloadpacket
        if tensors and tensors[0].is_meta:
            if packet is ASKED:
                known = self._numbers.get(tensors[0])
                return True if known is None else known.item()
            if packet is EQUAL:
                return self._equal(*args)
            if packet is COPY and kwargs.get("device") == CPU:
                return self._copied(args[0], kwargs)
        out = self._run(func, args, kwargs, tensors)
        self._carry(func, args, kwargs, tensors, out)
        return out

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        known = self._numbers.get(a), self._numbers.get(b)
        if known[0] is not None and known[1] is not None:
            return torch.equal(*known)
        return a.shape == b.shape

    def _copied(self, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
        known = self._numbers.get(x)
        dtype = kwargs.get("dtype") or x.dtype
        return torch.zeros(x.shape, dtype=dtype) if known is None else known.to(dtype, copy=True)

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """What an operator makes: as it made of the same shapes before."""
        if not tensors or func.is_view:
            return func(*args, **kwargs)
        kind = (func, torch.get_default_dtype(), _kind(args), _kind(tuple(kwargs.items())))
        if (made := self._made.get(kind)) is not None:
            return tensors[0] if made is CHANGED else _again(made)
        out = func(*args, **kwargs)
        if func._schema.is_mutable:  # in its numbers alone
            changed = out is tensors[0] and out.is_meta and _kind(args) == kind[2]
            made = CHANGED if changed else None
        else:
            made = _made(out, tensors)
        if made is not None:
            self._made[kind] = made
        return out

    def _carry(
        self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], out: Any
    ) -> None:
        """Keep the numbers of what an operator made of known ones."""
        if func._overloadpacket in AND and tensors[0].dtype == torch.bool:
            self._both(args[0], args[1], out)
            return
        if func._overloadpacket is SOME:
            self._some(tensors[0], out)
            return
        if func._schema.is_mutable:
            for x in tensors[:1]:
                self._numbers.pop(x, None)
            return
        outs = out if isinstance(out, list | tuple) else [out]
        few = [isinstance(x, Tensor) and x.is_meta and x.numel() <= FEW for x in outs]
        if not tensors or not all(few) or not all(self._known(x) for x in tensors):
            return
        there = kwargs | {"device": CPU} if "device" in kwargs else kwargs
        found = func(*self._there(args), **{name: self._there(x) for name, x in there.items()})
        for x, numbers in zip(outs, found if outs is out else [found], strict=True):
            self._numbers[x] = numbers

    def _both(self, a: Any, b: Any, out: Tensor) -> None:
        """Keep whether two things hold, where one is known and the other, unknown, is yes."""
        known = [self._there(x) for x in (a, b) if not isinstance(x, Tensor) or self._known(x)]
        self._numbers.pop(out, None)
        if known and out.numel() <= FEW:
            yes = torch.ones(out.shape, dtype=torch.bool)
            for x in known:
                yes &= x
            self._numbers[out] = yes

    def _some(self, x: Tensor, out: Tensor) -> None:
        """Keep the numbers of a selection, whichever it is, from equal ones: times of a batch."""
        numbers = self._numbers.get(x) if x.is_meta else None
        if numbers is not None and out.numel() <= FEW and bool((numbers == numbers.max()).all()):
            self._numbers[out] = numbers.max().expand(out.shape)

    def _known(self, x: Tensor) -> bool:
        return not x.is_meta or x in self._numbers

    def _there(self, x: Any) -> Any:
        """Arguments with numbers."""
        if isinstance(x, Tensor):
            return self._numbers[x] if x.is_meta else x
        return type(x)(map(self._there, x)) if type(x) in {list, tuple} else x


def _tensors(x: Any) -> Iterator[Tensor]:
    """All tensors of arguments."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for inner in x:
            yield from _tensors(inner)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _kind(x: Any) -> Any:
    """What the shapes that an operator makes depend on."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device
    if isinstance(x, list | tuple):
        return tuple(map(_kind, x))
    return type(x), x  # 1, 1.0 and True are equal


def _made(out: Any, tensors: list[Tensor]) -> Any:
    """What an operator made; None unless all of it is new, and shapes alone."""
    outs = out if isinstance(out, list | tuple) else [out]
    storages = [x.untyped_storage() for x in outs if isinstance(x, Tensor)]
    apart = {s._cdata for s in storages}
    if (
        not apart
        or len(apart) < len(storages)
        or apart & {x.untyped_storage()._cdata for x in tensors}
    ):
        return None
    made = []
    for x in outs:
        one = Made(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x
        if isinstance(one, Made) and not (
            x.is_meta and one.again().untyped_storage().nbytes() == x.untyped_storage().nbytes()
        ):
            return None
        made.append(one)
    return type(out)(made) if outs is out else made[0]


def _again(made: Any) -> Any:
    if isinstance(made, Made):
        return made.again()
    return type(made)(x.again() if isinstance(x, Made) else x for x in made)
