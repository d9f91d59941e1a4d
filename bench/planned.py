"""Which cells the last run of a store was to run, so that others can tell what is missing."""

import json
from collections.abc import Iterable
from pathlib import Path

from bench.store import commit

PLAN = "plan.json"


def keep(store: Path, cells: Iterable[str]) -> None:
    """Note the ids of planned cells; a file that says so already stays as it is.

    Raises:
        OSError: if it cannot be written.
    """
    ids = list(cells)
    if planned(store) != ids:
        commit(store / PLAN, json.dumps({"cells": ids}, indent=1).encode())


def planned(store: Path) -> list[str] | None:
    """The ids, in their order; None where nobody says."""
    try:
        return [str(cell) for cell in json.loads((store / PLAN).read_bytes())["cells"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
