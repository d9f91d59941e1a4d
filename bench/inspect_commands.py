"""The subcommands that explain: a machine, a store, one cell, two stores, and the files' form."""

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from bench.careful import careful
from bench.plain import plain
from bench.stores import RUNS, cell_of, store_of

GATE_FAILED = 4
EVERY, QUIET = 2.0, 50.0  # seconds between two looks, and how many times what a look takes
LOOKS = 2  # in a row at which nothing runs: between two cells nothing does either


def _print_json(data: Any) -> None:
    click.echo(json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False))


@click.command(epilog="Example: stitchbench doctor --offline")
@click.option("--store", type=Path, default=RUNS, show_default=True, help="Where records go.")
@click.option("--offline", is_flag=True, help="Do not ask the hub.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
@careful
def doctor(ctx: click.Context, store: Path, *, offline: bool, as_json: bool) -> None:
    """Examine this machine: what keeps from measuring, or makes numbers doubtful.

    Exit code 1 if something keeps from measuring.
    """
    from bench.doctor import examine  # noqa: PLC0415

    found = []
    for finding in examine(store, offline=offline):
        found.append(finding)
        if not as_json:
            click.echo(f"{finding.state:8} {finding.name:24} {finding.figure}")
            if finding.advice:
                click.echo(f"{'':33} {finding.advice}")
    if as_json:
        _print_json([finding._asdict() for finding in found])
    ctx.exit(1 if any(finding.state == "problem" for finding in found) else 0)


@click.command(epilog="Example: stitchbench schema suite > suite.schema.json")
@click.argument("what", type=click.Choice(["suite", "record"]))
@careful
def schema(what: str) -> None:
    """Print the JSON Schema of a suite file or of a record, for editors and scripts."""
    from bench.schema import SCHEMAS  # noqa: PLC0415

    _print_json(SCHEMAS[what]())


@click.command(epilog="Example: stitchbench show 3f2a quickstart")
@click.argument("cell")
@click.argument("store", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@careful
def show(cell: str, store: str | None, *, as_json: bool) -> None:
    """Show one CELL, by the beginning of its id, of STORE or else of any suite that was run."""
    from bench.show import shown, text  # noqa: PLC0415 - imports numpy

    about = shown(*cell_of(cell, store))
    if as_json:
        _print_json(about)
    else:
        click.echo("\n".join(text(about)))


@click.command(
    epilog="Example: stitchbench compare before after --fail-if 'seconds.ratio.lo>1.05'"
)
@click.argument("first")
@click.argument("second")
@click.option("--only", default="", metavar="EXPR", help="Cells such as 'estimator=tweedie'.")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="EXPR",
    help="FIGURE.ratio, .difference (with .lo or .hi) or .p, failed, or missing, against a "
    "number: exit code 4 where it holds. Repeatable.",
)
@click.option("--all", "every", is_flag=True, help="List every comparison.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
@careful
def compare(
    ctx: click.Context,
    first: str,
    second: str,
    only: str,
    gates: tuple[str, ...],
    *,
    every: bool,
    as_json: bool,
) -> None:
    """Compare the cells that stores FIRST and SECOND share: ratios are second over first."""
    from bench.compare import compare as compared  # noqa: PLC0415
    from bench.gate import judge, parse  # noqa: PLC0415
    from bench.report import comparison  # noqa: PLC0415

    parsed = [parse(gate) for gate in gates]
    stores = compared(*(_latest(name, only) for name in (first, second)))
    failed = {gate.text: judge(gate, stores) for gate in parsed}
    if as_json:
        judged = {text: [list(one) for one in where] for text, where in failed.items()}
        _print_json(comparison.data(stores) | {"gates": judged})
    else:
        click.echo("\n".join(comparison.text(stores, every=every)))
        for text, where in failed.items():
            click.echo(f"gate {text}: {f'FAILED in {len(where)} places' if where else 'passed'}")
            for place, x in where:
                click.echo(f"  {x:.4g}  {place}")
    ctx.exit(GATE_FAILED if any(failed.values()) else 0)


def _latest(name: str, only: str) -> dict[str, Any]:
    """The latest records of a store, of the cells asked for; unreadable ones are warned of."""
    from bench.cell import Cell  # noqa: PLC0415
    from bench.plan import selector  # noqa: PLC0415

    store, wanted = store_of(name), selector(only)
    latest = store.latest()
    for problem in store.problems:
        click.echo(f"warning: {name}: {problem}", err=True)
    return {
        cell: record
        for cell, record in latest.items()
        if wanted(Cell.model_validate({k: record[k] for k in ("spec", "suite", "coordinates")}))
    }


@click.command(epilog="Example: stitchbench status quickstart --watch")
@click.argument("store", required=False)
@click.option("--watch", is_flag=True, help="Go on until nothing runs; Ctrl-C ends it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with --watch a line each.")
@careful
def status(store: str | None, *, watch: bool, as_json: bool) -> None:
    """Show how STORE, or else every suite that was run, stands: what is done, failed, running."""
    from bench.status import standing, text  # noqa: PLC0415

    all_runs = (str(path.parent) for path in sorted(RUNS.glob("*/cells")))
    names = list(all_runs) if store is None else [store]
    looks_left = LOOKS if watch else 1
    while looks_left:
        spent = time.process_time()
        found = [standing(store_of(name)) for name in names]
        if as_json:
            click.echo(json.dumps(plain(found), indent=None if watch else 1))
        else:
            if watch and os.isatty(1):
                click.clear()
            click.echo("\n\n".join("\n".join(text(one)) for one in found) or "no store yet")
        looks_left = LOOKS if watch and any(one["running"] for one in found) else looks_left - 1
        if looks_left:
            time.sleep(max(EVERY, QUIET * (time.process_time() - spent)))
