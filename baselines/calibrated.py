"""Calibrated: another estimator, with an affine correction per noise level from held-out images.

See `stitchvm.calibrate`; the images are ones that nothing is trained or tested on.
"""

from collections.abc import Callable
from typing import Literal

import torch

from baselines import feature_head, noisy_student, stitched, tweedie, vae_stitch
from baselines.trained import weights as trained_weights
from stitchvm.calibrate import Calibrated, exchanged, fit_lines
from stitchvm.reward import Reward
from stitchvm.value import ValueEstimator
from stitchvm.world import World

IMAGES = 512
Of = Literal["stitched", "vae_stitch", "noisy_student", "feature_head", "tweedie"]
TRAINED: dict[str, Callable[..., ValueEstimator]] = {
    "stitched": stitched.build,
    "vae_stitch": vae_stitch.build,
    "noisy_student": noisy_student.build,
    "feature_head": feature_head.build,
}


@torch.no_grad()
def build(
    world: World,
    reward: Reward,
    *,
    of: Of = "stitched",
    model: str = "stitched",
    posterior: Literal["data", "prompt"] = "data",
    images: int = IMAGES,
) -> Calibrated:
    """A calibrated estimator in a world.

    For the `data` posterior each latent is shown with the prompt of another image.

    Args:
        world: Where.
        reward: Of what.
        of: Which estimator.
        model: Of a trained one: a name or a folder, as its own `build` takes it.
        posterior: Of Tweedie; a trained one has its own.
        images: Held-out images.

    Raises:
        FileNotFoundError: if there is no such model.
    """
    if of == "tweedie":
        inner: ValueEstimator = tweedie.build(world, reward, posterior=posterior)
    else:
        inner = TRAINED[of](world, reward, model=model)
    shown = list(world.images("held", images))
    z_0 = torch.cat([world.backbone.encode(part.x_0) for part in shown])
    c = [text for part in shown for text in part.c]
    if inner.target.posterior == "data":
        c = exchanged(c)
    return Calibrated(inner, fit_lines(inner, world.backbone, reward, z_0, c))


def weights(world: World, reward: str, *, of: str, model: str, **_: object) -> str:
    """Those of the estimator inside."""
    return "" if of == "tweedie" else trained_weights(world, reward, model=model)
