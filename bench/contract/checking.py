"""Running checks, and what numbers must agree to."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.resolve import place
from stitchvm.streams import Streams

ROWS = 5


class Precision(NamedTuple):
    """What is demanded of numbers of a dtype.

    Attributes:
        equal: Largest gap of equal numbers, relative to the largest one.
        step: Of central differences.
        slope: Their largest gap to the gradient, relative to it.
        share: Of the batch's largest slope, below which a slope is only known as that share.
    """

    equal: float
    step: float
    slope: float
    share: float


PRECISIONS = {
    torch.float64: Precision(1e-10, 1e-5, 1e-6, 0.0),
    torch.float32: Precision(1e-4, 3e-3, 5e-2, 0.3),
}
SMALL = 1e-2  # slopes below it are compared with it


def check(
    case: Any, checks: tuple[Callable[[Any], None], ...]
) -> Iterator[tuple[str, str | None]]:  # noqa: ANN401
    """Every check's one-line description, and what went wrong or None."""
    for one in checks:
        about = (one.__doc__ or one.__name__).strip()
        try:
            one(case)
        except Exception as error:
            yield about, f"{type(error).__name__}: {error}{place(error)}"
        else:
            yield about, None


def expect(holds: bool, expected: str, got: object) -> None:  # noqa: FBT001
    """Fail a check unless something holds.

    Raises:
        AssertionError: saying what was expected and what came.
    """
    if not holds:
        raise AssertionError(f"expected {expected}, got {got}")


def close(a: Tensor, b: Tensor, what: str = "equal values") -> None:
    """Fail a check unless two tensors agree, as far as their dtype can say."""
    expect(a.shape == b.shape, f"{what} of shape {tuple(a.shape)}", tuple(b.shape))
    tolerance = precision(a).equal
    scale = max(1.0, float(a.detach().abs().max()))
    gap = float((a - b).detach().abs().max())
    expect(gap <= tolerance * scale, f"{what} to {tolerance:g}", f"a gap of {gap:g}")


def precision(x: Tensor) -> Precision:
    """What is demanded of a tensor's numbers."""
    return PRECISIONS.get(x.dtype, PRECISIONS[torch.float32])


def finite(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Fail a check unless a tensor has a shape, and finite numbers."""
    expect(isinstance(x, Tensor), f"{what} as a tensor", type(x).__name__)
    expect(tuple(x.shape) == shape, f"{what} of shape {_text(shape)}", _text(tuple(x.shape)))
    expect(bool(x.isfinite().all()), f"finite {what}", x.detach().flatten().tolist()[:ROWS])


def _text(shape: tuple[int, ...]) -> str:
    return f"({shape[0]},)" if len(shape) == 1 else str(shape)


def slopes(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> None:
    """Fail a check unless a gradient is that of central differences, row by row.

    Args:
        function: From x to one number a row, (B,).
        x: Where, (B, ...).
        gradient: Of the numbers' sum in x, (B, ...).
    """
    demanded = precision(x)
    direction = Streams.of(0, "contract direction", rows=len(x)).normal(x)
    with torch.no_grad():
        one, two = (
            function(x + k * demanded.step * direction)
            - function(x - k * demanded.step * direction)
            for k in (1, 2)
        )
    difference = (8 * one - two) / (12 * demanded.step)  # exact to fourth order
    ours = (gradient * direction).flatten(1).sum(1)
    least = max(SMALL, demanded.share * float(ours.abs().max()))
    gap = ((ours - difference).abs() / ours.abs().clamp(min=least)).max()
    expect(
        float(gap) <= demanded.slope,
        f"the gradient of central differences to {demanded.slope:g}",
        f"{ours.tolist()} for {difference.tolist()}",
    )


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the sum of a function's numbers, as autograd has it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(x).sum(), x)
    return found


def refused(call: Callable[[], object], what: str) -> None:
    """Fail a check unless a call raises a ValueError."""
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"expected a ValueError for {what}, got none")
