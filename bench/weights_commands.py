"""stitchbench weights: published weights in a folder of copies, fetched and compared."""

from pathlib import Path

import click

from bench import published
from bench.careful import careful


@click.group(epilog="Example: stitchbench weights get sd35-medium --reward clip --to weights")
def weights() -> None:
    """Fetch published weights to a folder, and compare copies with their digests.

    A world takes the folder: `sd35-medium,weights=FOLDER`; with weights=hub, the hub's own cache
    serves instead, and nothing here is needed.
    """


@weights.command(epilog="Example: stitchbench weights get sd35-medium --reward clip --to weights")
@click.argument("model", type=click.Choice(list(published.GENERATORS)))
@click.option(
    "--reward",
    "rewards",
    type=click.Choice(list(published.REWARDS)),
    multiple=True,
    help="Repeatable.",
)
@click.option("--tiny", is_flag=True, help="Also the distilled decoder.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Folder of copies.")
@careful
def get(model: str, rewards: tuple[str, ...], *, tiny: bool, to: Path) -> None:
    """Fetch a generator and rewards from the hub, and write their digests.

    Revisions are pinned, but for the distilled decoder's.

    Stopped, the same command goes on. Gated models need `hf auth login` and an accepted licence.
    """
    from bench.worlds.full.files import download, write_sums  # noqa: PLC0415 - imports torch

    wanted = [published.GENERATORS[model]]
    wanted += [published.DECODERS[model]] if tiny else []
    wanted += [one for reward in rewards for one in published.REWARDS[reward]]
    for source in dict.fromkeys(wanted):
        gated = ", gated" if source.gated else ""
        revision = source.revision or "newest revision"
        click.echo(f"{source.repo} at {revision} (licence: {source.licence}{gated})")
        folder = download(source, to / source.repo)
        click.echo(f"  {len(write_sums(folder))} files in {folder}")


@weights.command(epilog="Example: stitchbench weights sum weights/xswu/HPSv2")
@click.argument("folder", type=click.Path(path_type=Path))
@careful
def sum(folder: Path) -> None:  # noqa: A001 - as sha256sum
    """Write the SHA256SUMS of a folder of copies that you trust."""
    from bench.worlds.full.files import SUMS, write_sums  # noqa: PLC0415

    for name, digest in write_sums(folder).items():
        click.echo(f"{digest}  {name}")
    click.echo(f"in {folder / SUMS}")


@weights.command(epilog="Example: stitchbench weights check weights")
@click.argument("root", type=click.Path(path_type=Path))
@careful
def check(root: Path) -> None:
    """Compare every file of a folder of copies with its digest, whatever was compared before."""
    from bench.worlds.full.files import SUMS, compare, listed  # noqa: PLC0415

    folders = sorted(file.parent for file in root.rglob(SUMS))
    if not folders:
        raise FileNotFoundError(f"expected some {SUMS} in {root}, got none")
    for folder in folders:
        sums = listed(folder)
        compare(folder, sums, again=True)
        click.echo(f"{folder}: {len(sums)} files as their digests say")
