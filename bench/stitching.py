"""Making learned estimators in a world: search, learning-rate trials, finetuning, keeping.

<root>/prepared/                        latents and targets of the images
<root>/<reward>/search-<trunk>/         stage 1: the loss table and the picks
<root>/<reward>/<arm>/trials.json       held-out loss of every learning rate tried
<root>/<reward>/<arm>/checkpoint.pt, log.jsonl, run.json
<root>/<reward>/<arm>/step-N/, model/   the value model after N steps, and at the end

Estimators that are trained together see the same latents, and share what the frozen backbone
makes of them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from baselines.trained import weights
from bench.arms import ARMS, TRUNKS, Arm, Given, Trunk
from bench.finetuning import LOG, MODEL, finetune, put_json, same
from bench.images import Images
from bench.prepared import ROLLED, Shelf
from bench.resolve import UnknownName
from bench.searches import PROBES, find, pick
from bench.spent import Amount, Spent, logged, read, timed, total
from stitchvm.backbone import Backbone
from stitchvm.distill import Recipe, Record, Student, distill, held_loss
from stitchvm.memo import STATES, Shared
from stitchvm.search import TABLE, Search, Settings, Source, load
from stitchvm.stitch import Stitched
from stitchvm.teacher import Lessons
from stitchvm.value import Target
from stitchvm.workers import ALONE, Workers
from stitchvm.world import Split, World

IMAGES, CHECKED = 20_000, 1024  # that stage 2 learns from, and that judge its learning rates
ROLLOUTS = 4096  # of the generator, that go instead of images at most
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # tried for every arm
TRIAL_STEPS = 300
TRIALS, PREPARED = "trials.json", "prepared"


class Job(NamedTuple):
    """One estimator to be trained: which arm, of which reward, from which pick."""

    reward: str
    arm: str
    chosen: str = "cheap"

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.arm if self.chosen == "cheap" else f"{self.arm}-{self.chosen}"


class Told(NamedTuple):
    """A record of one of the estimators that are trained together."""

    job: Job
    record: Record


class Trial(NamedTuple):
    """A learning rate that was tried, and the loss on held-out images after some steps."""

    rate: float
    held_loss: float
    steps: int


@dataclass(frozen=True)
class Workshop:
    """Where estimators are trained.

    Attributes:
        world: In which world.
        root: Folder of all that is made there.
        images: Where clean images come from.
        count: Images to learn from.
        checked: Held-out images that judge learning rates.
        workers: The processes that train together.
        micro: Images whose graphs are kept at once; those of a process's share when None.
    """

    world: World
    root: Path
    images: Images
    count: int = IMAGES
    checked: int = CHECKED
    workers: Workers = ALONE
    micro: int | None = None

    def folder(self, job: Job) -> Path:
        """Of an estimator."""
        return self.root / job.reward / job.name

    def search(self, reward: str, trunk: Trunk = "backbone") -> Search:
        """Stage 1: the one that is there, however it was made; else one as published.

        Raises:
            ValueError: if that there is of something else.
        """
        folder = self.root / reward / f"search-{trunk}"
        if self.workers.first and not (folder / TABLE).is_file():
            find(self.world, reward, folder, Settings(), trunk=trunk, images=self.images)
        self.workers.wait()
        known = load(folder)
        of = {"world": self.world.digest, "images": self.images.digest}
        of |= {"reward": reward, "trunk": trunk}
        same("a search", of, {key: known.about.get(key) for key in of}, folder)
        return known

    def begin(self, job: Job, backbone: Backbone | None = None) -> Student:
        """An estimator before it is trained.

        Args:
            job: Which.
            backbone: The world's own when None.
        """
        arm = arm_of(job.arm)
        if arm.settings.get("condition") == "prompt" and not self.images.prompted:
            raise ValueError(f"expected images with prompts for {job.arm}, got {self.images}")
        if arm.after:
            return self._further(job, backbone)
        found, reward = self.search(job.reward, arm.trunk), self.world.reward(job.reward)
        pair = pick(found, job.chosen)
        x_0 = next(self.images.shown("train", PROBES)).x_0
        trunk = TRUNKS[arm.trunk](backbone or self.world.backbone)
        given = Given(trunk, reward, found, pair, x_0)
        return arm.begin(given, **arm.settings)

    def _further(self, job: Job, backbone: Backbone | None) -> Student:
        """The estimator that an arm goes on from, aiming at what the sampler makes of z_t."""
        before = self._before(job)
        if not before.is_dir():
            raise ValueError(f"expected a trained {arm_of(job.arm).after} in {before}, got none")
        reward = self.world.reward(job.reward)
        model = Stitched.from_pretrained(before, backbone or self.world.backbone, reward)
        model.target = Target("mean", "model", kernel=ROLLED)
        return model

    def _before(self, job: Job) -> Path:
        """The folder of the model that an arm goes on from."""
        return self.folder(job._replace(arm=arm_of(job.arm).after)) / MODEL

    def recipe(self, job: Job, recipe: Recipe) -> Recipe:
        """A recipe as an arm has it; Eq. 79 for the aesthetic reward, as in the paper."""
        arm = arm_of(job.arm)
        loss = {"loss": "score"} if job.reward == "aesthetic" else {}
        changes = loss | arm.changes(self.world.backbone.latent)
        return replace(recipe, steps=round(arm.longer * recipe.steps), **changes)

    def data(self, jobs: Sequence[Job], split: Split, count: int) -> list[Lessons]:
        """What each learns from; what is the same is prepared once."""
        shelf = Shelf(self.world, self.images, self.root / PREPARED, self.workers)

        @cache
        def of(reward: str, source: Source, *, walked: bool) -> Lessons:
            if walked:
                return shelf.rollouts(reward, min(count, ROLLOUTS), split)
            return shelf.get(reward, count, source, split)

        arms = [arm_of(job.arm) for job in jobs]
        return [
            of(job.reward, arm.source, walked=bool(arm.after))
            for job, arm in zip(jobs, arms, strict=True)
        ]

    def tune(
        self,
        jobs: Sequence[Job],
        recipe: Recipe,
        rates: Sequence[float] = RATES,
        steps: int = TRIAL_STEPS,
    ) -> Iterator[Told]:
        """Try learning rates, all estimators and rates side by side; keep the held-out losses.

        Estimators whose rates were tried are passed over.

        Yields:
            Records, as training goes.

        Raises:
            ValueError: where other rates were tried, or in another way.
        """
        abouts = {
            job: {
                **self._about(job),
                "checked": self.checked,
                "rates": list(rates),
                "recipe": asdict(replace(self.recipe(job, recipe), steps=steps, rate=0.0)),
            }
            for job in jobs
        }
        jobs = [job for job in jobs if not self._tried(job, abouts[job])]
        if not jobs:
            return
        backbone, took = self._shared(recipe), list[Amount]()
        tried = [(job, rate) for job in jobs for rate in rates]
        students = [self.begin(job, backbone) for job, _ in tried]
        recipes = [
            replace(self.recipe(job, recipe), steps=steps, rate=rate) for job, rate in tried
        ]
        data = self.data([job for job, _ in tried], "train", self.count)
        runs = [
            distill(*given, workers=self.workers, micro=self.micro)
            for given in zip(students, data, recipes, strict=True)
        ]
        place = self.world.backbone.empty_latents(0).device
        for records, spent in timed(zip(*runs, strict=True), place, self.workers.count):
            took.append(spent)
            for (job, _), record in zip(tried, records, strict=True):
                yield Told(job, record)
        held = self.data([job for job, _ in tried], "held", self.checked)
        losses = [
            held_loss(*given, workers=self.workers, micro=self.micro)
            for given in zip(students, held, recipes, strict=True)
        ]
        whole = total(took)
        shared = {} if whole is None else whole.over(len(jobs)).plain()
        for job in jobs if self.workers.first else ():
            of = [
                Trial(rate, loss, steps)._asdict()
                for (owner, rate), loss in zip(tried, losses, strict=True)
                if owner == job
            ]
            self.folder(job).mkdir(parents=True, exist_ok=True)
            put_json(self.folder(job) / TRIALS, {"about": abouts[job], "trials": of, **shared})
        self.workers.wait()

    def _shared(self, recipe: Recipe) -> Shared:
        """The backbone, whose work on a batch all that train side by side take from each other.

        Raises:
            ValueError: if processes cannot share the batch.
        """
        share = self.workers.share(recipe.batch)
        parts = math.ceil((share.stop - share.start) / (self.micro or recipe.batch))
        return Shared(self.world.backbone, max(STATES, parts))

    def _tried(self, job: Job, about: dict[str, object]) -> bool:
        """Whether rates were tried for an estimator.

        Raises:
            ValueError: where others were, or in another way.
        """
        path = self.folder(job) / TRIALS
        if not path.is_file():
            return False
        wanted = json.loads(json.dumps(about))
        same("trials", wanted, json.loads(path.read_text())["about"], path)
        return True

    def _about(self, job: Job) -> dict[str, object]:
        """What an estimator is trained on."""
        arm = arm_of(job.arm)
        about: dict[str, object] = {
            "world": self.world.digest,
            "pictures": self.images.digest,
            "reward": job.reward,
            "arm": job.arm,
            "pick": job.chosen,
        }
        if not arm.after:
            return {**about, "images": self.count, "source": arm.source}
        before = weights(self.world, job.reward, model=str(self._before(job)))
        rollouts = min(self.count, ROLLOUTS)
        return {**about, "after": before, "rollouts": rollouts, "kernel": ROLLED}

    def rate(self, job: Job) -> float:
        """The best learning rate that was tried for an estimator, or the one it borrows from.

        Where none was tried at its pick, those of the cheap one are taken.

        Raises:
            ValueError: if none was tried.
        """
        return self.trials(job)[0].rate

    def trials(self, job: Job) -> list[Trial]:
        """Learning rates that were tried for an estimator, as `rate` looks for them; best first.

        Raises:
            ValueError: if none was tried.
        """
        owner = job._replace(arm=arm_of(job.arm).rates or job.arm)
        paths = [self.folder(at) / TRIALS for at in (owner, owner._replace(chosen="cheap"))]
        for path in paths:
            if path.is_file():
                tried = [Trial(**trial) for trial in json.loads(path.read_text())["trials"]]
                return sorted(tried, key=lambda trial: trial.held_loss)
        self.world.reward(owner.reward)  # of a reward nobody knows there is more to say
        pick = "" if owner.chosen == "cheap" else f" --pick {owner.chosen}"
        raise ValueError(
            f"expected trials of learning rates in {paths[0]}, got none: `stitchbench stitch tune "
            f"... --reward {owner.reward} --arm {owner.arm}{pick}` makes them, and --rate goes "
            f"without"
        )

    def spent(self, job: Job) -> Spent:
        """What an estimator took to make, as far as its files say."""
        arm = arm_of(job.arm)
        shelf = Shelf(self.world, self.images, self.root / PREPARED, self.workers)
        trials, search = self.folder(job) / TRIALS, self.root / job.reward / f"search-{arm.trunk}"
        known = json.loads((search / TABLE).read_text()) if (search / TABLE).is_file() else {}
        prepared = (
            shelf.spent_on_rollouts(job.reward, min(self.count, ROLLOUTS))
            if arm.after
            else shelf.spent(job.reward, self.count, arm.source)
        )
        return Spent(
            search=read(known.get("about", {}).get("spent") or {}),
            preparing=prepared,
            tuning=read(json.loads(trials.read_text())) if trials.is_file() else None,
            training=logged(self.folder(job) / LOG),
        )

    def train(
        self,
        jobs: Sequence[Job],
        recipe: Recipe,
        keep: Sequence[int] = (),
        rate: float | None = None,
    ) -> Iterator[Told]:
        """Train estimators side by side; killed at any moment, the same call goes on.

        Args:
            jobs: Which; those that are finished are passed over.
            recipe: How, but for the learning rate.
            keep: Steps after which the value model is kept as well.
            rate: Learning rate; the one that was tuned when None.

        Yields:
            The records that were not made before.

        Raises:
            ValueError: if a folder is of another recipe, or no rate is given and none was tuned.
        """
        rates = [rate or self.rate(job) for job in jobs]  # before the work of a search
        backbone = self._shared(recipe)
        students = [self.begin(job, backbone) for job in jobs]
        runs = []
        lessons = self.data(jobs, "train", self.count)
        for job, student, data, tuned in zip(jobs, students, lessons, rates, strict=True):
            own = replace(self.recipe(job, recipe), rate=tuned)
            about = self._about(job)
            run = finetune(
                student,
                data,
                own,
                self.folder(job),
                about,
                keep,
                workers=self.workers,
                micro=self.micro,
            )
            runs.append(run)
        while True:
            records = [next(run, None) for run in runs]
            if all(record is None for record in records):
                return
            for job, record in zip(jobs, records, strict=True):
                if record is not None:
                    yield Told(job, record)


def arm_of(name: str) -> Arm:
    """An arm by name.

    Raises:
        UnknownName: if there is none.
    """
    if name not in ARMS:
        raise UnknownName("arm", name, ARMS)
    return ARMS[name]
