"""A value inside diffusers' own pipelines: the modular one's guider, the others' callback."""

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3ModularPipeline,
    StableDiffusion3Pipeline,
)
from test_models_generators import BACKBONES, PROMPTS, build, latents

from baselines import ESTIMATORS
from bench.worlds import WORLDS
from stitchvm.align.guide import CFG, NORMALISE, Guided, clipped, constant, exact
from stitchvm.models.flux import pack, unpack
from stitchvm.models.guider import StitchVMGuidance
from stitchvm.models.step_end import Kick
from stitchvm.sample import Ode, sample
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator, value_and_gradient

STEPS, SHIFT, SCALE = 5, 3.0, 2.0
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Bend(ValueEstimator):
    """A curved value of the time and the prompt's length, whose rows differ."""

    def __init__(self, latent):
        super().__init__()
        self.latent, self.target = latent, Target()
        rng = torch.Generator().manual_seed(3)
        self.w = torch.randn(latent, generator=rng, dtype=torch.float64)
        self.asked = []

    def forward(self, z_t, t, c, rng=None):
        self.asked.append(float(t))
        size = torch.tensor([1.0 + len(text) / 10 for text in c], dtype=z_t.dtype)
        return (1 + t) * size * (self.w * z_t.sin()).flatten(1).sum(1)


class Tweedie(ValueEstimator):
    """A value through the denoiser: what a callback cannot see of the pipeline."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.latent, self.target = backbone, backbone.latent, Target()

    def forward(self, z_t, t, c, rng=None):
        z_0 = z_t - t.to(z_t.dtype) * self.backbone.velocity(z_t, t, c)
        return -z_0.square().flatten(1).sum(1)


VALUES = {
    "curved": lambda backbone: Bend(backbone.latent),
    "tweedie": Tweedie,
}


def modular(backbone, guider):
    """The modular pipeline of a backbone's parts."""
    parts = backbone.texts.pipeline.components
    pipe = StableDiffusion3ModularPipeline()
    own = {k: v for k, v in parts.items() if k in pipe.components and v is not None}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipe.update_components(**(own | {"scheduler": scheduler, "guider": guider}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def through(pipe, backbone, z_1, c=PROMPTS, negative=("", ""), steps=STEPS):
    """The modular pipeline's latents at the end."""
    return pipe(
        prompt=list(c),
        negative_prompt=None if negative is None else list(negative),
        max_sequence_length=backbone.texts.length,
        latents=z_1,
        num_inference_steps=steps,
        height=2 * backbone.latent[1],
        width=2 * backbone.latent[2],
        output="latents",
    )


def grid(steps=STEPS):
    """The times of the scheduler of `modular`, (steps + 1,)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.double()


@torch.no_grad()
def looped(velocity, z_1, times, c=PROMPTS):
    return sample(Ode(velocity), z_1, times, c)


# The guider


@pytest.mark.parametrize("name", ["sd3", "sd35_medium"])
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    ("scale", "profile", "normalise"),
    [(SCALE, constant, "none"), (SCALE, clipped, "rms"), (1.0, constant, "value")],
)
def test_the_guided_pipeline_is_the_guided_loop(name, kind, scale, profile, normalise):
    backbone = build(name)
    value, z_1 = VALUES[kind](backbone), latents(backbone)
    settings = {"profile": profile, "normalise": NORMALISE[normalise]}
    guider = StitchVMGuidance(value, PROMPTS, 0.3, guidance_scale=scale, **settings)
    found = through(modular(backbone, guider), backbone, z_1)
    plain = CFG(backbone.velocity, scale)
    expected = looped(Guided(plain, value, 0.3, **settings), z_1, grid())
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float((found - looped(plain, z_1, grid())).abs().max()) > 1e-3


def test_no_strength_or_a_disabled_guider_is_the_pipeline():
    backbone, value = build("sd3"), Bend(build("sd3").latent)
    z_1 = latents(backbone)
    weak, off = (StitchVMGuidance(value, PROMPTS, s, guidance_scale=SCALE) for s in (0.0, 0.3))
    off.disable()
    for guider, scale in ((weak, SCALE), (off, 1.0)):
        found = through(modular(backbone, guider), backbone, z_1)
        expected = classic(classic_of(backbone), backbone, z_1, guidance_scale=scale)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert value.asked == []


def test_a_new_guider_keeps_what_is_not_changed():
    value = Bend((4, 8, 8))
    guider = StitchVMGuidance(value, PROMPTS, 0.3, guidance_scale=SCALE, profile=clipped)
    other = guider.new(strength=0.5)
    kept = [(g.guided.value, g.c, g.guidance_scale, g.guided.profile) for g in (guider, other)]
    assert kept[0] == kept[1]
    assert (guider.guided.strength, other.guided.strength) == (0.3, 0.5)
    assert '"strength": 0.5' in repr(other)


def test_the_guider_says_what_is_wrong():
    backbone = build("sd3")
    value, z_1 = Bend(backbone.latent), latents(backbone)

    def run(guider, **settings):
        return through(modular(backbone, guider), backbone, z_1, **settings)

    with pytest.raises(ValueError, match="expected a finite strength >= 0, got -1"):
        StitchVMGuidance(value, PROMPTS, -1)
    with pytest.raises(ValueError, match="negative prompt for guidance_scale 2, got none: pass"):
        run(StitchVMGuidance(value, PROMPTS, 1.0, guidance_scale=SCALE), negative=None)
    for c, got in ((PROMPTS[:1], "1"), ("a red circle", "one string")):
        with pytest.raises(ValueError, match=f"expected 2 prompts, one for each.*, got {got}: wi"):
            run(StitchVMGuidance(value, c, 1.0))
    with pytest.raises(ValueError, match="got inf at t = 1: begin below t = 1"):
        run(StitchVMGuidance(value, PROMPTS, 1.0, profile=exact))
    with pytest.raises(ValueError, match=r"expected z_t of shape \(B, 4, 8, 12\), got"):
        run(StitchVMGuidance(Bend((4, 8, 12)), PROMPTS, 1.0))
    guider = StitchVMGuidance(value, PROMPTS, 1.0, guidance_scale=1.0)
    with pytest.raises(ValueError, match="prepared by the modular SD 3 pipeline, got none"):
        guider.forward(z_1)


def test_several_images_a_prompt_take_each_prompt_as_many_times():
    backbone = build("sd3")
    value, z_1 = Bend(backbone.latent), latents(backbone, 4)
    c = [text for text in PROMPTS for _ in range(2)]
    pipe = modular(backbone, StitchVMGuidance(value, c, 0.3, guidance_scale=SCALE))
    found = pipe(
        prompt=PROMPTS,
        negative_prompt=[""] * 2,
        num_images_per_prompt=2,
        max_sequence_length=0,
        latents=z_1,
        num_inference_steps=STEPS,
        height=16,
        width=16,
        output="latents",
    )
    guided = Guided(CFG(backbone.velocity, SCALE), value, 0.3, profile=constant)
    expected = looped(guided, z_1, grid(), c)
    torch.testing.assert_close(found, expected, **CLOSE)


# The callback


def classic_of(backbone):
    """The unmodified pipeline of a backbone's parts."""
    pipe = backbone.texts.pipeline
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipe = type(pipe)(**(pipe.components | {"scheduler": scheduler}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classic(pipe, backbone, latents, steps=STEPS, **settings):
    """Its latents at the end, as it lays them out."""
    text, null = (backbone.texts(c, latents) for c in (PROMPTS, ["", ""]))
    if settings["guidance_scale"] != 1 and type(pipe) is StableDiffusion3Pipeline:
        settings |= {
            "negative_prompt_embeds": null.tokens,
            "negative_pooled_prompt_embeds": null.pooled,
        }
    return pipe(
        prompt_embeds=text.tokens,
        pooled_prompt_embeds=text.pooled,
        latents=latents,
        num_inference_steps=steps,
        output_type="latent",
        height=2 * backbone.latent[1],
        width=2 * backbone.latent[2],
        **settings,
    ).images


def kicked(velocity, value, z, times, *, strength, profile):
    """The loop of the callback, written out."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        with torch.no_grad():
            z = z - (t - s) * velocity(z, t, PROMPTS)
        if s > 0:
            gradient = value_and_gradient(value, z, s, PROMPTS).gradient
            z = z + (t - s) * strength * profile(s) * gradient
    return z


def run(backbone, kick, z_1, steps=STEPS):
    """The latents that a pipeline ends with, unpacked, and its times."""
    pipe = classic_of(backbone)
    settings = {"guidance_scale": SCALE, "callback_on_step_end": kick}
    if type(pipe) is StableDiffusion3Pipeline:
        found = classic(pipe, backbone, z_1, steps, **settings)
    else:
        settings["guidance_scale"] = backbone.guidance or 1.0
        tokens = classic(pipe, backbone, pack(z_1), steps, **settings)
        found = unpack(tokens, backbone.grid)
    return found, pipe.scheduler.sigmas.double()


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("profile", [constant, exact])
@pytest.mark.parametrize("name", ["sd35_medium", "flux_dev"])
def test_the_callback_is_its_loop(name, profile, kind):
    backbone = build(name)
    value, z_1 = VALUES[kind](backbone), latents(backbone)
    found, times = run(backbone, Kick(value, PROMPTS, 0.1, profile=profile), z_1)
    u = CFG(backbone.velocity, SCALE if name == "sd35_medium" else 1.0)
    expected = kicked(u, value, z_1, times, strength=0.1, profile=profile)
    torch.testing.assert_close(found, expected, **CLOSE)
    still = kicked(u, value, z_1, times, strength=0.0, profile=profile)
    assert float((found - still).abs().max()) > 0.05


def test_the_value_is_asked_where_steps_end_and_not_at_the_end():
    backbone = build("sd3")
    value = Bend(backbone.latent)
    _, times = run(backbone, Kick(value, PROMPTS, 0.1), latents(backbone))
    assert value.asked == pytest.approx(times[1:-1].tolist())


def test_the_callback_approaches_the_guided_loop_as_steps_shrink():
    """Another discretisation of one ODE: each halving of the step halves the difference."""
    backbone, value = build("sd3"), Bend(build("sd3").latent)
    z_1, apart = latents(backbone), []
    for steps in (8, 16, 32):
        found, times = run(backbone, Kick(value, PROMPTS, 0.05), z_1, steps)
        guided = Guided(CFG(backbone.velocity, SCALE), value, 0.05, profile=constant)
        apart.append(float((found - looped(guided, z_1, times)).norm()))
    assert 1.6 < apart[0] / apart[1] < 2.6
    assert 1.6 < apart[1] / apart[2] < 2.6


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_a_callback_of_no_strength_is_the_pipeline(name):
    backbone = build(name)
    z_1, value = latents(backbone), Bend(backbone.latent)
    plain, _ = run(backbone, None, z_1)
    found, _ = run(backbone, Kick(value, PROMPTS, 0.0), z_1)
    assert torch.equal(found, plain)
    assert value.asked == []


def test_the_callback_says_what_is_wrong():
    backbone, wide = build("sd3"), build("flux_dev")
    z_1, value = latents(backbone), Bend(backbone.latent)
    with pytest.raises(ValueError, match="expected a finite strength >= 0, got inf"):
        Kick(value, PROMPTS, float("inf"))
    with pytest.raises(
        ValueError, match="expected 2 prompts, one for each latent of the pipeline"
    ):
        run(backbone, Kick(value, PROMPTS[:1], 1.0), z_1)
    said = r"latents of shape \(B, 4, 8, 12\), as the value takes them, got \(2, 4, 8, 8\)"
    with pytest.raises(ValueError, match=said):
        run(backbone, Kick(Bend((4, 8, 12)), PROMPTS, 1.0), z_1)
    with pytest.raises(ValueError, match=r"latents of shape \(B, 16, 16\).*got \(2, 24, 16\)"):
        run(wide, Kick(value, PROMPTS, 1.0), latents(wide))
    with pytest.raises(ValueError, match=r"latents in callback_on_step_end_tensor_inputs, got \["):
        Kick(value, PROMPTS, 1.0)(classic_of(backbone), 0, None, {"prompt_embeds": z_1})


def test_the_callback_refuses_what_it_was_not_made_for():
    backbone = build("sd3")
    z_1, kick = latents(backbone), Kick(Bend(backbone.latent), PROMPTS, 1.0)
    pipe = classic_of(backbone)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="expected a FlowMatchEulerDiscreteScheduler, whose"):
        classic(pipe, backbone, z_1, guidance_scale=1.0, callback_on_step_end=kick)
    other = StableDiffusion3Img2ImgPipeline(**pipe.components)
    with pytest.raises(ValueError, match="among StableDiffusion3Pipeline, FluxPipeline, got Sta"):
        kick(other, 0, None, {"latents": z_1})


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_half_precision_stays_half(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name]().to(torch.bfloat16)
    value, z_1 = Tweedie(backbone), latents(backbone, dtype=torch.bfloat16)
    found = [run(backbone, Kick(value, PROMPTS, s, profile=exact), z_1)[0] for s in (0.0, 0.1)]
    if name == "sd3":
        guider = StitchVMGuidance(value, PROMPTS, 0.3, guidance_scale=SCALE)
        found.append(through(modular(backbone, guider), backbone, z_1))
    for z_0 in found[1:]:
        assert z_0.dtype == torch.bfloat16
        assert 0.01 < float((z_0 - found[0]).abs().max()) < 10


# On the shapes world


ROWS, SHAPE = 4, {"height": 32, "width": 32, "max_sequence_length": 0, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def world():
    return WORLDS["shapes"]()


@pytest.fixture(scope="module")
def value(world):
    return ESTIMATORS["stitched"](world, world.reward("aesthetic"))


@pytest.fixture(scope="module")
def pipe(world):
    """The unmodified pipeline of the world's own parts."""
    parts = world.backbone.texts.pipeline.components | {"vae": world.backbone.vae}
    pipe = StableDiffusion3Pipeline(**(parts | {"scheduler": FlowMatchEulerDiscreteScheduler()}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def given(world):
    c = list(world.prompts[:ROWS])
    z_1 = Streams.of(0, rows=ROWS).normal(torch.empty(ROWS, *world.backbone.latent))
    return c, {"latents": z_1, "negative_prompt": [""] * ROWS} | SHAPE


def by_guider(world, value, pipe, strength, **settings):
    c, inputs = given(world)
    guided = StableDiffusion3ModularPipeline()
    guider = StitchVMGuidance(value, c, strength, guidance_scale=SCALE, **settings)
    guided.update_components(**pipe.components, guider=guider)
    return guided(prompt=c, output="latents", **inputs)


def by_callback(world, value, pipe, strength, **settings):
    c, inputs = given(world)
    kick = Kick(value, c, strength, **settings)
    settings = {"guidance_scale": SCALE, "callback_on_step_end": kick}
    return pipe(c, output_type="latent", **inputs, **settings).images


@pytest.fixture(scope="module")
def unsteered(world, value, pipe):
    return by_callback(world, value, pipe, 0.0)


def test_the_guided_pipeline_is_the_guided_loop_on_shapes(world, value, pipe, unsteered):
    """In float32, with a strength at which rounding is not what decides where samples go."""
    (c, inputs), u = given(world), CFG(world.backbone.velocity, SCALE)
    found = by_guider(world, value, pipe, 5.0)
    guided = Guided(u, value, 5.0, profile=constant)
    expected = looped(guided, inputs["latents"], pipe.scheduler.sigmas.double(), c)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert float((found - unsteered).abs().max()) > 0.1


@pytest.mark.parametrize("steered", [by_guider, by_callback])
def test_the_reward_of_the_pictures_rises(steered, world, value, pipe, unsteered):
    reward, (c, _) = world.reward("aesthetic"), given(world)
    z_0 = steered(world, value, pipe, 0.3, normalise=NORMALISE["rms"])
    with torch.no_grad():
        after, before = (reward(world.backbone.decode(z), c) for z in (z_0, unsteered))
    assert float((after - before).min()) > 0
    assert float((after - before).mean()) > 0.5
