"""stitchbench images: kept samples as pictures for other programs, and what those say of them."""

import re
from pathlib import Path

import click

from bench.careful import careful
from bench.stores import store_of


@click.group(epilog="Example: stitchbench images export table1 --to pictures")
def images() -> None:
    """Let other programs score kept samples: GenEval's detector, ImageReward, people."""


@images.command(
    epilog="Example: stitchbench images export table1 --to pictures --geneval "
    "data/geneval/evaluation_metadata.jsonl"
)
@click.argument("store")
@click.option("--to", "folder", type=Path, required=True, help="Where the pictures go.")
@click.option(
    "--geneval",
    "metadata",
    type=Path,
    help="GenEval's evaluation_metadata.jsonl, whose lines its detector verifies.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@careful
def export(store: str, folder: Path, metadata: Path | None, device: str) -> None:
    """Write the kept samples of STORE as pictures, in the layout that GenEval evaluates.

    FOLDER/CELL/ATTEMPT/PHASE holds 00000/metadata.jsonl and 00000/samples/00000.png, and a
    files.csv of every picture and its prompt, for programs other than GenEval's.
    """
    from bench.datasets.geneval import metadata as read  # noqa: PLC0415 - imports torch
    from bench.exported import export as exported  # noqa: PLC0415

    lines = None if metadata is None else read(metadata)
    for place, written in exported(store_of(store), folder, lines, device):
        click.echo(f"{place}{'' if written else ': was there'}")


@images.command(
    name="import",
    epilog="Example: stitchbench images import table1 results.jsonl --as geneval --out scores.csv",
)
@click.argument("store")
@click.argument("files", nargs=-1, required=True, type=Path)
@click.option("--as", "judge", required=True, metavar="NAME", help="What tables call the judge.")
@click.option("--out", type=Path, help="Also write every picture and its score here, as csv.")
@careful
def read(store: str, files: tuple[Path, ...], judge: str, out: Path | None) -> None:
    """Take scores of exported pictures from FILES into the tables of STORE, as a further judge.

    A file is GenEval's results.jsonl, or a .jsonl or .csv with `file` and `score`.  All pictures
    of a phase need a score; else nothing is taken.
    """
    from bench.imported import joined, keep, summary  # noqa: PLC0415 - imports pandas

    if not re.fullmatch(r"[\w.-]+", judge):
        raise ValueError(f"expected --as a name of letters, digits, '.', '-', '_', got {judge!r}")
    found = store_of(store)
    frame = joined(found, files)
    kept = keep(found, judge, frame, files)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out, index=False, lineterminator="\n")
    for line in summary(frame):
        click.echo(line)
    click.echo(f"{kept} cells scored; `stitchbench table {store}` shows the judge")
