"""stitchbench stitch: making a StitchVM in a world."""

from pathlib import Path
from typing import Literal

import click

from bench.careful import careful

RUNS = Path("results/runs/stitch")


@click.group(epilog="Example: stitchbench stitch search shapes --reward clip")
def stitch() -> None:
    """Make a value model: search where to stitch, then finetune."""


def _where(world: str, reward: str, out: Path | None) -> Path:
    return out or RUNS / world / reward


@stitch.command(epilog="Example: stitchbench stitch search shapes --reward aesthetic")
@click.argument("world")
@click.option("--reward", required=True, help="Name of the world's reward.")
@click.option("--trunk", type=click.Choice(["backbone", "latent"]), default="backbone")
@click.option("--probes", type=click.IntRange(1), default=200, show_default=True, help="Images.")
@click.option("--ridge", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--source", type=click.Choice(["pixels", "latents"]), default="pixels")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=Path, help="Folder.  [default: results/runs/stitch/WORLD/REWARD]")
@careful
def search(  # noqa: PLR0913 - one for each option
    world: str,
    *,
    reward: str,
    trunk: Literal["backbone", "latent"],
    probes: int,
    ridge: float,
    source: Literal["pixels", "latents"],
    seed: int,
    out: Path | None,
) -> None:
    """Fit every pair of blocks (i, j) in one pass; print the losses and keep the picks."""
    from bench.stitching import find  # noqa: PLC0415 - slow to import
    from bench.worlds import WORLDS  # noqa: PLC0415
    from stitchvm.search import Settings  # noqa: PLC0415

    folder = _where(world, reward, out)
    settings = Settings(source=source, ridge=ridge, seed=seed)
    found = find(WORLDS[world](), reward, folder, settings, probes=probes, trunk=trunk)
    click.echo(" i  j      loss  normalised     R2   held: loss  normalised     R2    MFLOP")
    for p in found.pairs:
        names = [name for name, chosen in found.picks.items() if chosen == p]
        click.echo(
            f"{p.i:2} {p.j:2} {p.loss:9.4f} {p.normalised:11.3f} {p.r2:6.3f} {p.held_loss:12.4f} "
            f"{p.held_normalised:11.3f} {p.held_r2:6.3f} {p.cost / 1e6:8.1f} {' '.join(names)}"
        )
    click.echo(f"in {folder}")


@stitch.command(epilog="Example: stitchbench stitch train shapes --reward clip --steps 2000")
@click.argument("world")
@click.option("--reward", required=True, help="Name of the world's reward.")
@click.option("--pick", "chosen", default="cheap", show_default=True, help="paper or cheap.")
@click.option("--norm", type=click.Choice(["unit", "free"]), default="unit", show_default=True)
@click.option(
    "--condition", type=click.Choice(["null", "prompt"]), default="null", show_default=True
)
@click.option(
    "--loss", type=click.Choice(["embedding", "score"]), default="embedding", show_default=True
)
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=1e-5, show_default=True)
@click.option("--images", type=click.IntRange(1), default=20_000, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."
)
@click.option("--out", type=Path, help="Folder of the search, and of what is made.")
@careful
def train(  # noqa: PLR0913 - one for each option
    world: str,
    *,
    reward: str,
    chosen: str,
    norm: Literal["unit", "free"],
    condition: Literal["null", "prompt"],
    loss: Literal["embedding", "score"],
    steps: int,
    batch: int,
    rate: float,
    images: int,
    threads: int,
    out: Path | None,
) -> None:
    """Finetune layer and tail from a pick of the search; killed, the same command goes on."""
    import torch  # noqa: PLC0415 - slow to import

    from bench import stitching  # noqa: PLC0415
    from bench.worlds import WORLDS  # noqa: PLC0415
    from stitchvm.distill import Recipe  # noqa: PLC0415
    from stitchvm.search import load  # noqa: PLC0415

    torch.set_num_threads(threads)
    folder = _where(world, reward, out)
    found, made = load(folder), WORLDS[world]()
    for key, wanted in (("world", made.digest), ("reward", reward)):
        if found.about[key] != wanted:
            raise ValueError(
                f"expected a search of {key} {wanted} in {folder}, got {found.about[key]}"
            )
    teacher, pair = made.reward(reward), stitching.pick(found, chosen)
    trunk = found.about["trunk"]
    model = stitching.begin(
        made, teacher, found, pair, norm=norm, condition=condition, trunk=trunk
    )
    recipe = Recipe(steps=steps, batch=batch, rate=rate, loss=loss)
    data = stitching.learned_from(made, teacher, images, found.about["source"])
    name = f"{pair[0]}-{pair[1]}-{norm}-{condition}"
    about = {
        "world": made.digest,
        "reward": reward,
        "pick": chosen,
        "norm": norm,
        "images": images,
    }
    for record in stitching.finetune(model, data, recipe, folder / name, about):
        if record.step % 50 == 0 or record.step == steps:
            terms = "  ".join(f"{k} {v:.4g}" for k, v in record.terms.items())
            click.echo(f"step {record.step}: loss {record.loss:.4g}  {terms}")
    click.echo(f"in {folder / name / stitching.MODEL}")
