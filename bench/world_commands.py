"""stitchbench world: making the networks of a world, and saying what they can do."""

import time
from pathlib import Path
from typing import Literal

import click

from bench.careful import careful

FOLDER = Path("build/shapes")
QUICKSTART = 8  # prompts of the quickstart


@click.group(epilog="Example: stitchbench world build shapes --out weights")
def world() -> None:
    """Make a world's networks, and examine them."""


@world.command(epilog="Example: stitchbench world build shapes --stage vae --stage tiny")
@click.argument("name", type=click.Choice(["shapes"]))
@click.option("--stage", "stages", multiple=True, help="Only this stage. Repeatable.")
@click.option(
    "--folder",
    type=Path,
    default=FOLDER,
    show_default=True,
    help="Of checkpoints, logs and sample pictures.",
)
@click.option("--out", type=Path, help="Where to write the weights once all stages are finished.")
@click.option(
    "--from",
    "weights",
    type=Path,
    help="Take networks from exported weights; a generator named by --stage is trained further.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."
)
@careful
def build(
    name: str,
    stages: tuple[str, ...],
    folder: Path,
    out: Path | None,
    weights: Path | None,
    threads: int,
) -> None:
    """Train the networks of a world; killed at any moment, the same command goes on."""
    del name
    from bench.worlds.quiet import quietly  # noqa: PLC0415

    with quietly():
        from bench.worlds.shapes.build import STAGES, adopt, missing  # noqa: PLC0415 - slow
        from bench.worlds.shapes.build import build as build_stages  # noqa: PLC0415

    if weights is not None:
        adopt(weights, folder, stages)
    todo = missing(folder, stages)
    for stage, of in STAGES.items():
        state = "to do" if stage in todo else "-" if stages and stage not in stages else "done"
        click.echo(f"{stage:10} {of.minutes:4} min  {state:6} {of.about}")
    minutes = sum(STAGES[stage].minutes for stage in todo)
    click.echo(f"about {minutes} min on one core are left; checkpoints in {folder}")
    begun = time.monotonic()
    for stage, record in build_stages(folder, stages, threads):
        figures = "  ".join(
            f"{k} {v:.4g}" for k, v in record.items() if k not in {"step", "seconds", "score"}
        )
        click.echo(
            f"[{(time.monotonic() - begun) / 60:6.1f} min] {stage} {record['step']}: {figures}"
        )
    if out is not None:
        from bench.worlds.shapes.make.export import add_truth, export  # noqa: PLC0415

        if left := missing(folder):
            raise ValueError(f"expected all stages to be finished before --out, got no {left}")
        export(folder, out)
        click.echo(f"version {add_truth(out, QUICKSTART)} in {out}")


@world.command(epilog="Example: stitchbench world check shapes --out results/shapes")
@click.argument("name", type=click.Choice(["shapes"]))
@click.option("--folder", type=Path, help="Of the weights.  [default: those shipped]")
@click.option("--out", type=Path, default=Path("results/runs/shapes"), show_default=True)
@click.option("--generator", type=click.Choice(["large", "small"]), default="large")
@careful
def check(name: str, folder: Path | None, out: Path, generator: Literal["large", "small"]) -> None:
    """Examine a world's networks on held-out data; write figures, pictures and a table."""
    del name
    from bench.worlds.quiet import quietly  # noqa: PLC0415
    from bench.worlds.shapes import shapes  # noqa: PLC0415

    with quietly():
        from bench.worlds.shapes.report import write  # noqa: PLC0415 - slow to import

    made = shapes(generator=generator, folder=None if folder is None else str(folder))
    for line in write(made, out):
        click.echo(line)
