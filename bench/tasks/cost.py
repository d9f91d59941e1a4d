"""The cost task: what a search, an optimiser step and a value cost, each beside a yardstick.

    search      stage 1 over all pairs      against   the same images once through both models
    step        one optimiser step          against   a step of StitchVM at its cheap pick
    value       one call of the estimator   against   Tweedie, null prompt, full decoder
    gradient    value and gradient in z_t   against   the same of Tweedie
    training    an optimiser step at (i, j) against   its values alone, of as many latents

Both are timed in turns in one process.  Estimators are untrained: weights do not change a cost.
The last needs no search: where weights are random, its picks mean nothing.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

import baselines
from bench.arms import ARMS, TRUNKS, Trunk
from bench.cell import Spec
from bench.images import WorldImages
from bench.interleaved import UNITS, clock_of, interleaved
from bench.meter import peak_bytes
from bench.protocols import CostProtocol
from bench.resolve import resolve
from bench.stitching import Job, Workshop
from bench.tasks.outcome import Outcome, Phases
from bench.worlds import make as make_world
from stitchvm.backbone import Backbone
from stitchvm.distill import Recipe, distill
from stitchvm.flops import count_flops
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.search import ENTRIES, search
from stitchvm.stitch import Stitched
from stitchvm.streams import Streams
from stitchvm.value import ValueEstimator, value_and_gradient
from stitchvm.world import Split, World

Row = dict[str, Any]
Call = Callable[[], object]
Picked = Annotated[str, Field(pattern=r"^(cheap|paper|\d+,\d+)$")]
SEARCH = "search"  # what is measured where no estimator is
YARDSTICK = "stitched"  # the arm that steps are compared with
TWEEDIE = "Tweedie, null prompt"  # and what values are
UNTIMED = 3  # calls of a step beside the timed ones: warm-up, FLOPs, memory


def run(spec: Spec, device: str = "cpu") -> Outcome:
    """Time what one cell names.

    Raises:
        ValueError: for a reward that is not the world's.
    """
    protocol, phases = CostProtocol.model_validate(spec.protocol), Phases()
    with TemporaryDirectory() as folder:
        with phases("build"):
            world = make_world(spec.world, device)
            shop = Workshop(world, Path(folder), WorldImages(world), protocol.images)
            place = Place(shop, spec.reward.build, protocol, spec.seed)
            measure = resolve(spec.estimator.build, MEASURED, "estimator")
        with phases("measured"):
            rows = list(measure(place, **spec.estimator.settings))
    return Outcome(rows=rows, phases=phases.summary())


class Asked(NamedTuple):
    """A call to be timed, and tensors that were there before."""

    call: Call
    standing: list[Tensor]


class Comparison(NamedTuple):
    """Two calls to be timed in turns.

    Attributes:
        what: Is timed.
        batch: Images or latents a call.
        pair: The call, and what it is held against, by name.
    """

    what: str
    batch: int
    pair: dict[str, Asked]

    @property
    def against(self) -> str:
        """The name of what it is held against."""
        return list(self.pair)[-1]


@dataclass(frozen=True)
class Place:
    """Where costs are measured.

    Attributes:
        shop: Makes estimators.
        reward: Name of the reward.
        protocol: How.
        seed: Of the latents.
    """

    shop: Workshop
    reward: str
    protocol: CostProtocol
    seed: int

    @property
    def device(self) -> torch.device:
        """Where the world computes."""
        return self.shop.world.backbone.empty_latents(0).device

    def begin(self, job: Job) -> Any:
        """An arm, untrained: a student, and a value estimator."""
        return self.shop.begin(job)

    def compared(self, comparison: Comparison) -> Row:
        """A row: two calls in turns, then the FLOPs and peak memory of each."""
        what, batch, pair = comparison
        calls = {name: asked.call for name, asked in pair.items()}
        spent = interleaved(calls, self.protocol.rounds, clock_of(self.device))
        flops = [count_flops(asked.call, self.device) for asked in pair.values()]
        peaks = [
            peak_bytes(asked.call, self.device, iter(asked.standing)) for asked in pair.values()
        ]
        return self.row(what, batch, spent, flops, peaks)

    def row(
        self,
        what: str,
        batch: int,
        spent: dict[str, list[float]],
        flops: list[int] | list[None],
        peaks: list[dict[str, int | None]] | list[None],
    ) -> Row:
        """What a record keeps of two calls that were timed in turns."""
        (seconds, (against, others)) = next(iter(spent.values())), list(spent.items())[-1]
        return {
            "what": what,
            "batch": batch,
            "against": against,
            "unit": UNITS[self.device.type],
            "seconds": seconds,
            "against_seconds": others,
            "flops": flops[0],
            "against_flops": flops[-1],
            "peak": peaks[0],
            "against_peak": peaks[-1],
        }


def search_cost(place: Place, *, trunk: Trunk = "backbone") -> Iterator[Row]:
    """Stage 1 against what it cannot do without: its images once through both models."""
    protocol = place.protocol
    searched, passes = searched_and_passed(place, trunk)
    calls: dict[str, Call] = {SEARCH: searched, **passes}
    spent = interleaved(calls, protocol.searches, clock_of(place.device))
    for against in list(calls)[1:]:
        two = {name: spent[name] for name in (SEARCH, against)}
        yield place.row(SEARCH, protocol.probes, two, [None], [None])


def searched_and_passed(place: Place, trunk: Trunk) -> tuple[Call, dict[str, Call]]:
    """Stage 1, and passes of its images by what they are called."""
    world, count = place.shop.world, place.protocol.probes
    models = TRUNKS[trunk](world.backbone), world.reward(place.reward)
    probe, held = (clean(world, split, count) for split in ("train", "held"))
    return partial(search, *models, probe, held), {
        "pass over probe and held-out images": partial(feature_pass, *models, [*probe, *held]),
        "pass over probe images": partial(feature_pass, *models, probe),
    }


@torch.no_grad()
def feature_pass(backbone: Backbone, reward: Reward, images: Iterable[Tensor]) -> None:
    """Images once through all blocks of the backbone, and of the reward as far as searched."""
    for x_0 in images:
        z_0 = backbone.encode(x_0)
        t = torch.rand(len(z_0), generator=torch.Generator().manual_seed(0)).to(z_0)
        eps = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0)).to(z_0)
        state = backbone.trunk(noise(z_0, t, eps), t, 1)
        for i in range(2, backbone.depth + 1):
            state = backbone.advance(state, i)
        h = reward.head(x_0, 1)
        for j in range(1, min(ENTRIES, reward.depth)):
            h = reward.advance(h, j, j + 1)


def clean(world: World, split: Split, count: int) -> list[Tensor]:
    """Images x_0 in batches."""
    return [shown.x_0 for shown in world.images(split, count)]


def arm_cost(place: Place, job: Job) -> Iterator[Row]:
    """What an arm costs to ask and to train."""
    for batch in place.protocol.batches:
        yield from value_costs(place, job, batch)
    yield step_cost(place, job)


def step_cost(place: Place, job: Job) -> Row:
    """An optimiser step, each arm with students, data and optimiser of its own."""
    batch, rounds = place.protocol.batch, place.protocol.rounds
    yardstick = Job(place.reward, YARDSTICK)
    (data, others) = place.shop.data([job, yardstick], "train", place.shop.count)
    students = [place.begin(which) for which in (job, yardstick)]
    runs = [
        distill(student, prepared, place.shop.recipe(which, Recipe(rounds + UNTIMED, batch)))
        for student, prepared, which in zip(
            students, (data, others), (job, yardstick), strict=True
        )
    ]
    names = ("step", f"step of {YARDSTICK}, cheap pick")
    pair = {}
    for name, student, run in zip(names, students, runs, strict=True):
        step = partial(next, run)
        pair[name] = Asked(step, list(student.state_dict().values()))
    return place.compared(Comparison("step", batch, pair))


def training(place: Place, *, i: int = 4, j: int = 1) -> Iterator[Comparison]:
    """An optimiser step of a StitchVM of blocks i and j, whose layer is drawn at random."""
    world, protocol = place.shop.world, place.protocol
    student = baselines.ESTIMATORS["untrained"](world, world.reward(place.reward), i=i, j=j)
    job = Job(place.reward, YARDSTICK)
    (data,) = place.shop.data([job], "train", place.shop.count)
    recipe = Recipe(protocol.rounds + UNTIMED, protocol.batch)
    run = distill(cast(Stitched, student), data, place.shop.recipe(job, recipe))
    given = latents(world, protocol.batch, protocol.sigma, place.seed)
    weights = list(student.state_dict().values())
    pair = {
        "training": Asked(partial(next, run), weights),
        "values alone": Asked(partial(value, student, *given), [*given[:2], *weights]),
    }
    yield Comparison("training", protocol.batch, pair)


def value_costs(place: Place, job: Job, batch: int) -> Iterator[Row]:
    """What a batch of values of an arm costs, as `values`."""
    return map(place.compared, values(place, place.begin(job), batch))


def values(place: Place, model: ValueEstimator, batch: int) -> Iterator[Comparison]:
    """A value, and where asked a value with its gradient, of a batch of latents."""
    world = place.shop.world
    model.requires_grad_(requires_grad=False)
    tweedie = baselines.ESTIMATORS["tweedie"](world, world.reward(place.reward), posterior="data")
    rng = Streams.of(place.seed, "estimator", rows=batch)
    given = (*latents(world, batch, place.protocol.sigma, place.seed), rng)
    asks: dict[str, Callable[..., object]] = {"value": value}
    if place.protocol.gradients and model.differentiable:
        asks["gradient"] = value_and_gradient
    for what, ask in asks.items():
        pair = {
            name: Asked(
                partial(ask, estimator, *given),
                [*given[:2], *estimator.state_dict().values()],
            )
            for name, estimator in ((what, model), (TWEEDIE, tweedie))
        }
        yield Comparison(what, batch, pair)


@torch.no_grad()
def value(
    estimator: ValueEstimator, z_t: Tensor, t: Tensor, c: list[str], rng: Streams | None = None
) -> Tensor:
    """The value alone, (B,)."""
    return estimator(z_t, t, c, rng)


@torch.no_grad()
def latents(world: World, count: int, sigma: float, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Noisy latents of held-out images at one noise level, and prompts."""
    z_0 = world.backbone.encode(torch.cat(clean(world, "held", count)))
    t = z_0.new_tensor(sigma)
    eps = Streams.of(seed, "cost", rows=count).normal(z_0)
    c = [world.prompts[k % len(world.prompts)] for k in range(count)]
    return noise(z_0, t, eps), t, c


def _of_arm(name: str) -> Callable[..., Iterator[Row]]:
    """What measures an arm; its setting is the pair that it stitches: cheap, paper or "i,j"."""

    def build(place: Place, *, pick: Picked = "cheap") -> Iterator[Row]:
        return arm_cost(place, Job(place.reward, name, pick))

    return build


def _of_estimator(name: str) -> Callable[..., Iterator[Comparison]]:
    """What compares an estimator that needs no training; its settings are the estimator's."""
    build = baselines.ESTIMATORS[name]

    def compare(place: Place, **settings: Any) -> Iterator[Comparison]:
        world = place.shop.world
        model = build(world, world.reward(place.reward), **settings)
        for batch in place.protocol.batches:
            yield from values(place, model, batch)

    compare.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
    return compare


def _timed(compare: Callable[..., Iterator[Comparison]]) -> Callable[..., Iterator[Row]]:
    """What measures all that is compared, under the same settings."""

    @wraps(compare)
    def measure(place: Place, **settings: Any) -> Iterator[Row]:
        return map(place.compared, compare(place, **settings))

    return measure


UNTRAINED = ("untrained", "tweedie", "monte_carlo", "terminal")  # estimators, as they are
COMPARED: dict[str, Callable[..., Iterator[Comparison]]] = {  # nothing is searched or trained
    "training": training,
    **{name: _of_estimator(name) for name in UNTRAINED},
}
MEASURED: dict[str, Callable[..., Iterator[Row]]] = {
    SEARCH: search_cost,
    **{name: _timed(compare) for name, compare in COMPARED.items()},
    **{name: _of_arm(name) for name, arm in ARMS.items() if not arm.after},
}
