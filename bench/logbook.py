"""What a training says while it runs: a CSV that grows, and TensorBoard's files where it is there.

Both lie under the store's `logs`, and stay when the run is done.  A run that goes on from a
checkpoint cuts the CSV back to it.  `pip install tensorboard` is all that TensorBoard needs.
"""

import csv
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stitchvm.align.training import PHASES, Record

LOGS = "logs"
FILE = "log.csv"
COLUMNS = [name for name in Record._fields if name != "seconds"] + [f"{p}_seconds" for p in PHASES]


class Logbook:
    """Takes the records of one run.

    Args:
        folder: Of the run's logs.
        step: Steps that the run goes on from.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = _read(folder / FILE, step)
        self._file = (folder / FILE).open("w", newline="")
        self._rows = csv.DictWriter(self._file, COLUMNS)
        self._rows.writeheader()
        self._rows.writerows(kept)
        self._board = _board(folder, step)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, record: Record) -> None:
        """Note a step, at once."""
        row = record._asdict()
        row |= {f"{phase}_seconds": spent for phase, spent in row.pop("seconds").items()}
        self._rows.writerow(row)
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, record.step)


def _read(file: Path, step: int) -> list[dict[str, Any]]:
    """The rows of an earlier run that are still true."""
    if not file.is_file() or step == 0:
        return []
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("step", "").isdigit()]
    return [row for row in rows if int(row["step"]) <= step and set(row) == set(COLUMNS)]


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, None where it is not installed."""
    if find_spec("tensorboard") is None:
        return None
    writer = import_module("torch.utils.tensorboard").SummaryWriter
    return writer(str(folder), purge_step=step + 1)
