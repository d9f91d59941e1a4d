"""Kick: a value's gradient as `callback_on_step_end` of an unmodified SD 3 or FLUX.1 pipeline.

    z    = z_t - (t - s) u(z_t, t)                     the pipeline's own Euler step from t to s
    z_s  = z + (t - s) lambda c_s grad V(z, s | c)     the kick, where the step has ended

`Guided` takes the gradient at (z_t, t), together with the velocity: one Euler step of Eq. 4.  A
callback comes after the step, when the latents are at the *next* noise level, so this splits the
step in two.  It is another discretisation of the same ODE: the two differ by O(t - s) and have
one limit, and at few steps they are not the same method.  No kick is given at s = 0, where no step
would follow to mend what it does to the image.

    kick = Kick(value, c, 0.5)
    images = pipe(c, callback_on_step_end=kick).images
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor

from stitchvm.align.guide import Guided, Normalise, Profile, constant, plain
from stitchvm.backbone import Prompts
from stitchvm.models.flux import PACK, pack, unpack
from stitchvm.models.guider import expect_one_each
from stitchvm.value import ValueEstimator


class Layout(NamedTuple):
    """How a pipeline's latents become (B, *latent), and back."""

    read: Callable[[Tensor, tuple[int, ...]], Tensor]
    write: Callable[[Tensor], Tensor]


def _packed(latents: Tensor, latent: tuple[int, ...]) -> Tensor:
    """Latents of FLUX.1, which come as tokens; they do not tell 8 x 12 from 12 x 8.

    Raises:
        ValueError: if they are not of the value's size.
    """
    channels, rows, columns = latent
    grid = rows // PACK, columns // PACK
    return unpack(_of_shape(latents, (grid[0] * grid[1], channels * PACK**2)), grid)


def _of_shape(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(latents.shape[1:]) != shape:
        raise ValueError(
            f"expected the pipeline's latents of shape (B, {', '.join(map(str, shape))}), as the "
            f"value takes them, got {tuple(latents.shape)}: see its height and width"
        )
    return latents


LAYOUTS = {
    StableDiffusion3Pipeline: Layout(_of_shape, lambda z: z),
    FluxPipeline: Layout(_packed, pack),
}


class Kick:
    """Moves the latents up a value after every step but the last.

    Args:
        value: Says where better images are; differentiable.
        c: The prompts as strings, one for each latent: with `num_images_per_prompt`, each prompt
            as many times, one after the other.
        strength: lambda >= 0, over the reward's unit unless gradients are normalised.
        profile: c_s, at the times where steps end.
        normalise: Of the gradient, each sample by itself.

    Raises:
        ValueError: as `Guided`.
    """

    def __init__(
        self,
        value: ValueEstimator,
        c: Prompts,
        strength: float,
        *,
        profile: Profile = constant,
        normalise: Normalise = plain,
    ) -> None:
        self.ascent = Guided(
            lambda z, *_: torch.zeros_like(z),
            value,
            strength,
            profile=profile,
            normalise=normalise,
        )
        self.c = c

    def __call__(
        self, pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The latents after the kick, as the pipeline names them.

        Args:
            pipe: The pipeline.
            step: Its number; not needed, the scheduler knows where it is.
            timestep: At the beginning of the step, 1000 t; the latents are no longer there.
            tensors: What the pipeline shows, `latents` among it.

        Raises:
            ValueError: for another pipeline or scheduler, latents of another shape than the
                value's, or if there is not one prompt for each.
        """
        del step, timestep
        layout = _layout(type(pipe))
        if "latents" not in tensors:
            raise ValueError(
                f"expected latents in callback_on_step_end_tensor_inputs, got {sorted(tensors)}"
            )
        t, s = _ends(pipe.scheduler)
        if s == 0:
            return {}
        z = layout.read(tensors["latents"], tuple(self.ascent.value.latent))
        expect_one_each(self.c, z)
        return {"latents": layout.write(z - (t - s) * self.ascent(z, s.to(z.device), self.c))}


def _layout(kind: type) -> Layout:
    """How a pipeline lays its latents out."""
    if kind not in LAYOUTS:
        known = ", ".join(pipeline.__name__ for pipeline in LAYOUTS)
        raise ValueError(f"expected a pipeline among {known}, got {kind.__name__}")
    return LAYOUTS[kind]


def _ends(scheduler: Any) -> tuple[Tensor, Tensor]:
    """The times t and s between which a scheduler has just stepped, ()."""
    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"expected a FlowMatchEulerDiscreteScheduler, whose steps end at a noise level that "
            f"it names, got {type(scheduler).__name__}"
        )
    s = scheduler.step_index  # it has moved on
    return scheduler.sigmas[s - 1], scheduler.sigmas[s]
