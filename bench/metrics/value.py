"""Metrics of value estimators.

A metric is a pure function from the samples of one row of a table to one number per prompt, (P,).
Every interval, paired difference and comparison in `bench.stats` then works for every metric.

For prompt p, group g and member m, an estimator whose own randomness is replicated R times gives
V_1 ... V_R with mean Vbar and variance s^2 (denominator R - 1), where the true value is V:

    bias            Vbar - V
    squared bias    (Vbar - V)^2 - s^2 / R                    unbiased for (E V_r - V)^2
    variance        s^2
    MSE             mean_r (V_r - V)^2 = squared bias + variance

each averaged over the prompt's latents.  The last line is an identity, not only an expectation.
One replicate says nothing about s^2: R = 1 is for deterministic estimators, for which s^2 = 0.

Over forward-noised data the clean reward r(z_0) that was realised may stand for the true value:
the bias against it has the same expectation, the MSE is larger by Var(r(z_0) | z_t), the same for
every estimator.  A metric whose reference is missing is None; a missing (NaN) number makes the
prompts that hold it NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import scipy  # loads scipy.stats, a slow import, at its first use and not here

from bench.stats import Interval, iqm_interval, mean_interval, ratio_interval

Array = npt.NDArray[np.float64]

AXES = "RPGM"  # replicates, prompts, groups, members


@dataclass(frozen=True, eq=False)
class Samples:
    """What one estimator said at one noise level, and what is known about the truth there.

    R replicates, P prompts, G groups a prompt, M members a group: the members are what an
    algorithm would choose among.

    Attributes:
        value: The estimator's values, (R, P, G, M); R = 1 for deterministic estimators only.
        truth: The true values, (P, G, M).
        realised: Rewards r(z_0) of the clean latents that were noised, (P, G, M).
        cosine: Cosine between the estimator's gradient and the true one, (P, G, M).
        error: Relative error |g - g*| / |g*| of its gradient g, (P, G, M).

    Raises:
        ValueError: if a shape is not as above, or a count is 0.
    """

    value: Array
    truth: Array | None = None
    realised: Array | None = None
    cosine: Array | None = None
    error: Array | None = None

    def __post_init__(self) -> None:
        """Convert to float64 arrays and check their shapes."""
        for field in fields(self):
            numbers = getattr(self, field.name)
            if numbers is not None:
                object.__setattr__(self, field.name, np.asarray(numbers, dtype=np.float64))
                self._check_shape(field.name)

    def _check_shape(self, name: str) -> None:
        shape, got = self.value.shape, getattr(self, name).shape
        if len(shape) != len(AXES) or 0 in shape:
            raise ValueError(f"expected value of shape ({', '.join(AXES)}), got {got}")
        if name != "value" and got != shape[1:]:
            raise ValueError(f"expected {name} of shape {shape[1:]}, got {got}")


def bias(samples: Samples) -> Array | None:
    """Mean of V_r minus the truth, (P,)."""
    return _mean_error(samples.value, samples.truth)


def bias_realised(samples: Samples) -> Array | None:
    """Mean of V_r minus the realised reward, (P,): as `bias` in expectation, with more noise."""
    return _mean_error(samples.value, samples.realised)


def squared_bias(samples: Samples) -> Array | None:
    """Squared bias of each latent, (Vbar - V)^2 - s^2 / R, averaged, (P,).

    Unbiased, so it may come out slightly negative.  Unlike the square of `bias`, errors of
    opposite sign at different latents don't cancel.  With R = 1 the estimator is taken to be
    deterministic, s^2 = 0.
    """
    if samples.truth is None:
        return None
    mean = samples.value.mean(axis=0)
    return _per_prompt((mean - samples.truth) ** 2 - _spread(samples.value) / len(samples.value))


def variance(samples: Samples) -> Array:
    """Variance s^2 over replicates, (P,); zero with R = 1, which is for deterministic ones."""
    return _per_prompt(_spread(samples.value))


def mse(samples: Samples) -> Array | None:
    """Mean squared error against the truth, (P,)."""
    return _mean_squared_error(samples.value, samples.truth)


def mse_realised(samples: Samples) -> Array | None:
    """Mean squared error against the realised reward, (P,).

    Only its differences between estimators on the same latents estimate differences of `mse`.
    """
    return _mean_squared_error(samples.value, samples.realised)


def centred_mse(samples: Samples) -> Array | None:
    """Variance of the error over the prompt's latents, (P,): an offset changes no choice.

    Per replicate, with denominator G M - 1, averaged over replicates; None for a single latent.
    """
    replicates, prompts = samples.value.shape[:2]
    if samples.truth is None or samples.truth[0].size <= 1:
        return None
    error = (samples.value - samples.truth).reshape(replicates, prompts, -1)
    return error.var(axis=-1, ddof=1).mean(axis=0)


def spearman(samples: Samples) -> Array | None:
    """Rank correlation within a group, averaged over replicates and groups, (P,).

    Against the truth or, without one, the realised reward.  Ties share their average rank.
    Groups where the estimator or the reference is constant have none and are left out; NaN where
    no group is left.  None for groups of one.
    """
    reference = samples.realised if samples.truth is None else samples.truth
    if reference is None or reference.shape[-1] <= 1:
        return None
    x, y = _centred_ranks(samples.value), _centred_ranks(reference)
    spread = (x**2).sum(axis=-1) * (y**2).sum(axis=-1)  # (R, P, G)
    ordered = spread != 0  # true of NaN: what is missing stays visible
    with np.errstate(invalid="ignore"):
        correlation = (x * y).sum(axis=-1) / np.sqrt(spread)
        return correlation.sum(axis=(0, 2), where=ordered) / ordered.sum(axis=(0, 2))


def pairwise(samples: Samples) -> Array | None:
    """Share of the pairs within groups that the estimator orders as the truth does, (P,).

    A tie in the estimator counts 1/2; pairs tied in the truth are left out, and a prompt with no
    other pair is NaN.  None for groups of one.
    """
    if samples.truth is None or samples.truth.shape[-1] <= 1:
        return None
    order = _pair_order(samples.truth)  # (P, G, pairs)
    differ = order != 0
    with np.errstate(invalid="ignore"):
        shares = [
            ((1 + _pair_order(value) * order) / 2).sum(axis=(1, 2), where=differ)
            / differ.sum(axis=(1, 2))
            for value in samples.value  # one at a time: M (M - 1) / 2 pairs are many
        ]
    return np.mean(shares, axis=0)


def regret(samples: Samples) -> Array | None:
    """True value lost by keeping the member of highest V_r, averaged over groups, (P,).

    max truth - truth of the member kept; the mean over those tied for it.  None for groups of one.
    """
    if samples.truth is None or samples.truth.shape[-1] <= 1:
        return None
    value = samples.value
    kept = value == value.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # nothing is kept where a value is missing
        truth_kept = (samples.truth * kept).sum(axis=-1) / kept.sum(axis=-1)
    return (samples.truth.max(axis=-1) - truth_kept).mean(axis=(0, 2))


def gradient_cosine(samples: Samples) -> Array | None:
    """Mean cosine between the estimator's gradient and the true one, (P,)."""
    return None if samples.cosine is None else _per_prompt(samples.cosine)


def gradient_error(samples: Samples) -> Array | None:
    """Mean relative error of the estimator's gradient, (P,)."""
    return None if samples.error is None else _per_prompt(samples.error)


def skill(mse: Array, mse_constant: Array) -> Interval:
    """1 - MSE / MSE(constant): 1 is the truth, 0 no better than the prompt's prior mean.

    Args:
        mse: The estimator's MSE, (P,).
        mse_constant: The MSE of the prior mean on the same prompts, (P,).
    """
    ratio = ratio_interval(mse, mse_constant)
    return Interval(1 - ratio.mean, 1 - ratio.hi, 1 - ratio.lo, ratio.n)


def rmse(mse: Array) -> Interval:
    """Root of the mean MSE over prompts, in units of reward; a lower end below 0 becomes 0.

    Args:
        mse: The estimator's MSE, (P,).

    Raises:
        ValueError: if some MSE is negative.
    """
    return _root(mse, mean_interval)


def middle_rmse(mse: Array) -> Interval:
    """Root of the mean MSE over the middle half of prompts: below `rmse` where a few are far off.

    Args:
        mse: The estimator's MSE, (P,).

    Raises:
        ValueError: if some MSE is negative.
    """
    return _root(mse, iqm_interval)


def _root(mse: Array, average: Callable[[Array], Interval]) -> Interval:
    if (np.asarray(mse) < 0).any():
        raise ValueError(f"expected mean squared errors of at least 0, got {np.nanmin(mse)}")
    mean = average(mse)
    root, lo, hi = np.sqrt(np.maximum(mean[:3], 0)).tolist()
    return Interval(root, lo, hi, mean.n)


def _mean_error(value: Array, reference: Array | None) -> Array | None:
    return None if reference is None else _per_prompt(value.mean(axis=0) - reference)


def _mean_squared_error(value: Array, reference: Array | None) -> Array | None:
    return None if reference is None else _per_prompt(((value - reference) ** 2).mean(axis=0))


def _spread(value: Array) -> Array:
    """Variance over replicates, (P, G, M); of one replicate 0, but NaN where it is missing."""
    return value.var(axis=0, ddof=1) if len(value) > 1 else 0 * value[0]


def _per_prompt(x: Array) -> Array:
    return x.mean(axis=(1, 2))


def _centred_ranks(x: Array) -> Array:
    """Average ranks along the last axis, minus their mean; NaN throughout a group that has one."""
    ranks = scipy.stats.rankdata(x, axis=-1)
    return ranks - (x.shape[-1] + 1) / 2


def _pair_order(x: Array) -> Array:
    """-1, 0 or 1 for every pair of members, (..., M (M - 1) / 2)."""
    first, second = np.triu_indices(x.shape[-1], k=1)
    return np.sign(x[..., first] - x[..., second])
