"""Best-of-N: N independent samples of a prompt, of which the highest clean reward is kept.

The reference of every search at inference time: whatever costs as many samples must beat it.
With an ODE the samples differ in their noise alone, with an SDE on the way as well.
"""

import torch
from torch import Tensor

from stitchvm.backbone import Prompts
from stitchvm.sample import Sampler, sample
from stitchvm.streams import Streams
from stitchvm.value import ValueEstimator


@torch.no_grad()
def best_of_n(
    sampler: Sampler,
    terminal: ValueEstimator,
    z: Tensor,
    times: Tensor,
    c: Prompts,
    rng: Streams,
) -> Tensor:
    """The best of N samples of each prompt, (B, *latent).

    Args:
        sampler: The transition kernel.
        terminal: The clean reward, asked at the end of the grid.
        z: Starting latents, (N, B, *latent).
        times: Descending times, (steps + 1,).
        c: Prompts, B of them.
        rng: One stream per prompt; each sample has a child of it.

    Raises:
        ValueError: if there are no latents to begin from, or not of as many prompts.
    """
    if len(z) < 1 or z.shape[1] != len(c):
        raise ValueError(
            f"expected latents of N >= 1 samples of {len(c)} prompts, got {tuple(z.shape[:2])}"
        )
    prompts = list(c) * len(z)
    streams = rng.split(range(len(z)))
    z_0 = sample(sampler, z.flatten(0, 1), times, prompts, streams)
    reward = terminal(z_0, times[-1], prompts).unflatten(0, z.shape[:2])
    best = reward.argmax(0)
    return z_0.unflatten(0, z.shape[:2])[best, torch.arange(len(c), device=z.device)]
