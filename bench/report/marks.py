"""What names look like in a report: of one line, and with a dagger where the code has changed.

A record whose cell depends on code that is another today is *stale*: its numbers stand, marked,
until the cell runs again.  Names come from whoever wrote a suite; a line break or a mark that
turns text round would tear every table they stand in.
"""

import hashlib
import re
from typing import Any

from bench.stale import stale

DAGGER = "\u2020"
STALE = (
    f"{DAGGER} stale: measured before the code it depends on changed; `--rerun stale` renews it."
)
BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\s]+")
TURNS = re.compile(r"[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]")
LONGEST = 120  # characters of a name


def line(text: Any, longest: int | None = None) -> str:
    """Text on one line: breaks and controls are spaces, marks of direction gone.

    Args:
        text: Anything.
        longest: Characters at most; what is cut off ends in ` ...`.
    """
    plain = BREAKS.sub(" ", TURNS.sub("", str(text))).strip()
    if longest is None or len(plain) <= longest:
        return plain
    return f"{plain[: longest - 4].rstrip()} ..."


def marked(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the names that reports show."""
    names = {name: _name(value) for name, value in record["coordinates"].items()}
    old = stale(record)
    if old and record["status"] == "ok":
        names["estimator"] = f"{names['estimator']} {DAGGER}"
    return record | {"coordinates": names, "suite": _name(record["suite"]), "stale": old}


def _name(text: str) -> str:
    """A name on one line; one that had to be changed ends in a digest, so that no two meet."""
    shown = line(text, LONGEST)
    return shown if shown == text else f"{shown} #{hashlib.sha256(text.encode()).hexdigest()[:4]}"
