"""stitchbench data: the lists that benchmarks publish, fetched and checked."""

from pathlib import Path

import click

from bench.careful import careful


@click.group(epilog="Example: stitchbench data get geneval --to data/geneval")
def data() -> None:
    """Fetch what benchmarks publish: prompts, rankings, ratings."""


@data.command()
@careful
def ls() -> None:
    """List what can be fetched, from where, and under which terms."""
    from bench.datasets.fetching import PUBLISHED  # noqa: PLC0415 - imports torch

    for name, one in PUBLISHED.items():
        click.echo(f"{name:12} {one.file:26} {one.terms}")
        click.echo(f"{'':12} {one.where or 'only by hand: --from PATH'}")


@data.command(epilog="Example: stitchbench data get drawbench --to data/drawbench")
@click.argument("name")
@click.option(
    "--from",
    "source",
    metavar="PATH|ADDRESS",
    help="A file, https://..., or hub:OWNER/NAME@REVISION/FILE.  [default: where it is published]",
)
@click.option("--to", type=Path, required=True, help="The data set's folder.")
@careful
def get(name: str, source: str | None, to: Path) -> None:
    """Put the list NAME into a folder, whole or not at all.

    Its SHA-256 is checked: against ours where we know it (geneval, imagereward), else against the
    one that the first fetch wrote into sha256.json beside the file.  Suites that read the file
    later check it again.  Images are not fetched; `bench/datasets/NAME.py` says where they are.
    """
    from bench.datasets.fetching import PUBLISHED, fetch  # noqa: PLC0415 - imports torch

    path = fetch(name, to, source)
    pinned = "the published one" if PUBLISHED[name].sha256 else "as first fetched"
    click.echo(f"{path}: digest checked ({pinned}); terms: {PUBLISHED[name].terms}")
