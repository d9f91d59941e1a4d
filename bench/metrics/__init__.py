"""Metrics by name: what each one measures, its unit, and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.metrics import value
from bench.part import Part
from bench.resolve import resolve

OWN = "metric "  # before the names of users' metrics


@dataclass(frozen=True)
class Metric:
    """A metric and how to read it.

    Attributes:
        function: From the samples of a row to one number per prompt, (P,), or None where the
            samples lack what it needs.
        about: One line for a table's caption or a tooltip.
        unit: "reward", "reward^2", or "1" for a pure number.
        better: The end to aim for: "zero" from either side, "low" or "high".
    """

    function: Callable[[value.Samples], value.Array | None]
    about: str
    unit: Literal["reward", "reward^2", "1"]
    better: Literal["zero", "low", "high"]

    def __call__(self, samples: value.Samples) -> value.Array | None:
        """One number per prompt, (P,).

        Raises:
            ValueError: if the function returns anything else.
        """
        found = self.function(samples)
        prompts = samples.value.shape[1]
        if found is not None and np.shape(found) != (prompts,):
            raise ValueError(
                f"expected numbers of shape ({prompts},), one a prompt, from a metric, "
                f"got {np.shape(found)}"
            )
        return found


METRICS: dict[str, Metric] = {
    "bias": Metric(value.bias, "estimate minus true value", "reward", "zero"),
    "squared_bias": Metric(
        value.squared_bias, "squared bias per latent, estimated without bias", "reward^2", "zero"
    ),
    "variance": Metric(
        value.variance, "variance over the estimator's own randomness", "reward^2", "low"
    ),
    "mse": Metric(value.mse, "squared error against the true value", "reward^2", "low"),
    "centred_mse": Metric(
        value.centred_mse, "squared error after removing the prompt's offset", "reward^2", "low"
    ),
    "spearman": Metric(
        value.spearman, "rank correlation with the truth within a group", "1", "high"
    ),
    "pairwise": Metric(value.pairwise, "share of a group's pairs put in true order", "1", "high"),
    "regret": Metric(
        value.regret, "true value lost by keeping the best-looking of a group", "reward", "low"
    ),
    "gradient_cosine": Metric(
        value.gradient_cosine, "cosine of the gradient and the true gradient", "1", "high"
    ),
    "gradient_error": Metric(
        value.gradient_error, "relative error of the gradient against the true one", "1", "low"
    ),
    "bias_realised": Metric(
        value.bias_realised, "estimate minus realised clean reward", "reward", "zero"
    ),
    "mse_realised": Metric(
        value.mse_realised, "squared error against the realised clean reward", "reward^2", "low"
    ),
}


def metrics_of(parts: Sequence[Part]) -> dict[str, Metric]:
    """Users' metrics by the names that records call them.

    Raises:
        ValueError: for a build that returns anything but a Metric.
    """
    found = {}
    for part in parts:
        made = resolve(part.build, {}, "metric")(**part.settings)
        if not isinstance(made, Metric):
            raise ValueError(f"expected {part.name!r} to build a Metric, got {made!r:.80}")
        found[f"{OWN}{part.name}"] = made
    return found
