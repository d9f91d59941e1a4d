"""The align task: generate on prompts with one method, and judge what came of it.

    unsteered   the method's own sampler without it, on tune and on judged prompts
    tune        trials of strengths on tune prompts
    eval        the strength that was chosen, on prompts that nothing was chosen on
    error       the estimator against the truth, at latents on the way of unsteered samples
    cost        one guided step beside an unsteered one and, if asked, one of classic DPS, in turns
    walk        the kinds of steps that a sample of particles is made of, in turns

The chosen strength has the highest target reward among those that show the prompt at most `slack`
less often than unsteered samples do.  Trials go on beyond the ends while the best is at an end,
and between its neighbours else, until as many were made as every method gets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from bench.algorithms import Guide, Unsteered
from bench.cell import Spec
from bench.judging import finite
from bench.metrics.value import Samples, spearman
from bench.protocols import AlignProtocol
from bench.tasks.outcome import Outcome, Phases
from bench.tasks.samples import Place, Row
from bench.tasks.value import batches
from bench.tuning import chosen, mean_of, next_strength
from bench.worlds import expect_meaning
from stitchvm.sample import Diverged
from stitchvm.value import Target, ValueEstimator, value_and_gradient


def run(spec: Spec, device: str = "cpu") -> Outcome:
    """Measure one cell.

    Raises:
        ValueError: for what does not fit, before anything is generated.
        Diverged: if the judged samples do not stay finite.
    """
    protocol, phases = cast(AlignProtocol, spec.protocol), Phases()
    with phases("build"):
        place = Place.of(spec, protocol, device)
        if protocol.samples or protocol.errors:
            expect_meaning(place.world, "samples that are judged", "costs alone have samples: 0")
    outcome = Outcome()
    if protocol.samples:
        with phases("generated"):
            outcome.rows += judged(place, outcome)
    if protocol.errors:
        with phases("held against the truth"):
            outcome.rows += list(errors(place))
    if protocol.rounds and isinstance(place.algorithm, Guide):
        with phases("timed"):
            outcome.rows += list(place.steps(place.algorithm).rows())
    elif protocol.rounds and place.walks.kinds:
        with phases("timed"):
            outcome.rows.append(place.walks.row())
    outcome.phases = phases.summary()
    return outcome


def judged(place: Place, outcome: Outcome) -> list[Row]:
    """Unsteered samples, trials, and the samples that count."""
    p, rows = place.protocol, []
    plain = replace(place, algorithm=Unsteered())
    tries = place.algorithm.tuned and p.trials > 0
    if tries:
        tune = (place.world.tuning, p.tune_samples, "tune")
        rows.append(plain.made(*tune, None) | {"phase": "unsteered tune"})
        _measure_by(place, rows[0])
    base = plain.made(place.world.prompts, p.samples, "eval", None, outcome, "unsteered_")
    rows.append(base | {"phase": "unsteered"})
    if place.algorithm.tuned and not tries:
        _measure_by(place, base)
    strength = p.strength if place.algorithm.tuned else None
    if tries:
        trials = list(tuned(place, mean_of(rows[0], "correct")))
        rows += trials
        strength = chosen(trials)["strength"]
    if not isinstance(place.algorithm, Unsteered):
        found = place.made(place.world.prompts, p.samples, "eval", strength, outcome)
        rows.append(found | {"phase": "eval"})
    return rows


def _measure_by(place: Place, row: Row) -> None:
    """Take the spread of unsteered samples as the unit, where it is."""
    if place.protocol.unit == "spread":
        place.setting = replace(place.setting, spread=_spread(row))


def tuned(place: Place, shown: float) -> Iterator[Row]:
    """Trials of strengths, each where the last ones say.

    Args:
        place: Where samples are made.
        shown: Share of tune prompts that unsteered samples show; NaN where nobody can tell.
    """
    trials: list[Row] = []
    for _ in range(place.protocol.trials):
        strength = next_strength(trials, place.protocol)
        try:
            made = place.made(place.world.tuning, place.protocol.tune_samples, "tune", strength)
        except Diverged as error:
            made = {"diverged": str(error), "strength": strength, "metrics": {}}
        share = mean_of(made, "correct")
        made["feasible"] = made["diverged"] is None and not (share < shown - place.protocol.slack)
        trials.append(made | {"phase": "tune"})
        yield trials[-1]


def errors(place: Place) -> Iterator[Row]:
    """Rank correlation and gradient against the truth, per prompt, at each noise level.

    Raises:
        ValueError: if the world knows no truth.
    """
    truth = place.world.truth(place.reward, Target("mean", "prompt"))
    if truth is None:
        raise ValueError(f"expected a world whose truth is known, got {place.world.name!r}")
    keys = [(c, k) for c in place.world.prompts for k in range(place.protocol.samples)]
    plain = replace(place, algorithm=Unsteered())
    times = place.setting.times
    for sigma in place.protocol.errors:
        stop = times[: int((times >= sigma - 1e-9).sum())]
        parts = []
        for rows in batches(len(keys), place.protocol.batch):
            to_here = replace(place.setting, times=stop)
            made = replace(plain, setting=to_here).steered(keys[rows], None, "eval")
            parts.append(_against(place, truth, made.z_0, stop[-1], keys[rows]))
        found = {
            name: torch.cat([part[name] for part in parts]).unflatten(
                0, (-1, place.protocol.samples)
            )
            for name in parts[0]
        }
        yield {
            "phase": "error",
            "sigma": float(stop[-1]),
            "metrics": {
                "rank": finite(ranked(found["value"], found["true"])),
                "cosine": finite(found["cosine"].mean(1)),
                "squared": finite((found["value"] - found["true"]).square().mean(1)),
            },
        }


def _against(
    place: Place, truth: ValueEstimator, z_t: Tensor, t: Tensor, keys: Sequence[tuple[str, int]]
) -> dict[str, Tensor]:
    """The estimator beside the truth at some latents, each (B,)."""
    c = [c for c, _ in keys]
    ours = value_and_gradient(place.setting.estimator, z_t, t, c)
    true = value_and_gradient(truth, z_t, t, c)
    cosine = torch.cosine_similarity(ours.gradient.flatten(1), true.gradient.flatten(1))
    found = {"value": ours.value, "true": true.value, "cosine": cosine}
    return {name: x.double().cpu() for name, x in found.items()}


def ranked(value: Tensor, true: Tensor) -> Tensor:
    """Rank correlation with the truth among the samples of each prompt, (P,), of (P, S)."""
    x, y = value.numpy()[None, :, None], true.numpy()[:, None]
    return torch.tensor(spearman(Samples(x, y, y, None, None)), dtype=torch.float64)


def _spread(row: Row) -> float:
    """The unit of strengths.

    Raises:
        ValueError: if one sample a prompt leaves it unknown, or rewards do not vary.
    """
    if not row["within"]:
        raise ValueError(
            "expected at least 2 samples a prompt whose rewards differ, for the reward's spread "
            f"is the unit of strengths; got a spread of {row['within']}"
        )
    return float(row["within"])
