"""A suite of cells that take no time, and what a store holds of them: for tests of runners."""

from collections import Counter

from bench import suite as suites
from bench.plan import plan
from bench.report.views import VIEWS

TINY = {"build": "gaussian", "latent": [2, 2, 1], "components": 3, "rank": 2, "prompts": 4}
DEFAULTS = {"world": TINY, "reward": "quadratic", "prompts": 3, "members": 2, "calls": 1} | {
    "sigmas": [0.25, 0.75],
    "replicates": 2,
    "batch": 4,
    "gradient": False,
}


def planned(**changes):
    """The cells of two estimators, or of `estimator`; other changes are to the defaults."""
    defaults = DEFAULTS | changes
    axes = {"estimator": defaults.pop("estimator", ["constant", "tweedie"])}
    return plan(suites.Suite(name="tiny", about="-", minutes=0.1, defaults=defaults, axes=axes))


def sweep(count, **changes):
    """Cells of different seeds."""
    out = []
    for seed in range(count // 2):
        [one, two] = planned(**changes)
        for cell in (one, two):
            spec = cell.spec.model_copy(update={"seed": seed})
            shown = cell.coordinates | {"variant": f"seed {seed}"}
            out.append(cell.model_copy(update={"spec": spec, "coordinates": shown}))
    return out


def attempts(store, cells):
    """Per cell how many of its attempts are ok."""
    ok = Counter(r["id"] for r in store.records() if r["status"] == "ok")
    return [ok[cell.id] for cell in cells]


def table_of(store):
    """What a table shows, times apart."""
    frame = VIEWS["value"].tidy(list(store.latest().values()))
    shown = ["estimator", "variant", "sigma", "bias", "rmse", "rmse_lo", "rmse_hi", "skill"]
    return frame[shown].sort_values(shown[:3]).reset_index(drop=True)
