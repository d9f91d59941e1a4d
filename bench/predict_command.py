"""stitchbench predict: what a suite's guided steps will cost, from the architecture alone."""

from pathlib import Path
from typing import Any

import click

from bench import plan as plans
from bench import suite as suites
from bench.careful import careful
from bench.limits import memory as bytes_of

UNITS = {"T": 1e12, "G": 1e9, "M": 1e6}  # of FLOPs


@click.command(epilog="Example: stitchbench predict table1 --world sd35-medium --memory 80GB")
@click.argument("suite")
@click.option("--world", help="World in place of the suite's.")
@click.option(
    "--set", "changes", multiple=True, metavar="AXIS=V1,V2", help="As of `run`. Repeatable."
)
@click.option("--only", default="", metavar="EXPR", help="Cells, as of `run`.")
@click.option("--memory", metavar="SIZE", help="Of the device: says which steps fit, 80GB.")
@click.option("--out", type=Path, help="Also write all numbers as csv here.")
@careful
def predict(
    suite: str,
    world: str | None,
    changes: tuple[str, ...],
    only: str,
    memory: str | None,
    out: Path | None,
) -> None:
    """Say what guided steps of SUITE will cost on a GPU, without one and without weights.

    FLOPs and bytes are counted as shapes run through the same code; times are not predicted:
    beside an unsteered step they are as FLOPs where arithmetic binds, and more where it does not.
    """
    import pandas as pd  # noqa: PLC0415 - slow
    from rich.progress import track  # noqa: PLC0415

    from bench.predict import guides, predicted, untrained  # noqa: PLC0415 - imports torch

    room = None if memory is None else bytes_of(memory)
    loaded, left = untrained(suites.load(suite, world))
    parsed = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"expected --set AXIS=V1,V2, got {change!r}")
        parsed[field.strip()] = suites.values(field.strip(), text)
    if world is not None:
        parsed["world"] = [world]
    cells = {c.id: c for c in plans.plan(loaded, changes=parsed, only=only) if guides(c)}
    if not cells:
        raise ValueError(f"expected some cells that guide steps, got none of {loaded.name!r}")
    rows = [_row(one) for one in track(
        predicted(cells.values()), "steps", total=len(cells), transient=True)]  # fmt: skip
    frame = pd.DataFrame(rows)
    for (of_world, reward), part in frame.groupby(["world", "reward"], sort=False):
        click.echo(f"\n{of_world}, {reward} reward: a step at batch 1")
        click.echo(_shown(part, room).to_string(index=False))
    if left:
        click.echo(f"\nleft out, for their shape is that of trained weights: {', '.join(left)}")
    if out is not None:
        frame.to_csv(out, index=False)


def _row(one: Any) -> dict[str, Any]:
    """All numbers of a cell."""
    where = one.cell.coordinates
    return {
        "world": where["world"],
        "reward": where["reward"],
        "method": where["estimator"] + (f" ({where['variant']})" if where["variant"] else ""),
        "flops": one.guided.flops,
        "over_unsteered": one.guided.flops / one.unsteered.flops,
        "over_classic": one.guided.flops / one.classic.flops,
        "live_bytes": one.guided.live,
        "over_classic_live": one.guided.live / one.classic.live,
        "weights_bytes": one.guided.weights,
    }


def _shown(rows: Any, room: int | None) -> Any:
    """A table for a terminal."""
    from bench.report import numbers  # noqa: PLC0415 - imports pandas

    needed = rows["live_bytes"] + rows["weights_bytes"]
    shown = {
        "method": rows["method"],
        "FLOPs": rows["flops"].map(_flops),
        "over unsteered": rows["over_unsteered"].map("{:.2f}".format),
        "over classic": rows["over_classic"].map("{:.3f}".format),
        "live memory": rows["live_bytes"].map(numbers.size),
        "of classic": rows["over_classic_live"].map("{:.3f}".format),
        "weights": rows["weights_bytes"].map(numbers.size),
        "together": needed.map(numbers.size),
    }
    if room is not None:
        shown[f"fits in {numbers.size(room)}"] = (needed <= room).map({True: "yes", False: "no"})
    return rows.assign(**shown)[list(shown)]


def _flops(count: float) -> str:
    """A number of FLOPs, with a unit."""
    unit = next((unit for unit, size in UNITS.items() if count >= size), "M")
    return f"{count / UNITS[unit]:.2f} {unit}"
