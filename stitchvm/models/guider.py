"""StitchVMGuidance: `Guided(CFG(u, w), value, strength)` as a guider of diffusers' modular SD 3.

    u = u(z_t | 0) + w (u(z_t | c) - u(z_t | 0)) - lambda c_t grad V(z_t | c)        (Eqs. 4, 39)

The pipeline asks its guider to combine the velocities of one step; this one also takes the value's
gradient off, at the latents and the time of that step, so the pipeline's latents are those of
`Ode(Guided(CFG(...)))`.  Other modular pipelines have no such component (FLUX), or prepare its
inputs in another way.  A value that shares the pipeline's transformer sees whatever adapters are
loaded into it; the value model of a fine-tuned generator keeps a transformer of its own.

    pipe = StableDiffusion3ModularPipeline(pretrained_model_name_or_path=folder)
    pipe.load_components()
    pipe.update_components(guider=StitchVMGuidance(value, c, 0.5, guidance_scale=4.0))
    images = pipe(prompt=c, negative_prompt=[""] * len(c), output="images")
"""

from typing import Any, Self

from diffusers import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from stitchvm.align.guide import Guided, Normalise, Profile, constant, plain
from stitchvm.backbone import Prompts
from stitchvm.value import ValueEstimator

TIMESTEPS = 1000  # num_train_timesteps of the pipelines' schedulers: a timestep is 1000 t
SCALE = 7.0  # guidance_scale of StableDiffusion3Pipeline


class StitchVMGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance and the gradient of a value, whichever estimator's it is.

    `disable()` switches both off.

    Args:
        value: Says where better images are; differentiable.
        c: The prompts as strings, one for each latent: with `num_images_per_prompt`, each prompt
            as many times, one after the other.
        strength: lambda >= 0, over the reward's unit unless gradients are normalised.
        guidance_scale: w; 1 is no classifier-free guidance.
        profile: c_t.  Pipelines begin at t = 1, where `exact` is infinite; `clipped` is not.
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
        guidance_scale: float = SCALE,
        profile: Profile = constant,
        normalise: Normalise = plain,
    ) -> None:
        super().__init__(guidance_scale=guidance_scale)
        self.guided = Guided(
            lambda *_: self._u, value, strength, profile=profile, normalise=normalise
        )
        self.c = c
        self.register_to_config(strength=strength)
        self._z_t: Tensor | None = None
        self._u: Tensor

    def new(self, **changes: Any) -> Self:
        """Another of the same settings but for these, which are arguments of the class."""
        own = self.guided
        settings = {
            "value": own.value,
            "c": self.c,
            "strength": own.strength,
            "guidance_scale": self.guidance_scale,
            "profile": own.profile,
            "normalise": own.normalise,
        }
        return type(self)(**(settings | changes))

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """The inputs of one step's branches, of which the latents are kept for the value.

        Raises:
            ValueError: if classifier-free guidance is asked for without a negative prompt: the
                pipeline would take the prompt's velocity twice and say nothing.
        """
        latents = data["hidden_states"]
        if isinstance(latents, Tensor) and self.num_conditions > 1:
            raise ValueError(
                f"expected a negative prompt for guidance_scale {self.guidance_scale:g}, got "
                f"none: pass negative_prompt, [''] * {len(latents)} for the null prompt"
            )
        self._z_t = latents if isinstance(latents, Tensor) else latents[0]
        return super().prepare_inputs(data)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided velocity `pred`, (B, *latent), beside both branches'.

        Raises:
            ValueError: if there is not one prompt for each latent, or the pipeline does not
                prepare inputs as the one of SD 3 does.
        """
        out = super().forward(pred_cond, pred_uncond)
        if not self._enabled:
            return out
        z_t, self._z_t = self._z_t, None
        if z_t is None:
            raise ValueError("expected latents prepared by the modular SD 3 pipeline, got none")
        expect_one_each(self.c, z_t)
        self._u = out.pred
        out.pred = self.guided(z_t, self._timestep / TIMESTEPS, self.c)
        return out


def expect_one_each(c: Prompts, z_t: Tensor) -> None:
    """Refuse prompts that are not one for each latent of a pipeline.

    Raises:
        ValueError: saying what num_images_per_prompt asks for.
    """
    if isinstance(c, str) or len(c) != len(z_t):
        got = "one string" if isinstance(c, str) else f"{len(c)}"
        raise ValueError(
            f"expected {len(z_t)} prompts, one for each latent of the pipeline, got {got}: with "
            f"num_images_per_prompt, give each prompt as many times, one after the other"
        )
