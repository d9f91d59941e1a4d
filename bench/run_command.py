"""stitchbench run: how cells are run, from options, and what came of it, as an exit code."""

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.careful import careful
from bench.cell import Cell
from bench.commands import planned, print_table, selection
from bench.how import How
from bench.limits import Limits, memory, seconds
from bench.progress import narrator
from bench.run import check_device
from bench.run import run as run_cells
from bench.stale import stale
from bench.statuses import GOOD, RERUNS
from bench.store import Store
from bench.stores import RUNS
from bench.suite import Suite, load

F = TypeVar("F", bound=Callable[..., Any])
SUMMARY = {
    "skipped": "{} skipped",
    "elsewhere": "{} at work in another runner",
    "left": "{} left, for which the same command goes on",
}
LEFT = 5  # exit code: nothing failed, and some cells are not done, for want of time or elsewhere


def running(command: F) -> F:
    """Options that say how cells are run."""
    for option in (
        click.option(
            "--backend",
            type=click.Choice(["process", "ray"]),
            default="process",
            show_default=True,
            help="Processes of this machine, or tasks of a Ray cluster.",
        ),
        click.option("--address", help="Of a Ray cluster; auto finds one.  [default: start one]"),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            help="Cells at once.  [default: 1, or one per GPU with --device cuda]",
        ),
        click.option("--timeout", metavar="TIME", help="What a cell may take: 90s, 15min, 2h."),
        click.option("--mem-limit", metavar="SIZE", help="Host memory of a cell: 24GiB."),
        click.option(
            "--rerun",
            default="failed",
            show_default=True,
            metavar="WHICH",
            help=f"Ended cells that run again, by commas: {', '.join(RERUNS)}.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1),
            help="Fresh processes that measure each cell, in turns.  [default: the suite's]",
        ),
        click.option("--fail-fast", is_flag=True, help="Start no cell after the first failure."),
        click.option(
            "--max-failures", type=click.IntRange(1), help="Start no cell after so many failures."
        ),
        click.option(
            "--for",
            "budget",
            metavar="TIME",
            help="Start no cell that, by the longest so far, would end after 9min.",
        ),
        click.option("--anyway", is_flag=True, help="Run on a CPU what is meant for a GPU."),
        click.option("--unlock", is_flag=True, help="Take cells over from other runners."),
    ):
        command = option(command)
    return command


@click.command(
    epilog="Example: stitchbench run value --set sigmas=0.25,0.75 --only 'reward=linear'"
)
@click.argument("suite")
@selection
@running
@click.option("--store", type=Path, help=f"Folder of the records.  [default: {RUNS}/<suite>]")
@click.pass_context
@careful
def run(ctx: click.Context, suite: str, store: Path | None, **options: Any) -> None:
    """Run what is missing of SUITE: a shipped suite's name or the path of a YAML file."""
    names = ("world", "changes", "only", "seed", "quick", "device", "threads")
    chosen = {name: options.pop(name) for name in names}
    began, anyway, manner = time.perf_counter(), options.pop("anyway"), _manner(**options)
    asked = load(suite, chosen["world"])
    whole = _whole(asked) if chosen["quick"] else [asked.name]
    if whole and not anyway:
        expect_gpu(asked, chosen["device"])
    loaded, cells = planned(suite, **chosen)
    for name in whole if chosen["quick"] else []:
        click.echo(f"{name} has no shortened form: it runs whole", err=True)
    folder, ids = Store(store or RUNS / loaded.name), {cell.id for cell in cells}
    if manner["processes"] is None:
        manner["processes"] = 1 if chosen["quick"] else loaded.processes
    how = How(
        isolation=loaded.isolation,
        device=chosen["device"],
        threads=chosen["threads"],
        began=began,
        command=_typed(suite, folder, chosen, ["--anyway"] if anyway else []),
        **manner,
    )
    try:
        with narrator(loaded) as tell:
            echo = partial(click.echo, err=True)
            how = replace(how, refused=_refused(cells, folder, how, echo))
            counts = run_cells(cells, folder, how, tell=tell, announce=echo)
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted: finished cells are kept in {folder.path}; the same command "
            f"goes on from there",
            err=True,
        )
        ctx.exit(130)
    parts = [f"{counts['ok']} cells measured", f"{counts['before']} were there"]
    parts += [f"{counts['error']} failed"]
    parts += [words.format(counts[name]) for name, words in SUMMARY.items() if name in counts]
    click.echo(f"{', '.join(parts)}; records in {folder.path}")
    if "elsewhere" in counts:
        _tell_of_owners(folder, ids)
    code = _show(folder, ids)
    undone = "left" in counts or "elsewhere" in counts
    ctx.exit(LEFT if undone and counts["error"] == 0 else code)


def _tell_of_owners(store: Store, cells: Iterable[str]) -> None:
    """Say which runners of other machines may have ended: nobody here can see that."""
    for owner in sorted({owner for owner in store.owners(cells) if not owner.here}):
        click.echo(
            f"if {owner} has ended, which cannot be seen here, --unlock takes its cells over"
        )


def _whole(suite: Suite) -> list[str]:
    """The names of those in a suite that have no shortened form."""
    members = [load(name) for name in suite.suites] or [suite]
    return [member.name for member in members if not member.quick]


def expect_gpu(suite: Suite, device: str) -> None:
    """Refuse a CPU where it would take days.

    Raises:
        ValueError: for a suite that is meant for a GPU.
    """
    if suite.for_gpu and device == "cpu":
        quick = f"`stitchbench run {suite.name} --quick` rehearses it here, "
        raise ValueError(
            f"expected --device cuda for {suite.name!r}, which is meant for {suite.where}, got "
            f"cpu: {'' if _whole(suite) else quick}`stitchbench predict {suite.name}` says what "
            f"it will cost (but for the task `cost`), and --anyway runs it all the same"
        )


def _refused(
    cells: list[Cell], store: Store, how: How, echo: Callable[[str], None]
) -> dict[str, str]:
    """Why cells of full size have no room on the device, by their ids."""
    from bench.worlds.full import BUILDS  # noqa: PLC0415 - imports torch

    here = how.backend == "process"
    if not here or not any(c.spec.world.build in BUILDS and not c.quick for c in cells):
        return {}
    from bench.forecast import refused  # noqa: PLC0415 - slow: pandas

    check_device(how.device)
    latest = store.latest()
    return refused([c for c in cells if how.wants(latest.get(c.id))], how.device, echo)


def _show(store: Store, cells: set[str]) -> int:
    """Print what a store, read once, says of cells; returns the exit code."""
    from bench.report.book import chapters  # noqa: PLC0415 - imports pandas

    every = store.latest()
    latest = {cell: record for cell, record in every.items() if cell in cells}
    _warn_of_other_code(latest.values())
    print_table(chapters(latest.values(), store), store)
    if any(record["status"] == "ok" for record in every.values()):  # else it has nothing to show
        click.echo(f"the page: stitchbench report {store.path}")
    return _exit_code(latest, cells)


def _manner(
    *,
    timeout: str | None,
    mem_limit: str | None,
    budget: str | None,
    rerun: str,
    fail_fast: bool,
    **rest: Any,
) -> dict[str, Any]:
    """Options as fields of `How`.

    Raises:
        ValueError: for a time, a size or a name nobody knows.
    """
    names = [name.strip() for name in rerun.split(",")]
    if unknown := [name for name in names if name not in RERUNS]:
        raise ValueError(f"expected --rerun of {', '.join(RERUNS)}, got {unknown[0]!r}")
    limits = Limits(
        seconds=None if timeout is None else seconds(timeout),
        memory=None if mem_limit is None else memory(mem_limit),
    )
    return rest | {
        "limits": limits,
        "rerun": names,
        "budget": None if budget is None else seconds(budget),
        "max_failures": 1 if fail_fast else rest["max_failures"],
    }


def _typed(suite: str, store: Store, chosen: dict[str, Any], more: Sequence[str]) -> str:
    """The command line of these cells, with what is not a default."""
    words = ["stitchbench", "run", suite]
    for name in ("world", "seed", "device", "threads"):
        if chosen[name] not in {None, "cpu", 1}:
            words += [f"--{name}", str(chosen[name])]
    words += ["--quick"] if chosen["quick"] else []
    for change in chosen["changes"]:
        words += ["--set", change]
    return shlex.join([*words, *more, "--store", str(store.path)])


def _exit_code(latest: Mapping[str, Mapping[str, Any]], cells: Iterable[str]) -> int:
    """0 where nothing went wrong, 1 where something did, 3 where nothing went well."""
    good = [cell in latest and latest[cell]["status"] in GOOD for cell in cells]
    return 0 if all(good) else 1 if any(good) else 3


def _warn_of_other_code(records: Iterable[Mapping[str, Any]]) -> None:
    """Say which measurements are of code that has changed since."""
    other = [record for record in records if stale(record)]
    if other:
        known = ", ".join(sorted({str(r["environment"]["commit"])[:8] for r in other}))
        click.echo(
            f"warning: {len(other)} of these cells are stale, measured with other code ({known}); "
            f"--rerun stale measures them again",
            err=True,
        )
