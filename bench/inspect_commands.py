"""The subcommands that explain: a machine, the files' form."""

import json
from pathlib import Path
from typing import Any

import click

from bench.careful import careful
from bench.plain import plain
from bench.stores import RUNS


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
