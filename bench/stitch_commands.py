"""stitchbench stitch: making a StitchVM, and its learned rivals, in a world."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import click

from bench.careful import careful

RUNS = Path("results/runs/stitch")
ARM_NAMES = (
    "stitched",
    "stitched_free",
    "stitched_snr",
    "stitched_latents",
    "stitched_prompt",
    "stitched_soft",
    "stitched_rollouts",
    "vae_stitch",
    "vae_stitch_long",
    "noisy_student",
    "feature_head",
)

KINDS = ("stitched", "vae_stitch", "noisy_student", "feature_head")  # that are saved

rewards = click.option(
    "--reward", "rewards", required=True, multiple=True, help="Name of a reward; may be repeated."
)
arms = click.option(
    "--arm",
    "arms",
    type=click.Choice(ARM_NAMES),
    multiple=True,
    default=("stitched",),
    show_default=True,
    help="What to train; may be repeated.",
)
pictures = click.option(
    "--pictures",
    metavar="FOLDER|ADDRESS",
    help="Images to use instead of the world's own: a folder, or hub:OWNER/NAME@COMMIT[:SPLIT].",
)
picks = click.option(
    "--pick", "chosen", default="cheap", show_default=True, help='paper, cheap or "i,j".'
)
batch = click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
images = click.option(
    "--images", type=click.IntRange(1), default=20_000, show_default=True, help="To learn from."
)
threads = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."
)
device = click.option(
    "--device", help="Where to compute, as cuda or cuda:1.  [default: as the world says, or cpu]"
)
bf16 = click.option(
    "--bf16", is_flag=True, help="Run matrix products of layer and tail in bfloat16."
)
micro = click.option(
    "--micro-batch",
    "micro",
    type=click.IntRange(1),
    help="Images whose graphs are kept at once.  [default: all of a batch]",
)
out = click.option(
    "--out", type=Path, help="Folder of all that is made.  [default: results/runs/stitch/WORLD]"
)


@click.group(epilog="Example: stitchbench stitch search shapes --reward clip")
def stitch() -> None:
    """Make a value model: search where to stitch, tune a learning rate, train, judge.

    A WORLD may come with settings: shapes,generator=small.
    """


def _where(world: str, out: Path | None) -> Path:
    return out or RUNS / world.replace("/", "_")


@stitch.command(epilog="Example: stitchbench stitch search shapes --reward aesthetic")
@click.argument("world")
@click.option("--reward", required=True, help="Name of the world's reward.")
@click.option("--trunk", type=click.Choice(["backbone", "latent"]), default="backbone")
@click.option("--probes", type=click.IntRange(1), default=200, show_default=True, help="Images.")
@click.option("--ridge", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--source", type=click.Choice(["pixels", "latents"]), default="pixels")
@click.option("--seed", type=int, default=0, show_default=True)
@pictures
@device
@out
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
    pictures: str | None,
    device: str | None,
    out: Path | None,
) -> None:
    """Fit every pair of blocks (i, j) in one pass; print the losses and keep the picks."""
    from bench.datasets.hub import images_of  # noqa: PLC0415 - slow to import
    from bench.run import check_device  # noqa: PLC0415
    from bench.searches import find  # noqa: PLC0415
    from bench.worlds import named  # noqa: PLC0415
    from stitchvm.search import Settings  # noqa: PLC0415
    from stitchvm.workers import workers  # noqa: PLC0415

    check_device(device or "cpu")
    if (count := workers().count) > 1:
        raise ValueError(f"expected one process for a search, got {count}: train shares its work")
    folder = _where(world, out) / reward / f"search-{trunk}"
    settings = Settings(source=source, ridge=ridge, seed=seed)
    made = named(world, device)
    images = images_of(made, pictures)
    found = find(made, reward, folder, settings, probes=probes, trunk=trunk, images=images)
    click.echo(" i  j      loss  normalised     R2   held: loss  normalised     R2    MFLOP")
    for p in found.pairs:
        names = [name for name, chosen in found.picks.items() if chosen == p]
        click.echo(
            f"{p.i:2} {p.j:2} {p.loss:9.4f} {p.normalised:11.3f} {p.r2:6.3f} {p.held_loss:12.4f} "
            f"{p.held_normalised:11.3f} {p.held_r2:6.3f} {p.cost / 1e6:8.1f} {' '.join(names)}"
        )
    click.echo(f"in {folder}")


def trains(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is given a workshop, and the options that say where and from what."""

    @functools.wraps(command)
    def given(  # noqa: PLR0913 - one for each option
        world: str,
        *,
        images: int,
        pictures: str | None,
        threads: int,
        device: str | None,
        micro: int | None,
        out: Path | None,
        **rest: Any,
    ) -> None:
        import torch  # noqa: PLC0415 - slow to import

        from bench.datasets.hub import images_of  # noqa: PLC0415
        from bench.run import check_device  # noqa: PLC0415
        from bench.stitching import Workshop  # noqa: PLC0415
        from bench.worlds import named  # noqa: PLC0415
        from stitchvm.workers import workers  # noqa: PLC0415

        torch.set_num_threads(threads)
        together = workers()  # first of all: it says which GPU is this process's
        check_device(device or "cpu")
        made = named(world, device)
        if together.count > 1:
            together.expect(made.backbone.empty_latents(0).device)
        of, where = images_of(made, pictures), _where(world, out)
        command(Workshop(made, where, of, images, workers=together, micro=micro), **rest)

    for option in (out, micro, bf16, device, threads, pictures, images, batch):
        given = option(given)
    return given


@stitch.command(
    epilog="Example: stitchbench stitch tune shapes --reward clip --arm stitched --arm vae_stitch"
)
@click.argument("world")
@rewards
@arms
@picks
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True)
@careful
@trains
def tune(  # noqa: PLR0913 - one for each option
    shop: Any,
    *,
    rewards: tuple[str, ...],
    arms: tuple[str, ...],
    chosen: str,
    steps: int,
    batch: int,
    bf16: bool,
) -> None:
    """Try four learning rates for every reward and arm, side by side, and keep what they came to.

    Arms that take another's rate have none of their own to try.
    """
    from bench.arms import ARMS  # noqa: PLC0415 - slow to import
    from bench.stitching import Job  # noqa: PLC0415
    from stitchvm.distill import Recipe  # noqa: PLC0415

    jobs = [Job(r, arm, chosen) for r in rewards for arm in arms if not ARMS[arm].rates]
    _tell(shop.tune(jobs, Recipe(steps=steps, batch=batch, bf16=bf16), steps=steps), shop)
    for job in jobs if shop.workers.first else ():
        best, *others = shop.trials(job)
        rest = ", ".join(f"{trial.rate:g} {trial.held_loss:.4g}" for trial in others)
        click.echo(
            f"{job.reward} {job.name}: {best.rate:g}, held-out loss {best.held_loss:.4g} ({rest})"
        )


@stitch.command(epilog="Example: stitchbench stitch train shapes --reward clip --steps 2000")
@click.argument("world")
@rewards
@arms
@picks
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "--keep",
    type=click.IntRange(1),
    multiple=True,
    help="Steps after which to keep the model as well; may be repeated.",
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: as tuned]"
)
@click.option(
    "--average", type=click.FloatRange(0, min_open=True), help="Half-life of averaged weights."
)
@careful
@trains
def train(  # noqa: PLR0913 - one for each option
    shop: Any,
    *,
    rewards: tuple[str, ...],
    arms: tuple[str, ...],
    chosen: str,
    steps: int,
    keep: tuple[int, ...],
    rate: float | None,
    average: float | None,
    batch: int,
    bf16: bool,
) -> None:
    """Finetune from a pick of the search; killed, the same command goes on.

    What is trained in one command is trained side by side, and shares the frozen backbone's work.
    Several GPUs share every batch: accelerate launch --num_processes 4 -m bench stitch train ...
    """
    from bench.finetuning import MODEL  # noqa: PLC0415 - slow to import
    from bench.stitching import Job  # noqa: PLC0415
    from stitchvm.distill import Recipe  # noqa: PLC0415

    jobs = [Job(reward, arm, chosen) for reward in rewards for arm in arms]
    recipe = Recipe(steps=steps, batch=batch, average=average, bf16=bf16)
    _tell(shop.train(jobs, recipe, keep, rate), shop)
    for job in jobs if shop.workers.first else ():
        click.echo(f"in {shop.folder(job) / MODEL}")


@stitch.command(epilog="Example: stitchbench stitch cost shapes --reward clip")
@click.argument("world")
@rewards
@arms
@picks
@images
@pictures
@out
@careful
def cost(
    world: str,
    *,
    rewards: tuple[str, ...],
    arms: tuple[str, ...],
    chosen: str,
    images: int,
    pictures: str | None,
    out: Path | None,
) -> None:
    """What search and training took, in hours of a GPU or a core, beside the paper's Table 4.

    As far as the files say that they left: images that several models learn from are counted for
    each, and a learning rate that was tried for another model is not.
    """
    from bench.datasets.hub import images_of  # noqa: PLC0415 - slow to import
    from bench.report.spent import text  # noqa: PLC0415
    from bench.stitching import Job, Workshop  # noqa: PLC0415
    from bench.worlds import named  # noqa: PLC0415

    made = named(world)
    shop = Workshop(made, _where(world, out), images_of(made, pictures), images)
    jobs = [Job(reward, arm, chosen) for reward in rewards for arm in arms]
    found = {f"{job.reward} {job.name}": shop.spent(job) for job in jobs}
    if not any(amount for spent in found.values() for amount in spent):
        raise ValueError(
            f"expected a search or a model in {shop.root} that says what it took, found none for "
            f"{', '.join(found)}"
        )
    click.echo(text(found))


@stitch.command(
    "eval", epilog="Example: stitchbench stitch eval shapes --reward clip --model stitched"
)
@click.argument("world")
@click.option("--reward", required=True, help="Name of the world's reward.")
@click.option("--model", required=True, help="Folder, or name of one that ships with the world.")
@click.option(
    "--estimator",
    type=click.Choice(KINDS),
    default="stitched",
    show_default=True,
    help="Its kind.",
)
@click.option("--images", type=click.IntRange(2), default=500, show_default=True, help="Held out.")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed.")
@threads
@device
@careful
def evaluate(
    world: str,
    *,
    reward: str,
    model: str,
    estimator: str,
    images: int,
    rounds: int,
    threads: int,
    device: str | None,
) -> None:
    """Errors of a trained model on held-out images, and its cost, beside Tweedie's."""
    import torch  # noqa: PLC0415 - slow to import

    from baselines import ESTIMATORS  # noqa: PLC0415
    from bench import appraisal  # noqa: PLC0415
    from bench.interleaved import clock_of  # noqa: PLC0415
    from bench.report.numbers import interval, plain  # noqa: PLC0415
    from bench.run import check_device  # noqa: PLC0415
    from bench.worlds import named  # noqa: PLC0415

    torch.set_num_threads(threads)
    check_device(device or "cpu")
    made = named(world, device)
    of = made.reward(reward)
    found = ESTIMATORS[estimator](made, of, model=model)
    names = ("model", "tweedie", "constant")
    seen = "prompt" if found.target.posterior == "prompt" else "null prompt"
    click.echo(
        f"{found.target}; RMSE against the realised reward of {images} held-out images; Tweedie "
        f"with the {seen}"
    )
    click.echo("sigma  " + "".join(f"{name:24}" for name in names) + "MSE - Tweedie's")
    for level in appraisal.accuracy(made, of, found, images):
        shown = "".join(f"{interval(*level.errors[name][:3]):24}" for name in names)
        click.echo(f"{level.sigma:<7g}{shown}{interval(*level.gained[:3])}")
    clock = clock_of(made.backbone.empty_latents(0).device)
    for cost in appraisal.costs(made, of, found, clock, rounds=rounds):
        click.echo(
            f"{cost.what}, batch {cost.batch}: {interval(*cost.ratio[:3])} times the seconds of "
            f"Tweedie, null prompt; FLOPs say {plain(cost.flops, 2)}"
        )


@stitch.command(epilog="Example: stitchbench stitch export MODEL SMALLER")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("to", type=click.Path(path_type=Path))
@careful
def export(folder: Path, to: Path) -> None:
    """Write a trained model into a new folder, its weights rounded to 16 bits."""
    from stitchvm.saved import rounded  # noqa: PLC0415 - slow to import

    rounded(folder, to)
    click.echo(f"in {to}")


def _tell(told: Iterable[Any], shop: Any) -> None:
    """A line for each estimator every 50 steps, from the first process."""
    for job, record in told:
        if record.step % 50 == 0 and shop.workers.first:
            terms = "  ".join(f"{k} {v:.4g}" for k, v in record.terms.items())
            click.echo(f"{job.reward} {job.name} step {record.step}: {record.loss:.4g}  {terms}")
