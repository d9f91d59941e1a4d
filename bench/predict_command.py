"""stitchbench predict: what the cells of a suite will cost, from the architecture alone."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench import plan as plans
from bench import suite as suites
from bench.careful import careful
from bench.cell import Cell
from bench.commands import changed
from bench.limits import memory as bytes_of

if TYPE_CHECKING:
    from bench.predict import Predicted

PAPER = "table1"  # the suite whose table the paper has


@click.command(epilog="Example: stitchbench predict table1 --world sd35-medium --memory 80GB")
@click.argument("suite")
@click.option("--world", help="World in place of the suite's.")
@click.option(
    "--set", "changes", multiple=True, metavar="AXIS=V1,V2", help="As of `run`. Repeatable."
)
@click.option("--only", default="", metavar="EXPR", help="Cells, as of `run`.")
@click.option("--memory", metavar="SIZE", help="Of the device: says which cells fit, 80GB.")
@click.option(
    "--encoders",
    type=click.Choice(["resident", "off"]),
    default="resident",
    show_default=True,
    help="Whether text encoders are on the device beside what the paper's Table 1 measured.",
)
@click.option("--out", type=Path, help="Also write all numbers as csv here.")
@careful
def predict(
    *,
    suite: str,
    world: str | None,
    changes: tuple[str, ...],
    only: str,
    memory: str | None,
    encoders: str,
    out: Path | None,
) -> None:
    """Say what cells of SUITE will cost on a GPU, without one and without weights.

    Of guidance a step, of other algorithms a whole sample, of estimators a value and its gradient,
    of trainers an iteration, of stage 2 an optimiser step, of a search the passes of its images.
    FLOPs and bytes are counted as shapes run through the same code; times are not predicted:
    beside an unsteered step they are as FLOPs where arithmetic binds, and more where it does not.
    """
    import pandas as pd  # noqa: PLC0415 - slow

    from bench.predicted_table import paper_table, rows, table  # noqa: PLC0415 - imports torch
    from bench.shaped import members, untrained  # noqa: PLC0415

    room = None if memory is None else bytes_of(memory)
    loaded = suites.load(suite, world)
    kept, others = members(loaded)
    cells, left = [], list[str]()
    for member in kept:
        shaped, without = untrained(member)
        left += without
        cells += plans.plan(shaped, changes=changed(suite, loaded, changes, world), only=only)
    if not cells:
        raise ValueError(f"expected some cells, got none of {loaded.name!r} for {only!r}")
    frame = pd.DataFrame([row for one in _counted(cells) for row in rows(one)])
    for (of_world, reward), part in frame.groupby(["world", "reward"], sort=False):
        click.echo(f"\n{of_world}, {reward} reward")
        click.echo(table(part, room))
    if left:
        click.echo(
            f"\nleft out, for only a search or training tells their shape: {', '.join(left)}"
        )
    if others:
        click.echo(f"\nleft out, for nothing is predicted of their task: {', '.join(others)}")
    if loaded.name == PAPER and world is not None:
        click.echo(paper_table(world, encoders=encoders == "resident"))
    if out is not None:
        frame.to_csv(out, index=False)


def _counted(cells: Sequence[Cell]) -> "list[Predicted]":
    """Those of the cells that can be predicted; of the others, a line for each world and reason.

    Raises:
        ValueError: if none can, saying why the first cannot.
    """
    from rich.progress import track  # noqa: PLC0415

    from bench.numberless import Answers  # noqa: PLC0415 - imports torch
    from bench.predict import Known, predicted  # noqa: PLC0415

    answers, known, found = Answers(), Known(), list["Predicted"]()
    refused: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for cell in track(cells, "cells", transient=True):
        try:
            found += predicted([cell], answers, known)
        except ValueError as error:
            where = cell.coordinates
            refused[where["world"], str(error)].append(where["estimator"])
    if not found:
        raise ValueError(next(iter(refused))[1])
    for (world, why), names in refused.items():
        some = ", ".join(dict.fromkeys(names))
        click.echo(f"not predicted, {len(names)} cells of {world} ({some}): {why}", err=True)
    return found
