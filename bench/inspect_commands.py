"""The subcommands that explain: the files' form."""

import json
from typing import Any

import click

from bench.careful import careful
from bench.plain import plain


def _print_json(data: Any) -> None:
    click.echo(json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False))


@click.command(epilog="Example: stitchbench schema suite > suite.schema.json")
@click.argument("what", type=click.Choice(["suite", "record"]))
@careful
def schema(what: str) -> None:
    """Print the JSON Schema of a suite file or of a record, for editors and scripts."""
    from bench.schema import SCHEMAS  # noqa: PLC0415

    _print_json(SCHEMAS[what]())
