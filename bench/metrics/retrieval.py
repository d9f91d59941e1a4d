"""Retrieval as one figure: Recall@1 of images and of texts, averaged as in the paper's Fig. 6."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


def both_ways(image_to_text: Tensor, text_to_image: Tensor) -> Array:
    """One number per item whose mean is the mean of both recalls.

    An item is an image or a text to be found; where they differ in number, each direction weighs
    half.  An interval over all items counts the difference between directions as scatter, and is
    a little too wide for it.

    Args:
        image_to_text: Whether the text found for each image is true of it, (B,).
        text_to_image: Likewise the image found for each text, (T,).

    Returns:
        Numbers (B + T,), the images' first.
    """
    ways = [x.double().cpu().numpy() for x in (image_to_text, text_to_image)]
    count = sum(map(len, ways))
    return np.concatenate([x * count / (2 * len(x)) for x in ways])
