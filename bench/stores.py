"""Finding stores and cells by what users call them."""

import difflib
from pathlib import Path

from bench.store import Store
from bench.suite import shipped

RUNS = Path("results/runs")
NEAR = 3  # ids that an unknown one is answered with


def store_of(name: str) -> Store:
    """A store by path, or that of a suite run without --store.

    Raises:
        ValueError: if there is none.
    """
    if Path(name).is_file():
        return Store(name)  # which refuses a file
    for path in (Path(name), RUNS / name):
        if (path / "cells").is_dir():
            return Store(path)
    hint = f"; `stitchbench run {name}` makes one" if name in shipped() else ""
    raise ValueError(f"expected a store with records at {name} or {RUNS / name}, found none{hint}")


def cell_of(prefix: str, store: str | None) -> tuple[Store, str]:
    """A cell by the beginning of its id.

    Args:
        prefix: Of the id, long enough to be the only one.
        store: Where it is; None looks into every store of `RUNS`.

    Raises:
        ValueError: if there is none of that id, or several.
    """
    stores = sorted(RUNS.glob("*")) if store is None else [store_of(store).path]
    cells = [path for place in stores for path in sorted((place / "cells").glob("*"))]
    found = [path for path in cells if path.name.startswith(prefix.strip())]
    if len(found) == 1:
        return Store(found[0].parents[1]), found[0].name
    where = f"{RUNS}" if store is None else store
    if not found:
        near = difflib.get_close_matches(prefix, {path.name for path in cells}, NEAR, cutoff=0.3)
        hint = f"; near ones: {', '.join(near)}" if near else ""
        raise ValueError(f"expected a cell of {where}, got {prefix!r}, none of {len(cells)}{hint}")
    shown = ", ".join(str(path) for path in found[:NEAR]) + (" ..." if len(found) > NEAR else "")
    raise ValueError(f"expected one cell, got {prefix!r}, which begins {len(found)}: {shown}")
