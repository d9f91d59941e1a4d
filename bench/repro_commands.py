"""stitchbench repro: the paper's claims beside what is measured here."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.careful import careful
from bench.run_command import run
from bench.stores import RUNS

if TYPE_CHECKING:
    from bench.report.repro import Found

REFERENCE = Path("results")
ALL = "all"
INTERRUPTED = 130


@click.command(epilog="Example: stitchbench repro table1 --store results/runs/table1")
@click.argument("name")
@click.option("--store", type=Path, help="Only read this store.")
@click.option("--run", "fresh", is_flag=True, help="Run what is missing of the suite first.")
@click.option("--quick", is_flag=True, help="The suite's shortened form, where it is run.")
@click.option("--every", is_flag=True, help="All evidence, not what decides a claim alone.")
@click.option("--out", type=Path, help="Also write claims.md, csv and tex, and evidence.csv here.")
@click.pass_context
@careful
def repro(
    ctx: click.Context,
    name: str,
    store: Path | None,
    out: Path | None,
    *,
    every: bool,
    **options: bool,
) -> None:
    """Print what the paper claims in table NAME beside what is found here; `all` for every one.

    Read is, in this order, --store, your own run (results/runs), a reference run (results). A
    table of which there is nothing is run; `all`, which would take hours, runs with --run alone.
    Each claim is judged once, over all rewards and batches: one where it did not hold is enough.
    """
    from bench.report import repro as tables  # noqa: PLC0415 - imports pandas
    from bench.report.scores import UNTESTABLE  # noqa: PLC0415
    from bench.resolve import UnknownName  # noqa: PLC0415

    if name not in {ALL, *tables.TABLES}:
        raise UnknownName("table", name, [*tables.TABLES, ALL])
    found: list[Found] = []
    for one in tables.TABLES if name == ALL else [name]:
        if name == ALL and not options["fresh"] and tables.read(one, _folders(one, store)) is None:
            click.echo(f"{one}: nothing is measured yet; stitchbench repro {one} runs it")
            continue
        try:
            known = _known(ctx, one, store, **options)
        except click.UsageError as error:  # of `all`, one that cannot run here stops no other
            if name != ALL:
                raise
            click.echo(f"{one}: {UNTESTABLE}: {error.message}")
            continue
        for each in (known, *_also(one, store)):
            found.append(each)
            click.echo("\n".join(tables.text(one, each, every=every)))
    if out is not None:
        for path in _write(found, out):
            click.echo(path)


def _known(
    ctx: click.Context, table: str, store: Path | None, *, fresh: bool, quick: bool
) -> "Found":
    """What is known of a table, run first where nothing is.

    Raises:
        ValueError: if there is nothing in the store that was named.
    """
    from bench.report import repro as tables  # noqa: PLC0415

    suite, folders = tables.TABLES[table].suite, _folders(table, store)
    known = None if fresh else tables.read(table, folders)
    if known is None and store is None:
        _run(ctx, suite, quick=quick)
        known = tables.read(table, folders)
    if known is None:
        raise ValueError(f"expected a store with records at {store}, found none")
    return known


def _folders(table: str, store: Path | None) -> list[Path]:
    """Where a table's claims may be found, the nearest first."""
    from bench.report import repro as tables  # noqa: PLC0415

    folder = Path(tables.TABLES[table].suite).stem
    return [RUNS / folder, REFERENCE / folder] if store is None else [store]


def _also(table: str, store: Path | None) -> "Iterator[Found]":
    """What further reference runs can say of a table."""
    from bench.report import repro as tables  # noqa: PLC0415
    from bench.report.scores import UNTESTABLE  # noqa: PLC0415

    for folder in () if store is not None else tables.TABLES[table].also:
        if known := tables.read(table, [REFERENCE / folder]):
            yield known._replace(lines=[x for x in known.lines if x.verdict != UNTESTABLE])


def _run(ctx: click.Context, suite: str, *, quick: bool) -> None:
    """Run what is missing of a suite; cells that fail are no reason to stop."""
    try:
        ctx.invoke(run, suite=suite, quick=quick)
    except click.exceptions.Exit as ended:
        if ended.exit_code == INTERRUPTED:
            raise


def _write(found: "list[Found]", out: Path) -> list[Path]:
    """The claims as md, csv and tex, and all that they stand on."""
    from bench.report import repro as tables  # noqa: PLC0415
    from bench.report.book import CLAIMS, EVIDENCE  # noqa: PLC0415
    from bench.report.typeset import latex, markdown  # noqa: PLC0415

    table = tables.table(found)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "claims.md": markdown(table),
        CLAIMS: table.to_csv(index=False, lineterminator="\n"),
        EVIDENCE: tables.evidence(found).to_csv(index=False, lineterminator="\n"),
        "claims.tex": latex(table, "What the paper claims, and what is found here"),
    }
    for file, content in files.items():
        (out / file).write_text(content, encoding="utf-8")
    return [out / file for file in files]
