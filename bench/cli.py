"""stitchbench: parse and call, no logic.

Nothing slow is imported before a subcommand needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

INTERRUPTED = 130
COMMANDS = {
    "ls": "list what suites can name",
    "plan": "show the cells a suite would run",
    "predict": "say what a suite's guided steps will cost, before it runs",
    "run": "run a suite, or what is missing of it",
    "table": "print and write the tables of a store",
    "plot": "draw two columns of a store against each other",
    "report": "write the page, tables and plots of a store",
    "repro": "print the paper's claims beside what is found here",
    "status": "show how a store stands and who runs it",
    "show": "show one cell and every attempt at it",
    "compare": "compare the cells that two stores share, and guard them by gates",
    "rescore": "add a judge to the kept samples of a store",
    "images": "write kept samples as pictures, and read what others say of them",
    "data": "fetch what benchmarks publish, and check it",
    "calibrate": "measure by how much two equal methods differ on this machine",
    "world": "make a world's networks, and examine them",
    "weights": "fetch published weights, and compare copies with their digests",
    "stitch": "make a value model: search where to stitch, then finetune",
    "test": "check a value estimator against the contract",
    "schema": "print the JSON Schema of a suite or a record",
    "doctor": "examine this machine",
}
EXPLAINING = ("status", "show", "compare", "schema", "doctor")
ELSEWHERE = {
    "run": "bench.run_command",
    "predict": "bench.predict_command",
    "calibrate": "bench.calibrate_command",
    "repro": "bench.repro_commands",
    "images": "bench.images_commands",
    "data": "bench.data_commands",
    "world": "bench.world_commands",
    "weights": "bench.weights_commands",
    "stitch": "bench.stitch_commands",
    **dict.fromkeys(EXPLAINING, "bench.inspect_commands"),
}


class Lazy(click.Group):
    """Subcommands by name, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = ELSEWHERE.get(cmd_name, "bench.commands")
        return getattr(importlib.import_module(module), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and what they do, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or a usage error that lists the known ones."""
        if args and args[0] not in COMMANDS:
            from bench.resolve import UnknownName  # noqa: PLC0415

            raise click.UsageError(str(UnknownName("command", args[0], COMMANDS)), ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: stitchbench run quickstart && stitchbench report quickstart",
)
@click.version_option(package_name="stitchvm-bench", prog_name="stitchbench")
def cli() -> None:
    """Judge value estimators for diffusion alignment: bias, cost, and where to trust which.

    Exit codes: 0 all went well, 1 some cells failed, 2 bad input, 3 nothing succeeded, 4 a gate
    failed, 5 cells are left for want of time or at work in another runner, 130 interrupted
    (finished cells are kept).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line: bad input ends with exit code 2 and a sentence, Ctrl-C with 130."""
    given = None if arguments is None else list(arguments)
    try:
        code = cli.main(args=given, prog_name="stitchbench", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
