"""What a call held of a GPU with all that was there: by the allocator, and by the driver.

`allocated` and `driver` of `bench.meter`; records of a CPU have neither, and their tables say
nothing of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.report import numbers
from bench.report.sheet import Table

ALLOCATED, DRIVER = "allocated", "driver"
WITH_WEIGHTS, PROCESS = "with weights", "whole process (nvidia-smi)"
NOTE = (
    "Whole process: what nvidia-smi shows for it after the call, which is what the allocator gave "
    "out (with weights), what it kept besides, CUDA's context and libraries."
)


def columns(
    peaks: Iterable[Mapping[str, Any] | None], *kinds: str, of: str = ""
) -> dict[str, float]:
    """The most that some peaks have of each kind, bytes; a kind that none has is left out.

    Args:
        peaks: Of calls, as a record keeps them.
        kinds: Of memory.
        of: What each column's name begins with.
    """
    kept = [peak for peak in peaks if peak is not None]
    known = {kind: [peak[kind] for peak in kept if peak.get(kind) is not None] for kind in kinds}
    return {f"{of}{kind}": float(max(sizes)) for kind, sizes in known.items() if sizes}


def shown(
    row: Mapping[Any, Any], rows: pd.DataFrame, of: str = "", its: str = ""
) -> dict[str, str]:
    """Cells of a row under their headers, those of kinds that any row has.

    Args:
        row: One row.
        rows: All that a table shows.
        of: What each column's name begins with.
        its: What each header begins with.
    """
    return {
        f"{its}{header}": numbers.size(row[f"{of}{kind}"])
        for kind, header in ((ALLOCATED, WITH_WEIGHTS), (DRIVER, PROCESS))
        if f"{of}{kind}" in rows and rows[f"{of}{kind}"].notna().any()
    }


def noted(table: Table) -> Table:
    """A table whose note says what its column of the driver means, where it has one."""
    if PROCESS not in table.frame:
        return table
    return table._replace(note=f"{table.note} {NOTE}".strip())
