"""The `model` value at a few latents: what the generator itself makes of them, many times over.

For each noise level some latents, each finished by N rollouts of a named sampler; mean rewards
come with standard errors.  Where nobody knows p(z_0 | z_t), this is what can be checked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from baselines.monte_carlo import build as monte_carlo
from bench.worlds.shapes.banks import narrated
from stitchvm.backbone import Prompts
from stitchvm.path import noise
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, ValueEstimator
from stitchvm.world import World

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
LATENTS, ROLLOUTS = 8, 256  # per noise level, per latent
KERNEL: Final = "flow_grpo"
STEPS, GUIDANCE = 8, 2.0


@dataclass(frozen=True)
class Reference:
    """Mean rewards of rollouts.

    Attributes:
        kernel: Sampler, steps and guidance, as a Target names them.
        z_t: Noisy latents, (B, *latent).
        t: Their times, (B,).
        c: Their prompts.
        mean: By reward, (B,).
        error: Standard errors of the means, by reward, (B,).
    """

    kernel: str
    z_t: Tensor
    t: Tensor
    c: list[str]
    mean: dict[str, Tensor]
    error: dict[str, Tensor]


@torch.no_grad()
def make(world: World, rewards: tuple[str, ...], path: Path, seed: int = 0) -> None:
    """Roll out and write the file."""
    c = list(world.prompts[:LATENTS]) * len(SIGMAS)
    t = torch.tensor(SIGMAS).repeat_interleave(LATENTS)
    rng = Streams.of(derive(seed, "reference"), rows=len(c))
    z_0 = world.draw(c, rng.child("z_0"))
    z_t = noise(z_0, t.to(z_0), rng.child("eps").normal(z_0))
    estimator = monte_carlo(
        world, world.reward(rewards[0]), kernel=KERNEL, steps=STEPS, guidance=GUIDANCE
    )
    kept: dict[str, list[Tensor]] = {name: [] for name in rewards}
    for n in narrated(range(ROLLOUTS), "reference rollouts"):
        ended = estimator.finish(z_t, t.to(z_t), c, rng.child("rollout", n))
        x = world.backbone.decode(ended)
        for name in rewards:
            kept[name].append(world.reward(name)(x, c).cpu())
    tensors = {"z_t": z_t.cpu(), "t": t}
    for name, values in kept.items():
        r = torch.stack(values).double()
        tensors[f"mean.{name}"] = r.mean(0)
        tensors[f"error.{name}"] = r.std(0) / ROLLOUTS**0.5
    about = {"kernel": str(estimator.target.kernel), "prompts": json.dumps(c)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=about)


def load(path: Path) -> Reference:
    """The reference in a file."""
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    named: dict[str, dict[str, Tensor]] = {"mean": {}, "error": {}}
    for key, value in tensors.items():
        kind, _, reward = key.partition(".")
        if reward:
            named[kind][reward] = value
    return Reference(
        about["kernel"], tensors["z_t"], tensors["t"], json.loads(about["prompts"]), **named
    )


class ReferenceTruth(ValueEstimator):
    """The reference's means, at its own latents only.

    Args:
        reference: What was rolled out.
        reward: Name of the reward.
    """

    differentiable = False

    def __init__(self, reference: Reference, reward: str) -> None:
        super().__init__()
        self.latent = tuple(reference.z_t.shape[1:])
        self.target = Target("mean", "model", kernel=reference.kernel)
        self.reference, self.mean = reference, reference.mean[reward]

    def forward(self, z_t: Tensor, t: Tensor, c: Prompts, rng: Streams | None = None) -> Tensor:
        """The value, (B,).

        Raises:
            ValueError: for latents, times or prompts that are not the reference's.
        """
        known = self.reference
        rows = []
        for z, time, prompt in zip(z_t.cpu(), t.cpu().expand(len(z_t)), c, strict=True):
            same = (known.z_t == z).flatten(1).all(1) & (known.t == time.float())
            found = [int(row) for row in same.nonzero() if known.c[int(row)] == prompt]
            if not found:
                raise ValueError(
                    f"expected one of the {len(known.c)} latents of the reference, "
                    f"got another at t = {float(time):g} for {prompt!r}"
                )
            rows.append(found[0])
        return self.mean[rows].to(z_t)
