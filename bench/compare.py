"""Two stores, cell by cell: the same cells measured twice, such as before and after a change."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench import repeats
from bench.comparison import Comparison, adjusted, of_cell

Record = dict[str, Any]
Records = Mapping[str, Record]
PASSING = ("before", "after", "disturbed")  # of an environment: not what it is, but how it was


class Stores(NamedTuple):
    """What two stores say of each other.

    Attributes:
        comparisons: Of all figures of the cells that are ok in both.
        failed: Cells ok in the first and not in the second.
        mended: The other way round.
        missing: Cells ok in the first and not there in the second.
        added: The other way round.
        unpaired: Places whose latents differ, so that quality was not compared.
        environments: What differs, and its values in either store.
        notes: What makes seconds doubtful, in words.
    """

    comparisons: list[Comparison]
    failed: list[str]
    mended: list[str]
    missing: list[str]
    added: list[str]
    unpaired: list[str]
    environments: dict[str, tuple[list[str], list[str]]]
    notes: list[str]


def compare(first: Records, second: Records) -> Stores:
    """Compare the latest records of two stores, by cell.

    Raises:
        ValueError: if no cell is in both.
    """
    both = [cell for cell in first if cell in second]
    if not both:
        raise ValueError(
            f"expected cells that both stores have, got {len(first)} in the first alone and "
            f"{len(second)} in the second alone"
        )
    ok = [{c for c, r in records.items() if r["status"] == "ok"} for records in (first, second)]
    pairs = [(first[cell], second[cell]) for cell in both if cell in ok[0] & ok[1]]
    found, unpaired = [], []
    for a, b in pairs:
        compared, apart = of_cell(a, b)
        found += compared
        unpaired += apart
    return Stores(
        adjusted(found),
        [cell for cell in both if cell in ok[0] - ok[1]],
        [cell for cell in both if cell in ok[1] - ok[0]],
        [cell for cell in first if cell in ok[0] and cell not in second],
        [cell for cell in second if cell in ok[1] and cell not in first],
        unpaired,
        environments([a for a, _ in pairs], [b for _, b in pairs]),
        [
            *_alone(pairs),
            *_notes([a for a, _ in pairs], "first"),
            *_notes([b for _, b in pairs], "second"),
        ],
    )


def environments(
    first: list[Record], second: list[Record]
) -> dict[str, tuple[list[str], list[str]]]:
    """What the environments of two lists of records have that is not alike."""
    ours, theirs = _values(first), _values(second)
    return {
        key: (ours.get(key, []), theirs.get(key, []))
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    }


def _alone(pairs: list[tuple[Record, Record]]) -> Iterator[str]:
    """Whether intervals of seconds lack what differs between processes."""
    if alone := sum(min(map(repeats.processes, pair)) == 1 for pair in pairs):
        yield (
            f"{alone} cells were measured in one process: what differs between processes is not "
            f"in their intervals of seconds (run --processes 3)"
        )


def _notes(records: list[Record], which: str) -> Iterator[str]:
    """Why the seconds of a store may not be those of its code."""
    inline = sum(record.get("isolation") == "inline" for record in records)
    if inline:
        yield f"{inline} cells of the {which} store shared a warm process: seconds are indicative"
    beside = sum((record.get("jobs") or 1) > 1 for record in records)
    if beside:
        yield f"{beside} cells of the {which} store ran beside others: seconds are indicative"
    reasons = [why for r in records for why in r["environment"].get("disturbed") or ()]
    if reasons:
        cells = sum(bool(record["environment"].get("disturbed")) for record in records)
        yield f"{cells} cells of the {which} store were disturbed, such as: {reasons[0]}"


def _values(records: list[Record]) -> dict[str, list[str]]:
    """Every value that occurs, by the dotted name of what it is of."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        about = record["environment"] | {k: record.get(k) for k in ("code", "isolation")}
        for key, value in _flat(about).items():
            found[key].add(str(value))
    return {key: sorted(values) for key, values in found.items()}


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        if key in PASSING:
            continue
        whole = f"{prefix}{key}"
        out |= _flat(value, f"{whole}.") if isinstance(value, dict) else {whole: value}
    return out
