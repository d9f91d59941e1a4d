"""stitchbench calibrate: the noise floor of this machine, for the timing tables of stores."""

from pathlib import Path
from typing import Any

import click

from bench.calibration import CALLS, FEWEST, PROCESSES
from bench.careful import careful
from bench.stores import RUNS
from bench.suite import shipped


@click.command(epilog="Example: stitchbench calibrate cost-dps")
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option(
    "--world",
    type=click.Choice(["gaussian", "shapes"]),
    default="shapes",
    show_default=True,
    help="Whose models are timed.",
)
@click.option(
    "--processes", type=click.IntRange(FEWEST), default=PROCESSES, show_default=True,
    help="Fresh processes, one after the other.",
)  # fmt: skip
@click.option(
    "--calls", type=click.IntRange(FEWEST), default=CALLS, show_default=True,
    help="Timed calls of each arm in a process.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True,
    help="CPU threads of a process: as many as the cells had.",
)  # fmt: skip
@careful
def calibrate(stores: tuple[str, ...], **options: Any) -> None:
    """Time a method against itself, and keep in each STORE how much two equal ones differ here.

    A STORE is a folder, or the name of a suite run without --store.  What is found stands under
    its timing tables.
    """
    from bench.calibration import calibrate as measured  # noqa: PLC0415
    from bench.noise_floor import appraised, keep, read  # noqa: PLC0415 - imports pandas
    from bench.report.floor import sentence  # noqa: PLC0415
    from bench.report.numbers import of, seconds  # noqa: PLC0415

    folders = [_folder(name) for name in stores]
    for folder in folders:
        read(folder)  # refuse what cannot be kept before minutes of work
    with click.progressbar(length=options["processes"], label="processes") as bar:
        found = appraised(measured(**options, tell=lambda _: bar.update(1)))
    for name, part in found["workloads"].items():
        click.echo(
            f"{name:8} {seconds(part['call_seconds'])} a call: {sentence(part)}; "
            f"over all processes {of(part, 'ratio')} times as long"
        )
    click.echo(
        f"a winner was declared in {found['winners']} of {found['comparisons']} comparisons of a "
        f"method with itself; 5 % are expected"
    )
    for folder in folders:
        click.echo(keep(folder, found))


def _folder(name: str) -> Path:
    """A store by path, or that of a suite, which need not have been run.

    Raises:
        ValueError: for what is neither.
    """
    from bench.noise_floor import FILE  # noqa: PLC0415 - imports pandas

    for place in (Path(name), RUNS / name):
        if (place / "cells").is_dir() or (place / FILE).is_file():
            return place
    if name not in shipped():
        raise ValueError(
            f"expected a store with records at {name} or {RUNS / name}, or the name of a shipped "
            f"suite, got {name!r}"
        )
    return RUNS / name
