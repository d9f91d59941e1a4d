"""The contract of value metrics: `build()`, from samples to one number a prompt."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

import numpy as np

from bench.contract.checking import expect
from bench.metrics import Metric
from bench.metrics.value import Array, Samples

SHAPE = (3, 4, 2, 5)  # R, P, G, M


@dataclass(frozen=True)
class Case:
    """A metric with samples to try it on, of known truth."""

    metric: Metric
    samples: Samples


def samples() -> Samples:
    """Values round a truth, with all that a metric may ask for."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=SHAPE[1:])
    return Samples(
        value=truth + 0.3 * rng.normal(size=SHAPE),
        truth=truth,
        realised=truth + rng.normal(size=SHAPE[1:]),
        cosine=rng.uniform(-1, 1, SHAPE[1:]),
        error=rng.uniform(0, 2, SHAPE[1:]),
    )


def case(build: Callable[..., Metric], *_: Any, **settings: Any) -> Case:  # noqa: ANN401
    """A metric with samples."""
    return Case(build(**settings), samples())


def declares(case: Case) -> None:
    """It is a Metric that says what it measures, its unit and which way is better."""
    metric = case.metric
    expect(isinstance(metric, Metric), "a bench.metrics.Metric", type(metric).__name__)
    expect(bool(metric.about) and "\n" not in metric.about, "`about`, a line", repr(metric.about))
    for name in ("unit", "better"):
        known = get_args(get_type_hints(Metric)[name])
        expect(getattr(metric, name) in known, f"`{name}` in {known}", repr(getattr(metric, name)))


def shape(case: Case) -> None:
    """It gives one finite number a prompt, (P,)."""
    found = case.metric(case.samples)
    expect(found is not None, f"numbers of shape ({SHAPE[1]},)", "None though nothing is missing")
    expect(bool(np.isfinite(_known(found)).all()), "finite numbers", found)


def repeatable(case: Case) -> None:
    """The same samples give the same numbers, and stay as they are."""
    first = case.metric(case.samples)
    again = case.metric(case.samples)
    expect(bool(np.array_equal(_known(first), _known(again))), f"{first} again", again)
    for field in fields(Samples):
        before, after = (getattr(of, field.name) for of in (samples(), case.samples))
        expect(bool(np.array_equal(before, after)), f"{field.name} as it was", "changes in it")


def by_prompt(case: Case) -> None:
    """Each prompt's number comes from that prompt alone."""
    together = _known(case.metric(case.samples))
    for p in range(SHAPE[1]):
        alone = _known(case.metric(_part(case.samples, slice(p, p + 1))))
        expect(bool(np.isclose(alone[0], together[p], rtol=1e-9, atol=1e-12)),
               f"{together[p]:g} of prompt {p} alone", f"{alone[0]:g}")  # fmt: skip


def missing(case: Case) -> None:
    """A missing number of one prompt changes no other prompt's."""
    value = case.samples.value.copy()
    value[:, 1, 0, 2] = np.nan
    whole, torn = (_known(case.metric(replace(case.samples, value=v)))
                   for v in (case.samples.value, value))  # fmt: skip
    others = [0, 2, 3]
    expect(bool(np.allclose(whole[others], torn[others], rtol=1e-9)),
           f"{whole[others]} of the others", torn[others])  # fmt: skip


def without(case: Case) -> None:
    """Where nothing is known but values, it is None or one number a prompt, and no error."""
    bare = Samples(case.samples.value)
    for given in (
        bare,
        replace(bare, value=bare.value[:1]),
        replace(bare, value=bare.value[..., :1]),
    ):
        case.metric(given)


def of_one(case: Case) -> None:
    """With one replicate, group or member, it is None or one number a prompt, and no error."""
    whole = case.samples
    case.metric(replace(whole, value=whole.value[:1]))
    single = {f.name: getattr(whole, f.name)[..., :1, :1] for f in fields(Samples)}
    case.metric(Samples(**single))


def _known(found: Array | None) -> Array:
    return np.full(SHAPE[1], np.nan) if found is None else np.asarray(found, dtype=float)


def _part(whole: Samples, prompts: slice) -> Samples:
    """Some prompts of samples."""
    rest = {f.name: getattr(whole, f.name)[prompts] for f in fields(Samples)[1:]}
    return Samples(whole.value[:, prompts], **rest)


CHECKS: tuple[Callable[[Case], None], ...] = (
    declares,
    shape,
    repeatable,
    by_prompt,
    missing,
    without,
    of_one,
)
