"""What a cell asks for while it runs, one call of each kind: to be counted on the meta device.

align    a guided step, an unsteered one, one of classic DPS; or a whole steered sample of one
prompt, all particles, beside an unsteered one
value    a value, and a value with its gradient, of one latent
train    an iteration at the ends of the window of stops, and one of the published method, of
as many samples as one batch holds
cost     what the task times, of whole batches: a value, and a value with its gradient, beside
Tweedie's; an optimiser step beside its values alone; of a search the passes of its images, for
what it fits is of numbers
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

import baselines
from bench.algorithms import Algorithm, Guide, Unsteered
from bench.cell import PATHS, Spec
from bench.images import WorldImages
from bench.meter import Calls
from bench.part import Part
from bench.predicted import unfused
from bench.protocols import AlignProtocol, CostProtocol, Protocol, TrainProtocol
from bench.resolve import resolve
from bench.stitching import Workshop
from bench.tasks import cost
from bench.tasks.samples import Place
from bench.tasks.steps import CLASSIC, SMALL
from bench.tasks.train import School
from bench.worlds import full, reward_of
from bench.worlds import make as make_world
from stitchvm.align.training import Recipe
from stitchvm.backbone import Backbone
from stitchvm.memo import SharedTrunk
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import Sum, ValueEstimator, value_and_gradient
from stitchvm.world import World

GUIDED, UNSTEERED, SAMPLE = "guided", "unsteered", "sample"
VALUE, GRADIENT, ITERATION, PUBLISHED = "value", "gradient", "iteration", "published"
META, SIGMA = "meta", 0.5
NOTHING_READ = {"weights": "random"} | dict.fromkeys(PATHS)
NOWHERE = Path("nowhere")  # of checkpoints, which nobody writes


@dataclass(frozen=True)
class Asked:
    """Calls to be counted.

    Attributes:
        calls: By name.
        standing: Weights and inputs, which are there before.
        backbone: Whom an estimator asks for its trunk.
        watch: The counter that tells stages apart.
        rows: Samples that a call makes.
        again: Whether a first call computes what later ones remember.
        beside: Of a call that is held against another, the name of that.
        shared: Those that do not depend on the estimator.
    """

    calls: dict[str, Callable[[], Any]]
    standing: Callable[[], list[Tensor]]
    backbone: Backbone
    watch: Calls
    rows: int = 1
    again: bool = True
    beside: dict[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()


def asked(spec: Spec) -> Asked:
    """What a cell asks for.

    Raises:
        ValueError: for a task of which nothing is predicted.
    """
    if spec.task not in TASKS:
        raise ValueError(f"expected a task in {', '.join(TASKS)}, got {spec.task!r}")
    return TASKS[spec.task](spec.model_copy(update={"world": shapes_of(spec.world)}))


def shapes_of(world: Part) -> Part:
    """A world without what it reads: of full size, random weights of the same shapes."""
    if world.build not in full.BUILDS:
        return world
    return world.model_copy(update={"settings": world.settings | NOTHING_READ})


def aligned(spec: Spec) -> Asked:
    """A step where the algorithm guides, else a sample."""
    place = Place.of(spec, cast(AlignProtocol, spec.protocol), META)
    if isinstance(place.algorithm, Guide):
        steps = place.steps(place.algorithm)
        calls = steps.of_batch(1)
    else:
        steps = place.steps(Guide())
        calls = {
            SAMPLE: partial(_sample, place, place.algorithm),
            UNSTEERED: partial(_sample, place, Unsteered()),
        }
    return Asked(
        {name: _anew(place, call) for name, call in calls.items()},
        lambda: steps.weights,
        place.world.backbone,
        place.calls,
        again=_encodes(place.world),
        shared=frozenset(calls) & {UNSTEERED, CLASSIC},
    )


def _anew(place: Place, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that goes on from nothing: here the latents of all calls look alike."""
    backbone = place.world.backbone

    def alone() -> Any:  # noqa: ANN401
        if isinstance(backbone, SharedTrunk):
            backbone.forget()
        return call()

    return alone


@torch.no_grad()
def _sample(place: Place, algorithm: Algorithm) -> None:
    """One sample of one prompt, and of the particles the one that is kept."""
    setting, c = place.setting, [place.world.prompts[0]]
    rng, n = Streams.of(place.seed, "predicted", rows=1), algorithm.particles
    z = rng.split(range(n)).normal(place.world.backbone.empty_latents(n))
    algorithm.run(setting, SMALL, z.unflatten(0, (n, 1)), c, rng)


def valued(spec: Spec) -> Asked:
    """A value, and with its gradient where there is one."""
    protocol, world = cast(Protocol, spec.protocol), make_world(spec.world, META)
    reward = reward_of(spec.reward, world)
    watch = _watched(world, reward)
    build = resolve(spec.estimator.build, baselines.ESTIMATORS, "estimator")
    estimator: ValueEstimator = build(world, reward, **spec.estimator.settings)
    watch.watch(estimator)
    z = world.backbone.empty_latents(1).zero_()
    given = (z, torch.tensor(SIGMA).to(META), [world.prompts[0]], Streams.of(0, rows=1))
    calls: dict[str, Callable[[], Any]] = {VALUE: torch.no_grad()(partial(estimator, *given))}
    if protocol.gradient and estimator.differentiable:
        calls[GRADIENT] = partial(value_and_gradient, estimator, *given)
    return Asked(
        calls, lambda: [z, *_weights(world.backbone, reward, estimator)], world.backbone, watch
    )


def costed(spec: Spec) -> Asked:
    """What the task times, each call and what it is held against.

    Raises:
        ValueError: for an estimator that only a search or training makes.
    """
    build, settings = spec.estimator.build, spec.estimator.settings
    if build not in {cost.SEARCH, *cost.COMPARED}:
        raise ValueError(
            f"expected {', '.join((cost.SEARCH, *cost.COMPARED))}, got {build!r}, which only a "
            f"search or training makes"
        )
    world = make_world(spec.world, META)
    reward = world.reward(spec.reward.build)
    watch = _watched(world, reward)
    protocol = cast(CostProtocol, spec.protocol).model_copy(update={"images": 1})  # as any number
    optimisers: list[torch.optim.Optimizer] = []
    with TemporaryDirectory() as folder:
        shop = Workshop(world, Path(folder), WorldImages(world), protocol.images)
        place = cost.Place(shop, spec.reward.build, protocol, spec.seed)
        if build == cost.SEARCH:
            _, passes = cost.searched_and_passed(place, **settings)
            return Asked(passes, lambda: _weights(world.backbone, reward), world.backbone, watch)
        found = list(cost.COMPARED[build](place, **settings))
    calls, beside, shared = {}, {}, set[str]()
    for comparison in found:
        what = f"{comparison.what}, batch {comparison.batch}"
        against = f"{what}, {comparison.against}"
        for name, one in zip((what, against), comparison.pair.values(), strict=True):
            calls[name] = _plainly(one.call, optimisers)
        beside[what] = against
        shared |= {against} if comparison.against == cost.TWEEDIE else set()
    held = [x for comparison in found for one in comparison.pair.values() for x in one.standing]
    return Asked(
        calls,
        lambda: [*held, *_weights(world.backbone, reward), *_states(optimisers)],
        world.backbone,
        watch,
        beside=beside,
        shared=frozenset(shared),
    )


def _plainly(call: Callable[[], Any], optimisers: list[torch.optim.Optimizer]) -> Any:  # noqa: ANN401
    """A call that notes its optimisers, made without kernels that are not there on meta."""

    def called() -> None:
        with unfused() as made:
            call()
        optimisers.extend(made)

    return called


def _states(optimisers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """What optimisers keep of each weight."""
    kept = (of for one in optimisers for of in one.state.values())
    return [x for of in kept for x in of.values() if isinstance(x, Tensor)]


def trained(spec: Spec) -> Asked:
    """An iteration of one prompt, of as many samples as one batch holds."""
    protocol = cast(TrainProtocol, spec.protocol)
    school, watch = School.of(spec, META, NOWHERE), Calls()
    recipe = school.recipe(protocol.rates[0], "predicted")
    rows = min(protocol.batch, protocol.prompts * protocol.group)
    recipe = replace(recipe, prompts=1, group=rows, batch=rows)
    clean = Sum([baselines.ESTIMATORS["terminal"](school.world, r) for r in school.rewards])
    stop = school.trainer.stop
    ends = {ITERATION: None} if stop is None else {f"{ITERATION}, stop {k}": (k, k) for k in stop}
    iterations = {
        name: _iteration(school, replace(school.trainer, stop=of), school.value, recipe)
        for name, of in ends.items()
    }
    iterations[PUBLISHED] = _iteration(school, school.trainer.published, clean, recipe)
    held = {name: pupil.policy.everything() for name, (pupil, _) in iterations.items()}
    for part in (*(pupil.policy.network for pupil, _ in iterations.values()), school.value, clean):
        watch.watch(part)
    rest = _weights(school.world.backbone, *school.rewards, school.value)
    return Asked(
        {name: call for name, (_, call) in iterations.items()},
        lambda: [*chain(*held.values()), *rest],
        school.world.backbone,
        watch,
        rows,
        again=_encodes(school.world),
    )


def _iteration(school: School, trainer: Any, value: ValueEstimator, recipe: Recipe) -> Any:
    pupil = school.pupil(value)

    def iteration() -> None:
        with unfused():
            next(trainer.run(pupil, recipe))

    return pupil, iteration


def _watched(world: World, reward: Reward) -> Calls:
    """A counter that tells apart what a world and a reward are asked for, copies included."""
    watch = Calls()
    for part in (world.backbone, world.tiny, reward):
        if part is not None:
            watch.watch(part)
    return watch


def _encodes(world: Any) -> bool:
    """Whether a prompt is encoded when it is first asked about."""
    from bench.worlds.full.world import FullWorld  # noqa: PLC0415 - slow, and there by then

    return not isinstance(world, FullWorld)


def _weights(*parts: torch.nn.Module) -> list[Tensor]:
    return [tensor for part in parts for tensor in part.state_dict().values()]


TASKS: dict[str, Callable[[Spec], Asked]] = {
    "align": aligned,
    "value": valued,
    "train": trained,
    "cost": costed,
}
