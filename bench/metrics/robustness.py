"""Figures of `robustness`, from what each item of an evaluation set says.

Of a retrieval and of preferences an item is right or wrong (a tie half): the figure is the share
of right ones.  Of ratings it is a score and a rating: the figure is their rank correlation.  All
estimators are asked about the same items, so differences and ratios are paired by item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.spearman import srcc, srcc_paired, srcc_ratio
from bench.stats import Array, Interval, Paired, paired, ratio_interval, share_interval


@dataclass(frozen=True)
class Figure:
    """A figure and how to read it; higher is better.

    Attributes:
        about: One line for a table's caption.
        percent: Whether it is shown in per cent.
        estimate: The figure of items with its interval.
        ratio: The same over another's on the same items.
        paired: The same minus another's on the same items.
    """

    about: str
    percent: bool
    estimate: Callable[[Array], Interval]
    ratio: Callable[[Array, Array], Interval]
    paired: Callable[[Array, Array], Paired]


def _share(about: str) -> Figure:
    return Figure(about, True, share_interval, ratio_interval, partial(paired, method="t"))  # noqa: FBT003


FIGURES: dict[str, Figure] = {
    "image_to_text": _share("Recall@1, image to text"),
    "text_to_image": _share("Recall@1, text to image"),
    "preference": _share("pairwise preference accuracy"),
    "srcc": Figure("SRCC with ratings", False, srcc, srcc_ratio, srcc_paired),  # noqa: FBT003
}
