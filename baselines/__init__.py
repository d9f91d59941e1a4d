"""Rivals and reference points: value estimators behind stitchvm's one interface, one file each."""

from collections.abc import Callable

from baselines import constant, linear_stitch, monte_carlo, terminal, truth, tweedie
from stitchvm.value import ValueEstimator

ESTIMATORS: dict[str, Callable[..., ValueEstimator]] = {
    "constant": constant.build,
    "linear_stitch": linear_stitch.build,
    "monte_carlo": monte_carlo.build,
    "terminal": terminal.build,
    "truth": truth.build,
    "tweedie": tweedie.build,
}
