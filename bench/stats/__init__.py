"""Intervals, paired comparisons and minimum detectable differences.

The unit is the cluster, here the prompt: samples that share one are not independent, so they are
averaged first (`cluster_means`) and every function below takes one number per cluster
(Miller, 2024, arXiv:2411.00640).  With mean m, sample deviation s and se = s / sqrt(n),

    n < 50         m -+ t_{n-1} se                                                   Student
    n >= 50        BCa bootstrap                               (Efron, 1987, JASA 82:171-185)
    two methods    the same on their differences, cluster by cluster

and a difference is clear when its interval excludes 0 and its p, Holm-adjusted within its table,
is small; two intervals side by side say nothing.  Of times the cluster is the process
(`processes`).

Missing numbers (NaN or None) are left out and the count says how many remain.  What the data
cannot give, such as the interval of a single number, is NaN; a wrong call raises ValueError.
"""

from bench.stats.comparisons import Paired, holm, minimum_detectable_difference, paired
from bench.stats.improvement import improvement_interval, unpaired_improvement_interval
from bench.stats.means import Interval, cluster_means, mean_interval
from bench.stats.processes import (
    process_log_ratios,
    process_ratio_interval,
    process_seconds_interval,
    rms_interval,
)
from bench.stats.quartiles import iqm_interval
from bench.stats.ranks import median_interval
from bench.stats.ratios import log_ratio_interval, ratio_interval
from bench.stats.shares import share_interval
from bench.stats.slopes import slope_interval
from bench.stats.vectors import Array, Numbers

__all__ = [
    "Array",
    "Interval",
    "Numbers",
    "Paired",
    "cluster_means",
    "holm",
    "improvement_interval",
    "iqm_interval",
    "log_ratio_interval",
    "mean_interval",
    "median_interval",
    "minimum_detectable_difference",
    "paired",
    "process_log_ratios",
    "process_ratio_interval",
    "process_seconds_interval",
    "ratio_interval",
    "rms_interval",
    "share_interval",
    "slope_interval",
    "unpaired_improvement_interval",
]
