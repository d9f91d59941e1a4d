"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.run import Progress
from bench.statuses import ending
from bench.suite import Suite

Tell = Callable[[Progress], None]


@contextmanager
def narrator(suite: Suite) -> Iterator[Tell]:
    """A function that takes the runner's progress, for as long as it runs."""
    if sys.stderr.isatty():
        with _bar(suite) as tell:
            yield tell
    else:
        yield _lines()


def _name(progress: Progress) -> str:
    cell = progress.cell
    return f"{cell.label} · {cell.coordinates['reward']} · {cell.spec.protocol.place}"


def _lines() -> Tell:
    """One plain line when a cell ends, with the time left."""
    start = time.perf_counter()

    def tell(progress: Progress) -> None:
        if progress.status is None:
            return
        done = progress.index + 1
        left = (time.perf_counter() - start) / done * (progress.total - done)
        what: str = progress.status
        if progress.reason is not None:
            what = f"{ending(progress.status)}: {progress.reason}"
        line = f"[{done}/{progress.total}] {_name(progress)}: {what}, {progress.seconds:.1f} s"
        print(f"{line}; about {left:.0f} s left", file=sys.stderr, flush=True)  # noqa: T201

    return tell


@contextmanager
def _bar(suite: Suite) -> Iterator[Tell]:
    """A bar with the cell at work and the time left."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415 - slow to import
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (
        TextColumn("[bold]{task.fields[suite]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, suite=suite.name)

        def tell(progress: Progress) -> None:
            done = progress.index + (progress.status is not None)
            bar.update(task, total=progress.total, completed=done, description=_name(progress))
            if progress.status is not None and progress.reason is not None:
                what = ending(progress.status)
                bar.console.print(f"{what}: {_name(progress)}: {progress.reason}")

        yield tell
