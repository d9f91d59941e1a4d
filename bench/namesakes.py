"""Cells of one name in one table: told apart by what differs, or one stands for both.

A store keeps every version of a user's file, and runs under other settings, whose cells have the
same coordinates.  Of them

    my_estimator (3f4c)     says which content of the file, by the first digits of its digest
    tweedie (steps=20)      says a setting or a field of the protocol
    stitched (weights 9a0b) says which weights

with no more than tells them apart.  Where one cell measured all that another did and more of the
same (gradients, users' metrics, judges), and both are ok, it stands for both: tables show it
alone, under the plain name.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.cell import PATHS
from bench.part import named

Record = dict[str, Any]
BY_SUITE = ("value", "robustness")  # tasks whose tables do not mix suites
RUN = ("seed", "device", "threads")  # of a specification: cells that differ here share no table
UNBUDGETED = ("seeds", "pilot", "rates", "rounds")  # of `train`: other fields make other tables
SWITCHES, LISTS = ("gradient", "gradients"), ("metrics", "judges")  # that only add figures
DIGITS, LONGEST = 4, 24  # characters of a digest, at least; of a setting's value, at most
ABSENT = object()
PARTS = {"estimator": "", "algorithm": "algorithm ", "world": "world ", "reward": "reward "}


def told_apart(records: Iterable[Record]) -> list[Record]:
    """Records whose estimators' names tell them apart; `covered` marks those not to be shown."""
    records = list(records)
    kin: defaultdict[str, list[int]] = defaultdict(list)
    for k, record in enumerate(records):
        kin[_place(record)].append(k)
    out = [record | {"covered": False} for record in records]
    for places in kin.values():
        shown = []
        for k in places:
            if (other := _covering(records[k], [records[o] for o in places if o != k])) is None:
                shown.append(k)
            else:
                why = f"cell {other['id']} measured the same and more, and stands for it in tables"
                out[k] |= {"covered": True, "reason": why}
        if len(shown) > 1:
            labels = _labels([records[k] for k in shown])
            for k, label in zip(shown, labels, strict=True):
                out[k]["coordinates"] = _called(records[k]["coordinates"], label)
    return out


def _called(coordinates: Mapping[str, str], label: str) -> dict[str, str]:
    name = coordinates["estimator"]
    return {**coordinates, "estimator": f"{name} ({label})" if label else name}


def shown(records: Iterable[Record]) -> list[Record]:
    """Those that no other stands for."""
    return [record for record in records if not record.get("covered")]


def _place(record: Record) -> str:
    """What cells have in common that would stand in one table under one name."""
    spec = record["spec"]
    protocol = spec["protocol"] if spec["task"] == "train" else {}
    return _plain([
        spec["task"],
        record["suite"] if spec["task"] in BY_SUITE else None,
        bool(record.get("quick")),
        record["coordinates"],
        [spec.get(name) for name in RUN],
        spec["world"]["settings"].get("dtype"),
        {name: value for name, value in protocol.items() if name not in UNBUDGETED},
    ])  # fmt: skip


def _covering(record: Record, kin: Iterable[Record]) -> Record | None:
    """The first that measured all that a record did and more."""
    return next((other for other in kin if _covers(other, record)), None)


def _covers(more: Record, less: Record) -> bool:
    """Whether two cells are ok and differ only in what one measured beside all of the other's."""
    if more["status"] != "ok" or less["status"] != "ok":
        return False
    (rest, ours), (same, theirs) = _measured(more["spec"]), _measured(less["spec"])
    return rest == same and theirs < ours


def _measured(spec: Mapping[str, Any]) -> tuple[str, set[str]]:
    """A specification without what only adds figures, and what it adds."""
    protocol = spec["protocol"]
    added = {name for name in SWITCHES if protocol.get(name, True)}
    added |= {name + _plain(one) for name in LISTS for one in protocol.get(name) or ()}
    rest = {k: v for k, v in protocol.items() if k not in {*SWITCHES, *LISTS}}
    return _plain({**spec, "protocol": rest}), added


def _labels(kin: Sequence[Record]) -> list[str]:
    """What to call each of several: the fewest differences, in the order of `_said`."""
    said = [dict(_said(record["spec"])) for record in kin]
    told: list[tuple[str, ...]] = [() for _ in kin]
    for name in dict.fromkeys(name for one in said for name in one):
        texts = _texts(name, [one.get(name, ABSENT) for one in said])
        finer = [(*t, text) for t, text in zip(told, texts, strict=True)]
        told = finer if len(set(finer)) > len(set(told)) else told
    if len(set(told)) < len(kin):
        ids = _digits([record["id"] for record in kin])
        told = [(*t, f"cell {digits}") for t, digits in zip(told, ids, strict=True)]
    return [", ".join(filter(None, t)) for t in told]


def _said(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What may tell cells apart, what a reader would name first: a digest's name ends in `#`."""
    for part, about in PARTS.items():
        one = spec.get(part) or {}
        if one.get("source") is not None:
            yield f"{about}#", one["source"]
        for name, value in sorted(one.get("settings", {}).items()):
            if name not in PATHS:
                yield f"{about}{name}=", value
        if one.get("digest") is not None:
            yield f"{about}{'digest' if about else 'weights'} #", one["digest"]
        if part == "algorithm":
            yield from ((f"{name}=", value) for name, value in sorted(spec["protocol"].items()))
        if one:
            yield f"{about}build=", named(one["build"], one.get("source"))
    yield "prompts #", spec.get("prompts")


def _texts(name: str, values: Sequence[Any]) -> list[str]:
    """A difference in words, for each; empty where a cell has nothing of the kind."""
    if not name.endswith("#"):
        return ["" if v is ABSENT else f"{name}{_short(v)}" for v in values]
    digits = iter(_digits([str(v) for v in values if v is not ABSENT]))
    return ["" if v is ABSENT else name[:-1] + next(digits) for v in values]


def _digits(digests: Sequence[str]) -> list[str]:
    """The beginnings of digests, long enough to tell them apart."""
    distinct, length = len(set(digests)), DIGITS
    while len({digest[:length] for digest in digests}) < distinct:
        length += 1
    return [digest[:length] for digest in digests]


def _short(value: Any) -> str:
    """A value in a name: of users' files, their names."""
    several = value if isinstance(value, list) else [value]
    files = [str(v.get("name") or v.get("build")) for v in several if isinstance(v, dict)]
    text = "+".join(files) if files else "-".join(map(str, several)) or "none"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _plain(data: Any) -> str:
    """Plain data as text, equal for equal data."""
    return json.dumps(data, sort_keys=True, default=str)
