"""Prompts of a benchmark, each of a kind: all, or the first few of some kinds."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Asked(NamedTuple):
    """A prompt and what its benchmark calls its kind."""

    prompt: str
    kind: str


def chosen(every: Sequence[Asked], kinds: Sequence[str], per_kind: int | None) -> list[str]:
    """Prompts in their order.

    Args:
        every: The benchmark's.
        kinds: Of these alone; none for all.
        per_kind: The first so many of each; None for all.

    Raises:
        ValueError: for a kind that the benchmark has not, or fewer than one of each.
    """
    known = list(dict.fromkeys(asked.kind for asked in every))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"expected kinds among {', '.join(known)}, got {', '.join(unknown)}")
    if per_kind is not None and per_kind < 1:
        raise ValueError(f"expected per_kind of at least 1, got {per_kind}")
    seen: Counter[str] = Counter()
    found = []
    for asked in every:
        seen[asked.kind] += 1
        if asked.kind in (kinds or known) and seen[asked.kind] <= (per_kind or len(every)):
            found.append(asked.prompt)
    return found
