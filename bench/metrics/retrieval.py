"""Retrieval: whether a score finds the caption of a picture, and the picture of a caption."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def recall_at_1(scores: Array, true: npt.NDArray[np.bool_]) -> Array:
    """Recall@1 of both directions: the mean over rows is the mean of the two recalls.

    Args:
        scores: Of picture k under caption l, (n, n); caption k was told of picture k.
        true: Whether caption l is true of picture k, (n, n).

    Returns:
        For each k half a point if the best caption of picture k is true of it, and half a point if
        caption k is true of its best picture, (n,).

    Raises:
        ValueError: if the shapes differ or are not square.
    """
    n = len(scores)
    if scores.shape != (n, n) or true.shape != (n, n):
        raise ValueError(
            f"expected scores and truth of one shape (n, n), got {scores.shape} and {true.shape}"
        )
    rows = np.arange(n)
    to_text, to_picture = true[rows, scores.argmax(1)], true[scores.argmax(0), rows]
    return (to_text + to_picture.astype(np.float64)) / 2
