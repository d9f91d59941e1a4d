"""A metric: the share of values within a tolerance of the truth."""

from bench.metrics import Metric


def build(*, tolerance: float = 0.1):
    def within(samples):
        if samples.truth is None:
            return None
        near = abs(samples.value - samples.truth) <= tolerance
        return near.mean((0, 2, 3))

    return Metric(within, f"share of values within {tolerance:g} of the truth", "1", "high")
