"""Evaluation sets: held-out images, and whether their embeddings still do a reward's job.

    Retrieval      finds the text of an image and the image of a text    as MSCOCO, Flickr30K
    Preferences    tells which of two images people prefer               as HPDv2, ImageReward
    Ratings        ranks images as people rate them                      as AVA

An item is what is judged by itself: an image or a text to be found, a pair, a rated image.

Source: arXiv:2605.19804, section 5, Table 5.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchvm.backbone import NULL, Prompts
from stitchvm.reward import Reward

Images = Callable[[], Iterator[Tensor]]  # batches (b, 3, H, W) in [-1, 1], the same every time


@dataclass(frozen=True)
class Evaluation(ABC):
    """Held-out images with what a reward should find out about them.

    Attributes:
        images: B images in all.
    """

    images: Images

    @abstractmethod
    def marks(self, reward: Reward, e: Tensor) -> dict[str, Tensor]:
        """What each item says of embeddings (B, D'), by the name of the figure it belongs to."""


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """Images and texts; a text may be true of several images, and an image of several texts.

    Attributes:
        texts: T distinct ones.
        true: Which text is true of which image, (B, T).

    Raises:
        ValueError: if some image or text has nothing that could be found for it.
    """

    texts: Sequence[str]
    true: Tensor

    def __post_init__(self) -> None:
        for name, dim in (("image", 1), ("text", 0)):
            if not bool(self.true.any(dim).all()):
                raise ValueError(f"expected a true partner of every {name}, got one without")

    def marks(self, reward: Reward, e: Tensor) -> dict[str, Tensor]:
        """Recall@1 both ways: whether the one of highest score is true, (B,) and (T,)."""
        scores, true = reward.scores(e, self.texts), self.true.to(e.device)
        return {
            "image_to_text": true.gather(1, scores.argmax(1, keepdim=True))[:, 0],
            "text_to_image": true.gather(0, scores.argmax(0, keepdim=True))[0],
        }


@dataclass(frozen=True)
class Preferences(Evaluation):
    """Pairs of images of which people preferred one for a prompt.

    Attributes:
        c: P prompts.
        pairs: Rows of the preferred image and of the other, (P, 2).
    """

    c: Prompts
    pairs: Tensor

    def marks(self, reward: Reward, e: Tensor) -> dict[str, Tensor]:
        """1 where the preferred image scores higher, 0 where lower, 1/2 for a tie; (P,)."""
        preferred, other = (reward.score(e[rows], self.c) for rows in self.pairs.T)
        return {"preference": ((preferred - other).sign() + 1) / 2}


@dataclass(frozen=True)
class Ratings(Evaluation):
    """Images that people rated, whatever the prompt.

    Attributes:
        rated: Mean ratings, (B,).
    """

    rated: Tensor

    def marks(self, reward: Reward, e: Tensor) -> dict[str, Tensor]:
        """Score and rating of every image, (B, 2)."""
        score = reward.score(e, [NULL] * len(e))
        return {"srcc": torch.stack([score, self.rated.to(score)], 1)}
