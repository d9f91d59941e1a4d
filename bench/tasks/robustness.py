"""The robustness task: do embeddings of noisy latents still do the clean reward's job?

Held-out images are encoded once.  For each noise level: noise their latents; ask for embeddings,
timed; let the evaluation set judge them, item by item (arXiv:2605.19804, Table 5).

An estimator that sees the prompt would be told what it is tested on, and is declined.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from baselines import ESTIMATORS
from bench.cell import Spec
from bench.meter import KINDS, Calls, seconds
from bench.protocols import Robustness
from bench.references import REFERENCES, Ask, Tested, asking
from bench.resolve import resolve
from bench.tasks.latents import actual, digest
from bench.tasks.outcome import Outcome, Phases
from bench.tasks.value import batches
from bench.worlds import expect_meaning, reward_of
from bench.worlds import make as make_world
from stitchvm.evaluation import Evaluation
from stitchvm.path import noise
from stitchvm.reward import Reward
from stitchvm.streams import Streams
from stitchvm.value import EmbeddingEstimator, ValueEstimator
from stitchvm.world import World

NO_COST: dict[str, Any] = {"call_seconds": [], "call_rows": [], "calls": {}}  # of a reference


def run(spec: Spec, device: str = "cpu") -> Outcome:
    """Measure one cell.

    Raises:
        ValueError: if the world has no evaluation set for the reward, or the estimator declines.
    """
    protocol = cast(Robustness, spec.protocol)
    phases, calls = Phases(), Calls()
    with phases("build"):
        world = make_world(spec.world, device)
        reward = reward_of(spec.reward, world)
        evaluation = world.evaluation(reward, protocol.items)
        if evaluation is None:
            raise ValueError(
                f"expected a reward that world {world.name!r} can test, got {spec.reward.build!r}"
            )
        expect_meaning(world, "embeddings that are judged", "weights=hub, or a folder of copies")
        begin = begun(spec, world, reward, calls)
    with phases("latents"):
        tested = encoded(world, evaluation)
        eps = Streams.of(spec.seed, "evaluation", rows=len(tested.z_0)).normal(tested.z_0)
    with phases("build"):
        ask = begin(tested)
    outcome = Outcome()
    for sigma in protocol.sigmas:
        level = actual(sigma, protocol, world)
        t = eps.new_tensor(level)
        z_t = noise(tested.z_0, t, eps)
        with phases("measured"):
            e, cost = asked(ask, z_t, t, protocol, calls)
        with phases("marks"), torch.no_grad():
            marks = evaluation.marks(reward, e)
        outcome.rows.append(
            {"sigma_reference": sigma, "sigma": level, "z_digest": digest(z_t)}
            | {"length": float(e.norm(dim=1).mean())}
            | (NO_COST if spec.estimator.build in REFERENCES else cost)
            | {"marks": {name: x.float().tolist() for name, x in marks.items()}}
        )
    outcome.phases = phases.summary()
    return outcome


def begun(spec: Spec, world: World, reward: Reward, calls: Calls) -> Callable[[Tested], Ask]:
    """What will be asked, once it is known what is tested.

    Raises:
        ValueError: if the estimator cannot be built, or declines.
    """
    build, settings = spec.estimator.build, spec.estimator.settings
    if build in REFERENCES:
        return lambda tested: REFERENCES[build](world, reward, tested, **settings)
    for part in (world.backbone, world.tiny, reward):
        if part is not None:
            calls.watch(part)
    estimator = resolve(build, ESTIMATORS, "estimator")(world, reward, **settings)
    calls.watch(estimator)
    ask = asking(suitable(estimator))
    return lambda _: ask


def suitable(estimator: ValueEstimator) -> EmbeddingEstimator:
    """The estimator, if it can be asked for embeddings that know nothing but the latent.

    Raises:
        ValueError: saying why not.
    """
    name = type(estimator).__name__
    if not isinstance(estimator, EmbeddingEstimator):
        raise ValueError(
            f"expected an EmbeddingEstimator, whose embedding retrieves, compares and ranks; "
            f"{name} has a value only"
        )
    if estimator.target.posterior != "data":
        raise ValueError(
            f"expected an estimator under the data posterior, got {name} under the "
            f"{estimator.target.posterior} posterior: it sees the prompt, which is the answer"
        )
    return estimator


@torch.no_grad()
def encoded(world: World, evaluation: Evaluation) -> Tested:
    """An evaluation set with its images' latents."""
    z_0 = torch.cat([world.backbone.encode(x) for x in evaluation.images()])
    return Tested(evaluation.images, z_0)


@torch.no_grad()
def asked(
    ask: Ask, z_t: Tensor, t: Tensor, protocol: Robustness, calls: Calls
) -> tuple[Tensor, dict[str, Any]]:
    """Embeddings of noisy latents (B, D'), and what they cost.

    The first batch is asked once before, untimed.

    Raises:
        ValueError: if some embedding is not finite.
    """
    parts = batches(len(z_t), protocol.batch)
    spent: list[float] = []
    sizes: list[int] = []

    def one_pass() -> Tensor:
        found = []
        for rows in parts:
            taken, e = seconds(partial(ask, z_t[rows], t, rows), z_t.device)
            spent.append(taken)
            sizes.append(len(e))
            found.append(e)
        return torch.cat(found)

    ask(z_t[parts[0]], t, parts[0])
    with calls.during() as counted:
        e = one_pass()
    while len(spent) < protocol.calls:
        one_pass()
    if not bool(e.isfinite().all()):
        raise ValueError(
            f"expected finite embeddings, got {int((~e.isfinite()).sum())} that are not"
        )
    each = {kind: counted[kind] / len(z_t) for kind in KINDS}
    return e, {"call_seconds": spent, "call_rows": sizes, "calls": each}
