"""Rivals and reference points: value estimators behind stitchvm's one interface, one file each."""

from collections.abc import Callable

from baselines import (
    calibrated,
    constant,
    feature_head,
    linear_stitch,
    monte_carlo,
    noisy_student,
    stitched,
    terminal,
    truth,
    tweedie,
    untrained,
    vae_stitch,
)
from stitchvm.value import ValueEstimator

ESTIMATORS: dict[str, Callable[..., ValueEstimator]] = {
    "calibrated": calibrated.build,
    "constant": constant.build,
    "feature_head": feature_head.build,
    "linear_stitch": linear_stitch.build,
    "monte_carlo": monte_carlo.build,
    "noisy_student": noisy_student.build,
    "stitched": stitched.build,
    "terminal": terminal.build,
    "truth": truth.build,
    "tweedie": tweedie.build,
    "untrained": untrained.build,
    "vae_stitch": vae_stitch.build,
}
