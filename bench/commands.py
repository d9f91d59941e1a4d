"""The subcommands of stitchbench."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench import plan as plans
from bench import suite as suites
from bench.careful import careful
from bench.cell import Cell
from bench.how import How
from bench.stale import stale
from bench.statuses import SHOWN
from bench.store import Store
from bench.stores import RUNS, store_of

if TYPE_CHECKING:
    from bench.report.book import Chapter

NARROW, WIDE = 80, 160  # columns of a table on a terminal
F = TypeVar("F", bound=Callable[..., Any])
ONLY = click.option(
    "--only",
    default="",
    metavar="EXPR",
    help="Cells such as 'estimator=tweedie & reward!=linear'; ~ is 'contains'.",
)


def selection(command: F) -> F:
    """Options that choose cells of a suite."""
    for option in (
        click.option("--world", help="World in place of the suite's."),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="AXIS=V1,V2",
            help="Values of an axis or field, in place of the suite's. Repeatable.",
        ),
        ONLY,
        click.option("--seed", type=int, help="Seed in place of the suite's."),
        click.option("--quick", is_flag=True, help="The suite's shortened form."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ..."),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="CPU threads of a cell.",
        ),
    ):
        command = option(command)
    return command


def planned(
    name: str, *, world: str | None, changes: tuple[str, ...], **options: Any
) -> tuple[suites.Suite, list[Cell]]:
    """A suite and its cells under the options of `selection`.

    Raises:
        ValueError: for a change that is not AXIS=VALUES, or a selection of nothing.
    """
    suite = suites.load(name, world)
    cells = plans.plan(suite, changes=changed(name, suite, changes, world), **options)
    if not cells:
        raise ValueError(
            f"expected --only to select some cells of {suite.name!r}, got none for "
            f"{options['only']!r}"
        )
    return suite, cells


def changed(
    name: str, suite: suites.Suite, changes: Iterable[str], world: str | None
) -> dict[str, list[Any]]:
    """Axes in place of a suite's, of `--set` and `--world`.

    Args:
        name: What the suite was asked for by: with a world, it may be one of that world's own.
        suite: The suite.
        changes: AXIS=V1,V2.
        world: In place of the suite's.

    Raises:
        ValueError: for a change that is not AXIS=VALUES.
    """
    parsed = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"expected --set AXIS=V1,V2, got {change!r}")
        parsed[field.strip()] = suites.values(field.strip(), text)
    if world is not None and suite.name != f"{name}-{world}":
        parsed["world"] = [world]
    return parsed


@click.command(epilog="Example: stitchbench ls estimators")
@click.argument(
    "kind",
    type=click.Choice(["worlds", "rewards", "estimators", "algorithms", "suites", "metrics"]),
)
@careful
def ls(kind: str) -> None:
    """List what suites can name."""
    from bench.listed import LISTS  # noqa: PLC0415

    for name, about in LISTS[kind]():
        click.echo(f"{name:18} {about}")


@click.command(epilog="Example: stitchbench plan value --only 'estimator~MC'")
@click.argument("suite")
@selection
@click.option("--store", type=Path, help="Where the cells' records would be.")
@careful
def plan(suite: str, store: Path | None, **options: Any) -> None:
    """Show the cells SUITE would run: a shipped suite's name or the path of a YAML file."""
    loaded, cells = planned(suite, **options)
    known, missing = Store(store or RUNS / loaded.name).latest(), 0
    for cell in cells:
        record = known.get(cell.id)
        missing += How().wants(record)
        state = "stale" if record is not None and stale(record) else _state(record)
        where = "  ".join(f"{k}={v}" for k, v in cell.coordinates.items())
        click.echo(f"{cell.id}  {state:11}  {where}")
    for protocol in dict.fromkeys(cell.spec.protocol.size for cell in cells):
        click.echo(protocol)
    click.echo(
        f"{len(cells)} cells, {missing} to run; the whole suite takes about "
        f"{loaded.minutes:g} min on {loaded.where}"
    )


def _state(record: Mapping[str, Any] | None) -> str:
    """What came of a cell, with the word that tables have for it."""
    if record is None:
        return "to run"
    return "done" if record["status"] == "ok" else SHOWN[record["status"]]


def print_table(found: Iterable["Chapter"], store: Store) -> None:
    """The text tables of a store's chapters, and what of it could not be shown."""
    from bench.report.book import said  # noqa: PLC0415 - imports pandas

    columns = max(NARROW, min(shutil.get_terminal_size().columns, WIDE))
    for chapter in found:
        click.echo(said(chapter, columns))
    for problem in store.problems:
        click.echo(f"warning: {problem}", err=True)


def _folder(out: Path, task: str, tasks: Sized) -> Path:
    """Where a task's files go: a folder of its own where the store holds several tasks."""
    return out if len(tasks) == 1 else out / task


@click.command(epilog="Example: stitchbench table quickstart --out tables")
@click.argument("store")
@click.option("--out", type=Path, help="Also write md, csv and tex here.")
@careful
def table(store: str, out: Path | None) -> None:
    """Print the tables of STORE, a folder or the name of a suite that was run."""
    from bench.report.book import chapters  # noqa: PLC0415 - imports pandas
    from bench.report.views import VIEWS  # noqa: PLC0415

    kept = store_of(store)
    found = chapters(kept.latest().values(), kept)
    print_table(found, kept)
    if out is not None:
        for task, _, frame, failed in found:
            for path in VIEWS[task].tables(frame, _folder(out, task, found), failed):
                click.echo(path)


@click.command(epilog="Example: stitchbench plot quickstart --x seconds --y rmse --by estimator")
@click.argument("store")
@click.option("--x", default="sigma", show_default=True, help="Column along the axis.")
@click.option("--y", default="rmse", show_default=True, help="Column up the axis.")
@click.option(
    "--by", default="estimator", show_default=True, help="Column that tells lines apart."
)
@ONLY
@click.option("--out", type=Path, help="Folder of the pictures.  [default: STORE/plots]")
@careful
def plot(store: str, x: str, y: str, by: str, only: str, out: Path | None) -> None:
    """Draw two columns of STORE against each other, as png and pdf."""
    from bench.report import plots  # noqa: PLC0415
    from bench.report.book import chapters  # noqa: PLC0415
    from bench.report.views import VIEWS  # noqa: PLC0415

    kept = store_of(store)
    records, wanted = kept.latest().values(), plans.matcher(only)
    cells = {record["id"] for record in records if wanted(record["id"], record["coordinates"])}
    if only and not cells:
        raise ValueError(f"expected --only to select some cells of {store}, got none for {only!r}")
    found = chapters(records, kept)
    for task, mine, frame, _ in found:
        if cells.isdisjoint(record["id"] for record in mine):
            continue
        rows = frame if frame.empty else frame[frame["cell"].isin(cells)]
        for name, figure in VIEWS[task].draw(rows, x, y, by).items():
            folder = _folder(kept.path / "plots" if out is None else out, task, found)
            for path in plots.save(figure, folder, name):
                click.echo(path)


@click.command(epilog="Example: stitchbench report quickstart")
@click.argument("store")
@click.option("--out", type=Path, help="Folder of the report.  [default: STORE/report]")
@careful
def report(store: str, out: Path | None) -> None:
    """Write the page of STORE, which opens from the file, with its tables and plots."""
    from bench.report.book import write  # noqa: PLC0415 - imports pandas

    found = store_of(store)
    files, page = write(found, out or found.path / "report")
    click.echo(f"{len(files)} tables and plots beside it; open {page.resolve()}")


@click.command(epilog="Example: stitchbench rescore table1 --judge my_judge.py:build")
@click.argument("store")
@click.option(
    "--judge", required=True, help="A reward or judge of the world, or `file.py:build(world)`."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@careful
def rescore(store: str, judge: str, device: str) -> None:
    """Add a judge to the kept samples of STORE, without generating again."""
    from bench.rescore import rescore as scored  # noqa: PLC0415 - imports torch

    found = store_of(store)
    kept = dict(scored(found, judge, device))
    if not any(kept.values()):
        raise ValueError(
            f"expected some cell with kept samples (`keep: true` in a suite), got {len(kept)} "
            f"without"
        )
    others = "; the others kept no samples (`keep: true` in a suite)"
    click.echo(
        f"{sum(kept.values())} of {len(kept)} cells scored{'' if all(kept.values()) else others}; "
        f"`stitchbench table {store}` shows the judge"
    )


@click.command(epilog="Example: stitchbench test my_estimator.py")
@click.argument("file")
@click.option(
    "--kind",
    type=click.Choice(
        ["estimator", "reward", "backbone", "prompts", "judge", "metric", "algorithm", "trainer",
         "world"]
    ),
    help="What FILE builds; by default it is seen.",
)  # fmt: skip
@click.option(
    "--world", default="gaussian", show_default=True, help="Where: NAME,SETTING=VALUE,..."
)
@click.option("--reward", help="Reward it is built with.  [default: quadratic, or the first]")
@click.pass_context
@careful
def test(ctx: click.Context, file: str, kind: str | None, world: str, reward: str | None) -> None:
    """Check the extension that FILE builds against the contract of its kind."""
    from bench.contract.files import SEEN, tested  # noqa: PLC0415 - imports torch

    seen, checked = tested(file, kind, world, reward)
    click.echo(f"{file} as {seen} in {world}")
    if kind is None and seen in SEEN:
        click.echo(f"        {SEEN[seen]}; --kind says otherwise")
    failed = 0
    for about, problem in checked:
        click.echo(f"{'FAILED' if problem else 'ok':7} {about}")
        if problem:
            failed += 1
            click.echo(f"        {problem}")
    ctx.exit(1 if failed else 0)
