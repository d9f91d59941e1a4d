"""Prompts of the Gaussian world: each reweights the components and has a direction of its own."""

import math

import torch
from torch import Tensor, nn

from stitchvm.backbone import NULL, Prompts


class PromptBook(nn.Module):
    """What the prompts "scene 0" .. "scene P-1" mean.

    The null prompt means their even mixture, which is the data distribution.

    Args:
        log_weights: Log component weights of every prompt, (P, K).
    """

    log_weights: Tensor

    def __init__(self, log_weights: Tensor) -> None:
        super().__init__()
        null = log_weights.logsumexp(0, keepdim=True) - math.log(len(log_weights))
        self.register_buffer("log_weights", torch.cat([log_weights, null]))
        self.texts = tuple(f"scene {p}" for p in range(len(log_weights)))
        self._index = {text: p for p, text in enumerate((*self.texts, NULL))}

    def index(self, c: Prompts) -> Tensor:
        """Row numbers of prompts, (B,).

        Raises:
            ValueError: for a prompt this world does not know.
        """
        unknown = sorted(set(c) - set(self._index))
        if unknown:
            raise ValueError(
                f"expected prompts 'scene 0' .. {self.texts[-1]!r} or '', got {unknown[0]!r}"
            )
        return torch.tensor([self._index[text] for text in c], device=self.log_weights.device)

    def own(self, c: Prompts) -> Tensor:
        """Row numbers of prompts that are not null, (B,).

        Raises:
            ValueError: for the null prompt, or one this world does not know.
        """
        if NULL in c:
            raise ValueError("expected a prompt to reward under, got the null prompt")
        return self.index(c)

    def weights(self, c: Prompts) -> Tensor:
        """Log component weights of prompts, (B, K)."""
        return self.log_weights[self.index(c)]
