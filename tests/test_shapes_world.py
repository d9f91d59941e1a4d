"""The shapes world as shipped: its networks, banks and truth, and estimators in it.

Nothing here depends on how well the networks were trained, except `test_quality_*`: what the
project promises of them.
"""

import json
import math
import shutil

import pytest
import scipy.stats
import torch
from diffusers import StableDiffusion3Pipeline
from torch.nn.functional import normalize
from transformers import CLIPModel

from baselines.constant import build as constant
from baselines.monte_carlo import build as monte_carlo
from baselines.tweedie import build as tweedie
from bench.meter import Calls
from bench.worlds import WORLDS
from bench.worlds.shapes import build, reference, weights
from bench.worlds.shapes import world as world_module
from bench.worlds.shapes.banks import Banks
from bench.worlds.shapes.captions import holds, parse, seen, told
from bench.worlds.shapes.conditional import draw_for
from bench.worlds.shapes.make import generator
from bench.worlds.shapes.make.clip import Told, recalled
from bench.worlds.shapes.make.generator import LARGE, Generator
from bench.worlds.shapes.make.preference import graded, pairs
from bench.worlds.shapes.make.vae import psnr
from bench.worlds.shapes.make.words import tokenizer
from bench.worlds.shapes.prompts import prompt_set
from bench.worlds.shapes.ratings import rating
from bench.worlds.shapes.reference import ReferenceTruth
from bench.worlds.shapes.scenes import draw, render
from bench.worlds.shapes.verifier import correct
from bench.worlds.shapes.weights import SHIPPED
from bench.worlds.shapes.world import TOWERS
from stitchvm.align.guide import CFG
from stitchvm.backbone import NULL
from stitchvm.memo import Remembered
from stitchvm.models import clip
from stitchvm.path import noise, time_grid
from stitchvm.reward import Features, Hidden, Reward
from stitchvm.sample import Ode, sample
from stitchvm.streams import Streams, derive
from stitchvm.value import Target, value_and_gradient

if not (SHIPPED / weights.DIGESTS).is_file():
    pytest.skip("the weights are still in training", allow_module_level=True)

MEMBERS, PROMPT_MEMBERS = 256, 32
SETTINGS = {"members": MEMBERS, "prompt_members": PROMPT_MEMBERS}
SIGMAS = 4.0  # standard errors that a mean may be off
HALF = 1e-3  # embeddings of the banks are float16: what that moves a cosine by, at most


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of banks for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("banks")
        patch.setenv("STITCHVM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shapes(cache):
    return WORLDS["shapes"](**SETTINGS)


@pytest.fixture(scope="session")
def small(cache):
    return WORLDS["shapes"](generator="small", **SETTINGS)


def time(t):
    return torch.tensor(t, dtype=torch.float32)


def noisy(world, t, c, seed=0, *, posterior="prompt"):
    """Clean latents of a bank and what noise at t makes of them."""
    rng = Streams.of(seed, "noisy", rows=len(c))
    z_0 = world.draw(c if posterior == "prompt" else [NULL] * len(c), rng.child("z_0"))
    return z_0, noise(z_0, time(t), rng.child("eps").normal(z_0))


def pure_noise(world, rows, seed=0):
    return Streams.of(seed, "noise", rows=rows).normal(torch.empty(rows, *world.backbone.latent))


def within(draws, expected):
    """Whether a mean of independent draws lies within SIGMAS standard errors of a number."""
    draws = draws.double()
    return abs(draws.mean() - expected) <= SIGMAS * draws.std() / len(draws) ** 0.5


class Redness(Reward):
    """A reward that no world ships: the mean of each picture's first channel."""

    depth = 1

    def head(self, x, j):
        return Hidden(x)

    def advance(self, h, j, k):
        return h

    def head_weights(self):
        return {}

    def tail_weights(self, j):
        return {}

    def tail(self, h, j):
        return Features(h.map.flatten(2).transpose(1, 2), h.map.flatten(2).mean(2))

    def score(self, e, c):
        return e[:, 0]


# What it is made of


def test_the_world_has_its_parts(shapes):
    assert shapes.rewards == ("clip", "aesthetic", "hps")
    assert shapes.judges == ("pick",)
    assert shapes.prompts == prompt_set("eval", 4)
    assert shapes.digest == f"{weights.verify(SHIPPED)}-large-{MEMBERS}-{PROMPT_MEMBERS}"
    assert shapes.backbone.latent == (4, 8, 8)
    assert shapes.tiny.transformer is shapes.backbone.transformer
    x = render(draw("eval", 2))
    for name in TOWERS:
        assert shapes.reward(name) is shapes.reward(name)
        assert shapes.reward(name)(x, ["a circle"] * 2).isfinite().all()
    assert not any(p.requires_grad for p in shapes.backbone.parameters())


def test_the_small_generator_shares_everything_but_the_velocity(shapes, small):
    c = list(shapes.prompts[:2])
    z_0, z_t = noisy(shapes, 0.5, c)
    assert torch.equal(small.draw(c, Streams.of(0, "noisy", rows=2).child("z_0")), z_0)
    assert torch.equal(small.backbone.decode(z_0), shapes.backbone.decode(z_0))
    x = render(draw("eval", 1))
    assert torch.equal(small.backbone.encode(x), shapes.backbone.encode(x))
    assert small.digest == shapes.digest.replace("large", "small")
    gap = small.backbone.velocity(z_t, time(0.5), c) - shapes.backbone.velocity(z_t, time(0.5), c)
    assert float(gap.abs().max()) > 1e-3
    assert small.backbone.depth < shapes.backbone.depth


def test_no_file_of_the_weights_names_a_folder_of_its_maker():
    for path in SHIPPED.rglob("*.json"):
        settings = json.loads(path.read_text())
        for key in ("_name_or_path", "name_or_path", "tokenizer_file"):
            assert not str(settings.get(key) or "").startswith(("/", "~", ".")), path


# Draws and banks


def test_draws_are_members_and_depend_on_their_stream_alone(shapes):
    c = [shapes.prompts[0], NULL, shapes.prompts[1], shapes.prompts[0]]
    rng = Streams.of(1, "draws", rows=4)
    z_0 = shapes.draw(c, rng)
    assert torch.equal(shapes.draw(c, rng), z_0)
    for row, prompt in enumerate(c):
        alone = shapes.draw([prompt], Streams(rng.seeds[row : row + 1]))
        assert torch.equal(alone[0], z_0[row])
        members = shapes.bank("prompt", prompt).latents.to(z_0)
        assert len(members) == (MEMBERS if prompt == NULL else PROMPT_MEMBERS)
        assert bool((members == z_0[row]).flatten(1).all(1).any())


def test_a_bank_holds_its_scenes(shapes):
    """Latents of rendered scenes, weighted by p(c | scene), with embeddings of their pictures."""
    caption = shapes.prompts[1]
    bank = shapes.bank("prompt", caption)
    scenes = draw_for(world_module.parse(caption), "bank", PROMPT_MEMBERS)
    z_0 = shapes.backbone.encode(render(scenes))
    torch.testing.assert_close(bank.latents.float(), z_0, rtol=2e-3, atol=2e-3)
    p = torch.tensor([told(s)[caption] for s in seen(scenes)]).double()
    torch.testing.assert_close(bank.log_weights.exp(), p, rtol=1e-6, atol=0)
    assert bool((shapes.bank("data", caption).log_weights == 0).all())
    assert set(bank.embeddings) == set(TOWERS.values())
    x = shapes.backbone.decode(bank.latents[:8].float())
    for tower, e in bank.embeddings.items():
        found = shapes.reward(tower).tail(shapes.reward(tower).head(x, 1), 1).embedding
        torch.testing.assert_close(e[:8], found, rtol=0, atol=HALF)


def test_a_comma_may_touch_its_word(shapes):
    text = "a circle , a square and a triangle"
    spaced, touching = (shapes.bank("prompt", c) for c in (text, text.replace(" ,", ",")))
    assert bool(touching.log_weights.isfinite().all())
    assert torch.equal(touching.log_weights, spaced.log_weights)
    assert torch.equal(touching.latents, spaced.latents)


def test_a_bank_is_made_once(shapes, monkeypatch):
    before = shapes.bank("prompt", shapes.prompts[0])
    banks = Banks(shapes.backbone, shapes.banks.towers, SHIPPED / "banks", shapes.version)
    banks.cache = shapes.banks.cache
    monkeypatch.setattr(Banks, "write", lambda *_: pytest.fail("made again"))
    found = banks.prompt(shapes.prompts[0], PROMPT_MEMBERS)
    assert torch.equal(found.latents, before.latents)
    assert torch.equal(found.log_weights, before.log_weights)


# Truth


@pytest.mark.parametrize("name", TOWERS)
def test_truth_at_a_clean_latent_is_its_realised_reward(shapes, name):
    reward, c = shapes.reward(name), list(shapes.prompts[:4])
    z_0, _ = noisy(shapes, 0.5, c)
    realised = reward(shapes.backbone.decode(z_0), c)
    scale = 5.0 if name == "aesthetic" else 1.0  # ratings lie around five
    for t in (0.0, 1e-3):
        truth = shapes.truth(reward, Target("mean", "prompt"))(z_0, time(t), c)
        torch.testing.assert_close(truth, realised, rtol=0, atol=HALF * scale)


@pytest.mark.parametrize(
    "target",
    [Target("mean", "data"), Target("mean", "prompt"), Target("soft", "prompt", 5.0)],
    ids=str,
)
def test_truth_is_the_value_of_the_rows_own_bank(shapes, target):
    """Whatever the prompts of its neighbours; each member's reward under the row's prompt."""
    reward, t = shapes.reward("clip"), torch.tensor([0.3, 0.6, 0.6, 0.9])
    c = [shapes.prompts[k] for k in (0, 1, 0, 1)]
    _, z_t = noisy(shapes, 0.6, c)
    value = shapes.truth(reward, target)(z_t, t, c)
    known = shapes.certainty(reward, target, z_t, t, c)
    for row, prompt in enumerate(c):
        bank = shapes.bank(target.posterior, prompt)
        r = reward.score(bank.embeddings["clip"], [prompt] * len(bank)).double()
        here = slice(row, row + 1)
        expected = bank.value(z_t[here], t[here], r, target.lam)
        torch.testing.assert_close(value[here], expected, rtol=0, atol=1e-6)
        members, variance = bank.certainty(z_t[here], t[here], r, target.lam)
        torch.testing.assert_close(known.members[here], members)
        torch.testing.assert_close(known.variance[here], variance)


def test_a_soft_value_lies_above_the_mean_and_meets_it_at_small_lambda(shapes):
    reward, c = shapes.reward("aesthetic"), list(shapes.prompts[:3])
    _, z_t = noisy(shapes, 0.7, c)
    mean = shapes.truth(reward, Target("mean", "data"))(z_t, time(0.7), c)
    soft = [
        shapes.truth(reward, Target("soft", "data", lam))(z_t, time(0.7), c)
        for lam in (1e-3, 1.0, 10.0)
    ]
    torch.testing.assert_close(soft[0], mean, rtol=0, atol=2e-3)
    assert bool((soft[1] >= mean - 1e-6).all())
    assert bool((soft[2] >= soft[1] - 1e-6).all())


def test_any_other_reward_sees_every_member(shapes):
    reward, prompt = Redness(), shapes.prompts[0]
    assert shapes.tower(reward) is None
    _, z_t = noisy(shapes, 0.6, [prompt] * 2)
    truth = shapes.truth(reward, Target("mean", "prompt"))
    bank = shapes.bank("prompt", prompt)
    r = reward(shapes.backbone.decode(bank.latents.float()), [prompt] * len(bank)).double()
    expected = bank.value(z_t, time(0.6), r, None)
    torch.testing.assert_close(truth(z_t, time(0.6), [prompt] * 2), expected, rtol=0, atol=1e-5)
    assert shapes.truth(reward, Target("mean", "model", kernel="ode, 4 steps")) is None


def test_exact_draws_average_to_the_truth(shapes):
    reward, c = shapes.reward("clip"), [shapes.prompts[2]] * 2
    _, z_t = noisy(shapes, 0.8, c, posterior="data")
    for posterior in ("data", "prompt"):
        exact = monte_carlo(shapes, reward, kernel="exact", particles=48, posterior=posterior)
        rewards = exact.rewards(z_t, time(0.8), c, Streams.of(6, "exact", rows=2))
        truth = shapes.truth(reward, exact.target)(z_t, time(0.8), c)
        for row in range(2):
            assert abs(rewards[:, row].mean() - truth[row]) <= (
                SIGMAS * rewards[:, row].std() / 48**0.5 + HALF
            )


@pytest.mark.parametrize("posterior", ["data", "prompt"])
def test_realised_rewards_give_the_same_bias_as_the_truth(shapes, posterior):
    """Of latents forward-noised from the bank, E[V_hat - r(z_0)] = E[V_hat - V]."""
    reward, t = shapes.reward("aesthetic"), time(0.75)
    c = [shapes.prompts[k % 3] for k in range(60)]
    z_0, z_t = noisy(shapes, 0.75, c, seed=3, posterior=posterior)
    with torch.no_grad():
        estimate = tweedie(shapes, reward, posterior=posterior, decoder="tiny")(z_t, t, c)
        realised = estimate - reward(shapes.backbone.decode(z_0), c)
        exact = estimate - shapes.truth(reward, Target("mean", posterior))(z_t, t, c)
    assert float((realised - exact).std()) > 0.1  # one latent says little
    assert within(realised - exact, 0)


# Errors


def test_what_does_not_exist_is_named(shapes):
    with pytest.raises(ValueError, match=r"expected a reward in .*'pick'\), got 'fid'"):
        shapes.reward("fid")
    with pytest.raises(ValueError, match="expected the data or prompt posterior, got 'model'"):
        shapes.bank("model", shapes.prompts[0])
    with pytest.raises(ValueError, match="expected the data or prompt posterior, got 'all'"):
        shapes.posterior("all")(
            torch.zeros(1, 4, 8, 8), time(0.5), ["a circle"], Streams.of(0, rows=1)
        )
    with pytest.raises(ValueError, match="expected rng, one stream per latent, got None"):
        shapes.posterior("data")(torch.zeros(1, 4, 8, 8), time(0.5), ["a circle"], None)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a mauve circle", r"expected words of .*got \['mauve'\]"),
        ("circle a", "expected a caption such as 'a red circle', got 'circle a'"),
        (
            "circle a",
            r"captions are \[a\|two\|three\] \[small\|large\] \[red\|.*\|ring\], .*\|above\|",
        ),
        ("a red ring", r"hold, got 'a red ring'; .* any \[red.*ring\] but red ring, green tri"),
        (
            "a red ring above two small crosses",
            "expected size and colour of all objects or of none",
        ),
    ],
)
def test_prompts_without_a_bank_are_refused(shapes, prompt, message):
    z_t = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=message):
        shapes.draw([prompt], Streams.of(0, "error", rows=1))
    with pytest.raises(ValueError, match=message):
        shapes.truth(shapes.reward("clip"), Target("mean", "prompt"))(z_t, time(0.5), [prompt])


def test_networks_refuse_words_that_they_do_not_know(shapes):
    x, z_t = torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="got mauve in 'a mauve circle'"):
        shapes.backbone.velocity(z_t, time(0.5), ["a mauve circle"])
    with pytest.raises(ValueError, match="got mauve in 'a mauve circle'"):
        shapes.reward("clip")(x, ["a mauve circle"])
    with pytest.raises(ValueError, match="expected a prompt of at least one word, got ''"):
        shapes.reward("clip")(x, [NULL])


def test_latents_that_are_none_are_refused(shapes):
    z_t, c = torch.zeros(2, 4, 8, 8), ["a circle"] * 2
    reward, broken = shapes.reward("clip"), torch.full_like(z_t, math.nan)
    with pytest.raises(ValueError, match="expected finite z_t, got 512 of 512 values not finite"):
        shapes.backbone.velocity(broken, time(0.5), c)
    with pytest.raises(ValueError, match="expected finite z_0"):
        shapes.backbone.decode(broken)
    with pytest.raises(ValueError, match="got NaN"):
        reward(torch.full((1, 3, 32, 32), math.nan), c[:1])
    truth = shapes.truth(reward, Target("mean", "data"))
    for wrong in (z_t[:, :3], z_t[..., :4]):
        with pytest.raises(ValueError, match=r"expected z_t of shape \(B, 4, 8, 8\), got"):
            truth(wrong, time(0.5), c)
    with pytest.raises(ValueError, match=r"expected t in \[0, 1\]"):
        truth(z_t, time(1.5), c)
    with pytest.raises(ValueError, match="expected 2 prompts, one per latent, got 1"):
        truth(z_t, time(0.5), c[:1])


def test_wrong_settings_are_named(tmp_path):
    build = WORLDS["shapes"]
    for name in ("members", "prompt_members", "per_kind"):
        with pytest.raises(ValueError, match=f"expected {name} >= 1, got 0"):
            build(**{name: 0})
    with pytest.raises(FileNotFoundError, match=r"weights in .*got no digests.json there"):
        build(folder=str(tmp_path / "nowhere"))
    shutil.copytree(SHIPPED / "aesthetic", tmp_path / "aesthetic")
    weights.sign(tmp_path)
    (tmp_path / "aesthetic" / "head.json").write_text("{}")
    with pytest.raises(ValueError, match=r"head.json with digest .* changed after it was signed"):
        build(folder=str(tmp_path))


def test_an_unknown_generator_or_prompt_set_is_named(cache):
    with pytest.raises((ValueError, FileNotFoundError), match="huge"):
        WORLDS["shapes"](generator="huge")
    with pytest.raises(ValueError, match="expected the tune or eval prompts, got 'test'"):
        WORLDS["shapes"](prompts="test")


# The generator


@pytest.mark.parametrize("size", ["large", "small"])
def test_a_velocity_resumed_from_any_block_is_the_velocity(request, size):
    world = request.getfixturevalue("shapes" if size == "large" else "small")
    z_t, t, c = pure_noise(world, 2), torch.tensor([0.3, 0.8]), [NULL, world.prompts[3]]
    with torch.no_grad():
        u = world.backbone.velocity(z_t, t, c)
        for i in range(1, world.backbone.depth + 1):
            state = world.backbone.trunk(z_t, t, i, c)
            torch.testing.assert_close(world.backbone.resume(state), u, rtol=0, atol=1e-5)


def test_sampling_equals_the_diffusers_pipeline(shapes):
    """Text encoding, guidance and Euler steps, from the folder as it ships."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        SHIPPED / "large",
        text_encoder_3=None,
        tokenizer_3=None,
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    c, z_1, times = list(shapes.prompts[3:6]), pure_noise(shapes, 3), time_grid(5, shift=2.0)
    expected = pipe(
        prompt=c,
        negative_prompt=[""] * 3,
        guidance_scale=2.0,
        latents=z_1,
        sigmas=times[:-1].tolist(),
        max_sequence_length=0,
        output_type="latent",
        height=32,
        width=32,
    ).images
    with torch.no_grad():
        z_0 = sample(Ode(CFG(shapes.backbone.velocity, 2.0)), z_1, times, c)
    assert float((z_0 - z_1).abs().max()) > 0.1
    torch.testing.assert_close(z_0, expected, rtol=0, atol=1e-3)


def test_the_velocity_is_that_of_training(shapes):
    """Same text, same time: `make.generator.Generator` with the shipped weights."""
    model, backbone = Generator(LARGE).eval(), shapes.backbone
    for name in ("text_encoder", "text_encoder_2"):
        own = backbone.texts.encoders[name].state_dict()
        getattr(model, name).load_state_dict(own)
    model.transformer.load_state_dict(backbone.transformer.state_dict())
    z_t, t, c = pure_noise(shapes, 3), torch.tensor([0.1, 0.5, 0.9]), ["", *shapes.prompts[:2]]
    ids = torch.tensor(tokenizer()(c, padding="max_length")["input_ids"])
    with torch.no_grad():
        expected = model(z_t, t, ids)
        torch.testing.assert_close(backbone.velocity(z_t, t, c), expected, rtol=0, atol=1e-4)


# Rewards


@pytest.mark.parametrize("name", ["clip", "hps", "pick"])
def test_a_reward_entered_at_any_block_is_the_whole_model(shapes, name):
    reward, x = shapes.reward(name), render(draw("eval", 3))
    model = CLIPModel.from_pretrained(SHIPPED / name, dtype=torch.float32, local_files_only=True)
    c = list(shapes.prompts[:3])
    ids = torch.tensor(tokenizer()(c, padding="max_length")["input_ids"])
    with torch.no_grad():
        out = model.eval()(input_ids=ids, pixel_values=x)
        e = normalize(out.image_embeds, dim=-1)
        for j in range(1, reward.depth + 1):
            found = reward.tail(reward.head(x, j), j).embedding
            torch.testing.assert_close(found, e, rtol=0, atol=1e-5)
        expected = (e * normalize(out.text_embeds, dim=-1)).sum(1)
        torch.testing.assert_close(reward(x, c), expected, rtol=0, atol=1e-5)


def test_the_aesthetic_reward_is_affine_in_clips_embedding(shapes):
    x, c = render(draw("eval", 3)), ["a circle"] * 3
    aesthetic, tower = shapes.reward("aesthetic"), shapes.reward("clip")
    e = tower.tail(tower.head(x, 1), 1).embedding
    values = aesthetic(x, c)
    for j in range(1, aesthetic.depth + 1):
        found = aesthetic.score(aesthetic.tail(aesthetic.head(x, j), j).embedding, c)
        torch.testing.assert_close(found, values, rtol=0, atol=1e-4)
    mix = aesthetic.score((e[:1] + e[1:2]) / 2, c[:1])
    torch.testing.assert_close(mix, (values[:1] + values[1:2]) / 2, rtol=0, atol=1e-4)


def test_another_copy_of_a_reward_has_the_same_truth(shapes):
    copy = clip.load(SHIPPED / "clip", scale=1.0)
    c = [shapes.prompts[0]] * 2
    _, z_t = noisy(shapes, 0.6, c)
    target = Target("mean", "prompt")
    own = shapes.truth(shapes.reward("clip"), target)(z_t, time(0.6), c)
    found = shapes.truth(copy, target)(z_t, time(0.6), c)
    torch.testing.assert_close(found, own, rtol=0, atol=HALF)


# Estimators


@pytest.fixture
def counted(shapes, monkeypatch):
    """Calls of a backbone of its own, with the world's weights."""
    own = shapes.backbone
    backbone = type(own)(own.transformer, own.vae, own.texts, latent=own.latent)
    monkeypatch.setattr(shapes, "backbone", backbone)
    calls = Calls()
    calls.watch(backbone)
    return calls


def test_tweedie_with_the_tiny_decoder(shapes):
    reward, c = shapes.reward("clip"), list(shapes.prompts[:2])
    _, z_t = noisy(shapes, 0.5, c)
    z_0 = z_t - 0.5 * shapes.backbone.velocity(z_t, time(0.5), c)
    for decoder, backbone in (("full", shapes.backbone), ("tiny", shapes.tiny)):
        value = tweedie(shapes, reward, decoder=decoder)(z_t, time(0.5), c)
        expected = reward(backbone.decode(z_0), c)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    assert shapes.tiny.decoder is not None
    assert not torch.allclose(shapes.tiny.decode(z_0), shapes.backbone.decode(z_0), atol=1e-3)


def test_a_reused_velocity_is_called_once_and_held_fixed(shapes, counted):
    reward, c, t = shapes.reward("clip"), list(shapes.prompts[:2]), time(0.6)
    _, z_t = noisy(shapes, 0.6, c)
    plain, reusing = (tweedie(shapes, reward, reuse=reuse) for reuse in (False, True))
    with counted.during() as spent:
        first = reusing(z_t, t, c)
    assert spent["velocity"] == 2
    with counted.during() as spent:
        again = value_and_gradient(reusing, z_t, t, c)
    assert spent["velocity"] == 0
    assert spent["decode"] == 2
    assert torch.equal(first, again.value)
    full = value_and_gradient(plain, z_t, t, c)
    torch.testing.assert_close(again.value, full.value, rtol=0, atol=1e-6)
    u = shapes.backbone.velocity(z_t, t, c).detach()
    z = z_t.clone().requires_grad_()
    (expected,) = torch.autograd.grad(reward(shapes.backbone.decode(z - t * u), c).sum(), z)
    torch.testing.assert_close(again.gradient, expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(full.gradient, expected, rtol=1e-2, atol=1e-7)
    with counted.during() as spent:
        reusing(z_t, time(0.5), c)
        reusing(z_t, t, c[::-1])
    assert spent["velocity"] == 4  # other times, other prompts


def recording():
    """A cheap velocity, and the batches it was called with."""
    seen_batches = []

    def velocity(z_t, t, c):
        seen_batches.append(list(c))
        words = torch.tensor([float(len(prompt)) for prompt in c], dtype=z_t.dtype)
        return z_t * t.reshape(-1, *[1] * (z_t.ndim - 1)).to(z_t) + words[:, None, None, None]

    return velocity, seen_batches


def test_what_is_remembered_is_bounded_and_exact():
    velocity, calls = recording()
    remembered = Remembered(velocity, keep=2)
    z = [torch.full((1, 1, 1, 1), float(k)) for k in range(3)]
    for k in (0, 1, 0, 2, 1, 0):  # 0 is forgotten when 2 comes
        torch.testing.assert_close(
            remembered(z[k], time(0.5), ["ab"]), velocity(z[k], time(0.5), ["ab"])
        )
    assert len(calls) - 6 == 4
    z_t = torch.ones(1, 1, 1, 1, requires_grad=True)
    u = remembered(z_t, time(0.5), ["ab"])
    assert not u.requires_grad
    with torch.no_grad():
        z_t += 1  # in place, as an optimiser does
    assert float(remembered(z_t, time(0.5), ["ab"])) == float(u) + 0.5
    assert remembered(z_t.detach().double(), time(0.5), ["ab"]).dtype == torch.float64


def test_guidance_is_its_formula():
    velocity, calls = recording()
    z_t, t, c = torch.randn(2, 1, 2, 2).double(), torch.tensor([0.2, 0.9]).double(), ["abc", "d"]
    torch.testing.assert_close(CFG(velocity, 1.0)(z_t, t, c), velocity(z_t, t, c))
    assert calls == [c, c]
    for scale in (0.0, 2.0, 4.5):
        for times in (t, t[0]):
            calls.clear()
            found = CFG(velocity, scale)(z_t, times, c)
            assert calls == [[NULL, NULL, *c]]  # one call of twice the batch
            null, prompted = velocity(z_t, times, [NULL] * 2), velocity(z_t, times, c)
            torch.testing.assert_close(found, (1 - scale) * null + scale * prompted)


def test_guidance_calls_the_backbone_as_often_as_it_says(shapes, counted):
    z_t, c = pure_noise(shapes, 2), list(shapes.prompts[:2])
    for scale, calls in ((1.0, 2), (2.0, 4)):
        with counted.during() as spent, torch.no_grad():
            u = CFG(shapes.backbone.velocity, scale)(z_t, time(0.5), c)
        assert spent["velocity"] == calls
    # In one batch: guidance multiplies how a float32 product rounds in another one.
    both = shapes.backbone.velocity(z_t.repeat(2, 1, 1, 1), time(0.5), [NULL] * 2 + c)
    null, prompted = both.chunk(2)
    torch.testing.assert_close(u, null + 2 * (prompted - null), rtol=0, atol=1e-5)


def test_guided_rollouts_have_a_value_of_their_own(shapes):
    reward, c, t = shapes.reward("clip"), list(shapes.prompts[:2]), time(0.5)
    guided = monte_carlo(shapes, reward, kernel="flow_grpo", steps=12, guidance=2.0)
    assert str(guided.target) == "mean | flow_grpo, 12 steps, CFG 2"
    assert guided.target.posterior == "model"
    reversal = monte_carlo(shapes, reward, guidance=3.5)
    assert str(reversal.target) == "mean | reversal, 32 steps, CFG 3.5"
    assert str(monte_carlo(shapes, reward).target) == "mean | prompt"
    with pytest.raises(ValueError, match="expected guidance 1 with the null prompt, got 2"):
        monte_carlo(shapes, reward, posterior="data", guidance=2.0)
    with pytest.raises(ValueError, match="guidance"):  # exact draws are not guided
        monte_carlo(shapes, reward, kernel="exact", guidance=2.0)
    _, z_t = noisy(shapes, 0.5, c)
    one = monte_carlo(shapes, reward, kernel="ode", steps=1, particles=1, guidance=2.0)
    u = CFG(shapes.backbone.velocity, 2.0)(z_t, t, c)
    expected = reward(shapes.backbone.decode(z_t - t * u), c)
    torch.testing.assert_close(one(z_t, t, c), expected, rtol=0, atol=1e-5)


def test_rollouts_on_another_time_grid_are_another_kernel(shapes):
    reward = shapes.reward("clip")
    even, shifted = (
        monte_carlo(shapes, reward, kernel="flow_grpo", steps=12, shift=shift)
        for shift in (1.0, 3.0)
    )
    assert even.target != shifted.target


@pytest.mark.parametrize("posterior", ["data", "prompt"])
def test_the_constant_is_the_truth_of_pure_noise(shapes, posterior):
    reward, c = shapes.reward("clip"), [shapes.prompts[0], shapes.prompts[1]]
    z_t, target = pure_noise(shapes, 2), Target("mean", posterior)
    exact = constant(shapes, reward, posterior=posterior)(z_t, time(0.3), c)
    truth = shapes.truth(reward, target)(z_t, time(1.0), c)
    torch.testing.assert_close(exact, truth, rtol=0, atol=1e-6)
    drawn = constant(shapes, reward, posterior=posterior, draws=100)(z_t, time(0.3), c)
    for row, prompt in enumerate(c):
        bank = shapes.bank(posterior, prompt)
        r = reward.score(next(iter(bank.embeddings.values())), [prompt] * len(bank)).double()
        p = bank.log_weights.softmax(0)
        spread = ((p * r**2).sum() - (p * r).sum() ** 2).sqrt()
        assert abs(drawn[row] - truth[row]) <= SIGMAS * spread / 10 + HALF


# The model's own value at a few latents


@pytest.fixture(scope="session")
def rolled_out(shapes, tmp_path_factory):
    """A reference of few, short rollouts, and its file."""
    path = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "LATENTS": 2,
            "ROLLOUTS": 3,
            "SIGMAS": (0.25, 0.75),
            "STEPS": 2,
        }.items():
            patch.setattr(reference, name, value)
        reference.make(shapes, ("clip", "pick"), path)
    return reference.load(path), path


def test_a_reference_holds_means_of_rollouts(shapes, rolled_out):
    known, _ = rolled_out
    assert known.kernel == "flow_grpo, 2 steps, CFG 2"
    assert known.c == list(shapes.prompts[:2]) * 2
    torch.testing.assert_close(known.t, torch.tensor([0.25, 0.25, 0.75, 0.75]))
    guided = monte_carlo(
        shapes, shapes.reward("clip"), kernel="flow_grpo", steps=2, guidance=2.0, particles=3
    )
    rng = Streams.of(derive(0, "reference"), rows=4)
    with torch.no_grad():
        ended = [
            guided.finish(known.z_t, known.t, known.c, rng.child("rollout", n)) for n in range(3)
        ]
    for name in ("clip", "pick"):
        r = torch.stack([shapes.reward(name)(shapes.backbone.decode(z), known.c) for z in ended])
        torch.testing.assert_close(known.mean[name].float(), r.mean(0), rtol=0, atol=1e-5)
        error = r.std(0) / 3**0.5
        torch.testing.assert_close(known.error[name].float(), error, rtol=0, atol=1e-5)


def test_a_reference_answers_for_its_own_latents_only(shapes, rolled_out):
    known, _ = rolled_out
    truth = ReferenceTruth(known, "clip")
    assert str(truth.target) == f"mean | {known.kernel}"
    torch.testing.assert_close(truth(known.z_t, known.t, known.c), known.mean["clip"].float())
    rows = [3, 0]
    found = truth(known.z_t[rows], known.t[rows], [known.c[row] for row in rows])
    torch.testing.assert_close(found, known.mean["clip"][rows].float())
    found = truth(known.z_t[2:], time(0.75), known.c[2:])  # one time for all
    torch.testing.assert_close(found, known.mean["clip"][2:].float())
    message = "expected one of the 4 latents of the reference, got another at t = "
    with pytest.raises(ValueError, match=message):
        truth(known.z_t + 1e-3, known.t, known.c)
    with pytest.raises(ValueError, match=message):
        truth(known.z_t, known.t.flip(0), known.c)
    with pytest.raises(ValueError, match=message):
        truth(known.z_t, known.t, known.c[::-1])


def test_the_world_knows_the_value_of_its_references_kernel_alone(
    shapes, small, rolled_out, monkeypatch
):
    known, path = rolled_out
    reward = shapes.reward("clip")
    target = Target("mean", "model", kernel=known.kernel)
    for world in (shapes, small):
        monkeypatch.setattr(world, "folder", path.parent)
    assert isinstance(shapes.truth(reward, target), ReferenceTruth)
    assert shapes.reference().kernel == known.kernel
    assert shapes.certainty(reward, target, known.z_t, known.t, known.c) is None
    other = Target("mean", "model", kernel="flow_grpo, 3 steps, CFG 2")
    assert shapes.truth(reward, other) is None
    assert shapes.truth(reward, Target("soft", "model", 1.0, known.kernel)) is None
    assert shapes.truth(Redness(), target) is None
    monkeypatch.setitem(small._rewards, "clip", reward)
    assert small.truth(reward, target) is None
    monkeypatch.setattr(shapes, "folder", path.parent / "nowhere")
    assert shapes.truth(reward, target) is None
    with pytest.raises(FileNotFoundError, match="expected rollouts in .*got no such file"):
        shapes.reference()


def test_rollouts_agree_with_the_shipped_reference(shapes):
    """At one latent of four noise levels, 32 rollouts each, within 4.5 standard errors."""
    if not (shapes.folder / world_module.REFERENCE).is_file():
        pytest.skip("these weights came without reference.safetensors")
    known = shapes.reference()
    rows = [k * reference.LATENTS + k for k in range(4)]
    z_t, t, c = known.z_t[rows], known.t[rows], [known.c[row] for row in rows]
    rollouts = monte_carlo(
        shapes,
        shapes.reward("clip"),
        kernel=reference.KERNEL,
        steps=reference.STEPS,
        guidance=reference.GUIDANCE,
        particles=32,
    )
    assert rollouts.target.kernel == known.kernel
    assert len(set(t.tolist())) == 4
    with torch.no_grad():
        rewards = rollouts.rewards(z_t, t, c, Streams.of(9, "agree", rows=4)).double()
    error = (rewards.var(0) / 32 + known.error["clip"][rows] ** 2).sqrt()
    assert bool(((rewards.mean(0) - known.mean["clip"][rows]).abs() <= 4.5 * error).all())


# Images to learn from


def test_images_are_of_other_splits_than_what_is_tested(shapes):
    """The same whenever asked, whatever the count; every caption is true."""
    found = {split: list(shapes.images(split, 300)) for split in ("train", "held")}
    for split, of in (("train", "train"), ("held", "tune")):
        scenes = draw(of, 300)
        x_0 = torch.cat([part.x_0 for part in found[split]])
        c = [caption for part in found[split] for caption in part.c]
        assert torch.equal(x_0, render(scenes))
        assert all(holds(parse(text), scene) for text, scene in zip(c, seen(scenes), strict=True))
        again = next(iter(shapes.images(split, 100)))
        assert torch.equal(again.x_0, x_0[:100])
        assert list(again.c) == c[:100]
    assert not torch.equal(found["train"][0].x_0, found["held"][0].x_0)


# Going on from the weights


def test_stages_can_be_taken_from_the_weights_and_trained_further(shapes, tmp_path):
    build.adopt(SHIPPED, tmp_path, ("large",))
    assert build.missing(tmp_path) == ["large"]
    model = Generator(LARGE)
    generator._load(model, tmp_path / "large" / "start")
    z_t, t, c = pure_noise(shapes, 2), time(0.4), list(shapes.prompts[:2])
    ids = torch.tensor(tokenizer()(c, padding="max_length")["input_ids"])
    with torch.no_grad():
        same = model.eval()(z_t, t.expand(2), ids)
    torch.testing.assert_close(same, shapes.backbone.velocity(z_t, t, c), rtol=0, atol=1e-5)
    (tmp_path / "vae" / "model" / "mine").touch()
    build.adopt(SHIPPED, tmp_path)  # what is there stays
    assert (tmp_path / "vae" / "model" / "mine").exists()
    assert not (tmp_path / "large" / "model").exists()
    with pytest.raises(ValueError, match=r"expected stages to train further in .*got \['vae'\]"):
        build.adopt(SHIPPED, tmp_path, ("vae",))


# What the project promises of the networks


def test_quality_of_the_autoencoders(shapes):
    x = render(draw("eval", 128))
    with torch.no_grad():
        z_0 = shapes.backbone.encode(x)
        assert float(psnr(x, shapes.backbone.decode(z_0)).mean()) >= 30
        assert float(psnr(x, shapes.tiny.decode(z_0)).mean()) >= 26


def test_quality_of_latents(shapes):
    """Mean 0 and variance 1, as the noise they are mixed with."""
    with torch.no_grad():
        z_0 = shapes.backbone.encode(render(draw("eval", 64)))
    assert abs(float(z_0.mean())) < 0.1
    assert float(z_0.std()) == pytest.approx(1, abs=0.1)


def test_quality_of_draws(shapes):
    """Clean latents of a prompt decode to what it says."""
    c = [prompt for prompt in shapes.prompts[:12] for _ in range(4)]
    z_0 = shapes.draw(c, Streams.of(2, "quality", rows=len(c)))
    assert float(correct(shapes.pictures(z_0), c).float().mean()) >= 0.9


@torch.no_grad()
def test_quality_of_clip(shapes):
    held, reward = Told(draw("eval", 300)), shapes.reward("clip")
    rng = torch.Generator().manual_seed(1)
    texts = [held.caption(row, rng) for row in range(300)]
    e = reward.tail(reward.head(render(held.scenes), 1), 1).embedding
    assert float(recalled(e, reward.texts(texts), held.true(texts)).float().mean()) >= 0.9


@torch.no_grad()
def test_quality_of_the_aesthetic_reward(shapes):
    scenes = draw("eval", 500)
    r = shapes.reward("aesthetic")(render(scenes), ["a circle"] * 500)
    assert float(scipy.stats.spearmanr(r, rating(scenes)).statistic) >= 0.85


@torch.no_grad()
def test_quality_of_hps(shapes):
    """The share of 1024 pairs on which it agrees with a rater, less three standard errors."""
    reward, held = shapes.reward("hps"), Told(draw("eval", 1024))
    x, texts, _, chosen = pairs(held, graded, 1024, torch.Generator().manual_seed(2))
    a, b = (reward(side, texts) for side in x.chunk(2))
    share = float(((a > b) == chosen).float().mean())
    assert share + 3 * (share * (1 - share) / 1024) ** 0.5 >= 0.85
