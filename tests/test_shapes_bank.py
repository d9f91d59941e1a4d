"""The bank of the shapes world against brute force, and the training code without its training."""

import json
import math
from dataclasses import fields, replace
from functools import cache

import pytest
import scipy.stats
import torch
from torch import nn

from bench.meter import Live
from bench.worlds.shapes import bank as bank_module
from bench.worlds.shapes import banks as banks_module
from bench.worlds.shapes import weights
from bench.worlds.shapes.bank import Bank, _move, pick
from bench.worlds.shapes.banks import narrated
from bench.worlds.shapes.build import STAGES, build, missing
from bench.worlds.shapes.captions import KIND_NAMES, holds, parse, possible, seen, told
from bench.worlds.shapes.conditional import draw_for
from bench.worlds.shapes.make import fit as fit_module
from bench.worlds.shapes.make import preference
from bench.worlds.shapes.make.aesthetic import features
from bench.worlds.shapes.make.clip import JUDGE, Told, architecture, contrastive, recalled
from bench.worlds.shapes.make.export import card
from bench.worlds.shapes.make.fit import Recipe, fit
from bench.worlds.shapes.make.generator import _mixed
from bench.worlds.shapes.make.preference import graded, pairs, pleased
from bench.worlds.shapes.make.reader import CLASSES, NOTHING, heard
from bench.worlds.shapes.make.words import END, LENGTH, SPECIAL, UNKNOWN, tokenizer
from bench.worlds.shapes.prompts import prompt_set, training_set
from bench.worlds.shapes.ratings import (
    BROKEN,
    DOUBT,
    LIKING,
    MEANS,
    RATER,
    RATERS,
    SPREADS,
    WEAR,
    composition,
    rated,
    rating,
    tamper,
    wear,
)
from bench.worlds.shapes.scenes import GAP, Scenes, draw, render
from stitchvm.path import noise
from stitchvm.streams import Streams

LATENT = (2, 2, 1)
TIMES = (0.05, 0.3, 0.7, 0.95)
LAMBDAS = (None, 0.5, 6.0)
SIGMAS = 4.0  # standard errors that a mean may be off


def bank_of(members, *, seed=0, equal=False):
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(members, *LATENT, generator=rng, dtype=torch.float64)
    log_weights = torch.randn(members, generator=rng, dtype=torch.float64)
    return Bank(latents, torch.zeros(members).double() if equal else log_weights, {})


def rewards_of(bank, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(len(bank), generator=rng, dtype=torch.float64)


def noisy(bank, t, rows, seed=2):
    """Latents of the bank's members noised to t, and which members they were."""
    rng = Streams.of(seed, "noisy", rows=rows)
    z_0 = bank.prior(rng.child("z_0"))
    z_t = noise(z_0, torch.as_tensor(t, dtype=torch.float64), rng.child("eps").normal(z_0))
    return z_t, (z_0[:, None] == bank.latents).flatten(2).all(2).int().argmax(1)


def by_hand(bank, z, t, rewards, lam):
    """Posterior weights and value of one latent, in plain Python."""
    logs = []
    for log_p, member in zip(bank.log_weights.tolist(), bank.latents, strict=True):
        gap = (z - (1 - t) * member).flatten().tolist()
        logs.append(log_p - sum(x * x for x in gap) / (2 * t * t))
    w = [math.exp(x - max(logs)) for x in logs]
    w = [x / math.fsum(w) for x in w]
    if lam is None:
        return w, math.fsum(a * r for a, r in zip(w, rewards.tolist(), strict=True))
    soft = math.fsum(a * math.exp(lam * r) for a, r in zip(w, rewards.tolist(), strict=True))
    return w, math.log(soft) / lam


def within(draws, expected):
    """Whether a mean of independent draws lies within SIGMAS standard errors of a number."""
    draws = draws.double()
    return abs(draws.mean() - expected) <= SIGMAS * draws.std() / len(draws) ** 0.5


# The posterior and the value


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("one_time", [True, False])
def test_posterior_and_value_are_those_computed_by_hand(lam, one_time):
    bank = bank_of(9)
    rewards = rewards_of(bank)
    t = torch.tensor(0.4 if one_time else TIMES, dtype=torch.float64)
    z_t, _ = noisy(bank, t, len(TIMES))
    found, values = bank.log_posterior(z_t, t).exp(), bank.value(z_t, t, rewards, lam)
    assert found.shape == (len(TIMES), 9)
    assert values.shape == (len(TIMES),)
    for row, time in enumerate(t.expand(len(TIMES)).tolist()):
        w, value = by_hand(bank, z_t[row], time, rewards, lam)
        torch.testing.assert_close(found[row], found.new_tensor(w), rtol=0, atol=1e-10)
        assert float(values[row]) == pytest.approx(value, abs=1e-10)


def test_each_row_may_have_its_own_rewards():
    bank, t = bank_of(9), torch.tensor(TIMES, dtype=torch.float64)
    z_t, _ = noisy(bank, t, len(TIMES))
    rewards = torch.stack([rewards_of(bank, seed) for seed in range(len(TIMES))])
    together = bank.value(z_t, t, rewards, None)
    one_by_one = [bank.value(z_t[k : k + 1], t[k], rewards[k], None) for k in range(len(TIMES))]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=0, atol=1e-14)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_gradient_equals_central_differences(lam):
    bank, t = bank_of(9), torch.tensor(TIMES, dtype=torch.float64)
    rewards, step = rewards_of(bank), 1e-5
    z_t, _ = noisy(bank, t, len(TIMES))
    z_t.requires_grad_()
    (found,) = torch.autograd.grad(bank.value(z_t, t, rewards, lam).sum(), z_t)
    along = torch.eye(math.prod(LATENT), dtype=torch.float64).unflatten(1, LATENT)
    for direction in along:
        up, down = (bank.value(z_t + s * step * direction, t, rewards, lam) for s in (1, -1))
        expected = (up - down).detach() / (2 * step)
        got = (found * direction).flatten(1).sum(1)
        scale = float(expected.abs().max().clamp(min=1))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("lam", [None, 2.0])
def test_rows_in_parts_change_no_number(lam, monkeypatch):
    bank, t = bank_of(9), torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    z_t, _ = noisy(bank, t, len(t))

    def everything():
        z = z_t.clone().requires_grad_()
        value = bank.value(z, t, rewards_of(bank), lam)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        certainty = bank.certainty(z_t, t, rewards_of(bank), lam)
        drawn = bank.draw(z_t, t, Streams.of(0, "parts", rows=len(t)))
        return value.detach(), gradient, *certainty, drawn

    whole = everything()
    monkeypatch.setattr(bank_module, "AT_ONCE", 2 * len(bank))
    for one, part in zip(whole, everything(), strict=True):
        torch.testing.assert_close(part, one, rtol=0, atol=1e-13)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    bank = bank_of(4000)
    rewards, t = rewards_of(bank), torch.tensor(0.5, dtype=torch.float64)
    monkeypatch.setattr(bank_module, "AT_ONCE", 4 * len(bank))
    peaks = []
    for rows in (4, 64):
        z_t = torch.randn(rows, *LATENT, dtype=torch.float64, requires_grad=True)
        live = Live(iter([z_t, t, rewards, bank.latents, bank.log_weights]))
        with live:
            torch.autograd.grad(bank.value(z_t, t, rewards, None).sum(), z_t)
        peaks.append(live.peak)
    assert peaks[1] < 1.2 * peaks[0]


def test_a_clean_member_is_worth_its_own_reward():
    bank = bank_of(9)
    rewards = rewards_of(bank)
    for t in (0.0, 1e-6, 1e-3):
        time = torch.tensor(t, dtype=torch.float64)
        for lam in LAMBDAS:
            value = bank.value((1 - t) * bank.latents, time, rewards, lam)
            torch.testing.assert_close(value, rewards, rtol=0, atol=1e-10)


def test_pure_noise_is_worth_the_prior_mean():
    bank, t = bank_of(9), torch.tensor(1.0, dtype=torch.float64)
    rewards, z_t = rewards_of(bank), torch.randn(5, *LATENT, dtype=torch.float64)
    p = bank.log_weights.exp() / bank.log_weights.exp().sum()
    expected = {None: (p * rewards).sum(), 2.0: (p * (2 * rewards).exp()).sum().log() / 2}
    for lam, value in expected.items():
        found = bank.value(z_t, t, rewards, lam)
        torch.testing.assert_close(found, value.expand(5), rtol=0, atol=1e-12)


def test_values_come_in_the_latents_dtype():
    bank, t = bank_of(9), torch.tensor(0.5)
    z_t = noisy(bank, 0.5, 3)[0]
    value = bank.value(z_t.float(), t, rewards_of(bank), None)
    assert value.dtype == torch.float32
    exact = bank.value(z_t, t.double(), rewards_of(bank), None)
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-5)


# How well it is known


@pytest.mark.parametrize("lam", LAMBDAS)
def test_certainty_is_what_it_says(lam):
    """1 / sum w^2, and the squared move from either half of the members to all, by their own V."""
    bank, t = bank_of(10), torch.tensor(TIMES, dtype=torch.float64)
    rewards = rewards_of(bank)
    z_t, _ = noisy(bank, t, len(TIMES))
    members, variance = bank.certainty(z_t, t, rewards, lam)
    w, whole = bank.log_posterior(z_t, t).exp(), bank.value(z_t, t, rewards, lam)
    torch.testing.assert_close(members, 1 / w.pow(2).sum(1), rtol=1e-12, atol=0)
    expected = torch.zeros(len(TIMES), dtype=torch.float64)
    for half in (0, 1):
        part = Bank(bank.latents[half::2], bank.log_weights[half::2], {})
        moved = part.value(z_t, t, rewards[half::2], lam) - whole
        expected += w[:, half::2].sum(1) * moved**2
    torch.testing.assert_close(variance, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(_move(w.log(), rewards, lam), expected, rtol=1e-9, atol=1e-14)


def test_effective_members_lie_between_one_and_all():
    bank = bank_of(50, equal=True)
    rewards = rewards_of(bank)
    for t in (0.0, *TIMES):
        z_t, _ = noisy(bank, t, 20)
        members, _ = bank.certainty(z_t, torch.tensor(t).double(), rewards, None)
        assert bool(((members >= 1 - 1e-9) & (members <= 50 + 1e-9)).all())
    members, _ = bank.certainty(z_t, torch.tensor(1.0), rewards, None)
    torch.testing.assert_close(members, torch.full_like(members, 50.0), rtol=1e-9, atol=0)
    members, _ = bank.certainty(bank.latents, torch.tensor(1e-3), rewards, None)
    torch.testing.assert_close(members, torch.ones_like(members), rtol=1e-9, atol=0)


# Draws


@pytest.mark.parametrize("t", TIMES)
def test_the_value_is_right_on_average(t):
    """Of members noised to t, V is their reward on average, and exp(lambda V) its exponential."""
    bank, lam = bank_of(20), 2.0
    rewards, time = rewards_of(bank), torch.tensor(t, dtype=torch.float64)
    z_t, which = noisy(bank, t, 3000)
    gap = bank.value(z_t, time, rewards, None) - rewards[which]
    assert within(gap, 0)
    gap = (lam * bank.value(z_t, time, rewards, lam)).exp() - (lam * rewards[which]).exp()
    assert within(gap, 0)
    prior = (bank.log_weights.softmax(0) * rewards).sum()
    assert within(bank.value(z_t, time, rewards, None), prior)


@pytest.mark.parametrize("t", [0.4, 0.8])
def test_draws_follow_the_posterior(t):
    bank, rows, time = bank_of(6), 4000, torch.tensor(t, dtype=torch.float64)
    z_t = noisy(bank, t, 1, seed=5)[0].expand(rows, *LATENT)
    drawn = bank.draw(z_t, time, Streams.of(3, "draws", rows=rows))
    count = (drawn[:, None] == bank.latents).flatten(2).all(2).sum(0)
    assert int(count.sum()) == rows  # members all
    p = bank.log_posterior(z_t[:1], time).exp()[0]
    for of, share in zip(count.tolist(), p.tolist(), strict=True):
        assert abs(of - rows * share) <= SIGMAS * (rows * share * (1 - share)) ** 0.5 + 1e-6


def test_the_prior_follows_the_weights():
    bank, rows = bank_of(5), 4000
    drawn = bank.prior(Streams.of(4, "prior", rows=rows))
    count = (drawn[:, None] == bank.latents).flatten(2).all(2).sum(0)
    expected = rows * bank.log_weights.softmax(0)
    assert scipy.stats.chisquare(count.numpy(), expected.numpy()).pvalue > 1e-4


def test_a_draw_depends_on_its_stream_alone():
    bank, t = bank_of(30), torch.tensor(0.9, dtype=torch.float64)
    z_t = noisy(bank, 0.9, 8)[0]
    rng = Streams.of(5, "alone", rows=8)
    together = bank.draw(z_t, t, rng)
    for row in range(8):
        alone = bank.draw(z_t[row : row + 1], t, Streams(rng.seeds[row : row + 1]))
        assert torch.equal(alone[0], together[row])


class Uniforms(Streams):
    """Streams whose next uniform draws are given."""

    def __init__(self, values):
        super().__init__(range(len(values)))
        self.values = torch.tensor(values, dtype=torch.float64)

    def uniform(self, dtype=torch.float64):
        return self.values.to(dtype)


LAST = 1 - 2.0**-53  # the largest uniform draw


@pytest.mark.parametrize(
    ("p", "u", "expected"),
    [
        ([1.0], 0.0, 0),
        ([1.0], LAST, 0),
        ([0.25, 0.5, 0.25], 0.1, 0),
        ([0.25, 0.5, 0.25], 0.26, 1),
        ([0.25, 0.5, 0.25], 0.76, 2),
        ([1.0, 2.0, 1.0], 0.26, 1),  # need not sum to one
        ([1.0, 0.0, 0.0], LAST, 0),
        ([0.0, 1.0, 0.0], LAST, 1),
        ([0.0, 1.0, 0.0], 1e-9, 1),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.1] * 10, LAST, 9),
    ],
)
def test_picks(p, u, expected):
    """Never an index of probability zero, whatever the draw."""
    rows = torch.tensor([p, p], dtype=torch.float64)
    assert pick(rows, Uniforms([u, u])).tolist() == [expected] * 2


# Scenes of which a caption is true

CAPTIONS = ("a circle", "two circles", "a circle and a square", "a circle left of a square")
PRIOR_SCENES = 25_000


@cache
def prior_scenes():
    scenes = draw("bank", PRIOR_SCENES)
    return scenes, seen(scenes)


def statistics(scenes):
    """What is compared of scenes with equally many objects, (B, 9)."""
    there = scenes.present
    kind = 10 * scenes.colour + scenes.shape
    first_is_circle = scenes.shape[:, 0] == 0
    second = scenes.n > 1
    columns = [
        ((kind == kind[:, :1]) | ~there).all(1),
        (scenes.size * there).sum(1) / scenes.n,
        first_is_circle,
        scenes.x[:, 0],
        scenes.y[:, 0],
        scenes.x[:, 0] ** 2 + scenes.y[:, 0] ** 2,
        second * (scenes.x[:, 1] - scenes.x[:, 0]).abs(),
        second * torch.where(first_is_circle, 1, -1) * (scenes.x[:, 1] - scenes.x[:, 0]),
        scenes.colour[:, 0].float(),
    ]
    return torch.stack([c.double() for c in columns], 1)


@pytest.mark.parametrize("text", CAPTIONS)
def test_scenes_for_a_caption_are_those_of_the_prior_where_it_holds(text):
    caption = parse(text)
    scenes, views = prior_scenes()
    kept = torch.tensor([len(s.things) == caption.count and holds(caption, s) for s in views])
    rejection, drawn = scenes[kept], draw_for(caption, "bank", 1500)
    assert len(drawn) == 1500
    assert all(holds(caption, s) for s in seen(drawn))
    a, b = statistics(drawn), statistics(rejection)
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    gap = (a.mean(0) - b.mean(0)).abs()
    assert len(b) > 100
    assert bool((gap <= SIGMAS * error + 1e-12).all()), (gap / error).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "three small blue rings",
        "a large red square above a small cyan cross",
        "two rings and a circle",
        "a small circle on a dark background",
        "a yellow cross at the top",
        "a circle , a square and a triangle",
    ],
)
def test_every_scene_for_a_caption_satisfies_it(text):
    scenes = draw_for(parse(text), "bank", 40)
    assert all(holds(parse(text), s) for s in seen(scenes))
    told_of = [told(s).get(text, 0.0) for s in seen(scenes)]
    assert min(told_of) > 0


def test_the_first_scenes_for_a_caption_are_the_same_whatever_the_count():
    few, many = (draw_for(parse("two circles"), "bank", count) for count in (5, 700))
    for f in fields(Scenes):
        assert torch.equal(getattr(few, f.name), getattr(many, f.name)[:5])
    other = draw_for(parse("two circles"), "bank", 5, seed=1)
    assert not torch.equal(other.x, few.x)


def test_a_caption_of_held_out_kinds_is_refused():
    with pytest.raises(ValueError, match="expected a caption of kinds that 'bank' has"):
        draw_for(parse("a red ring"), "bank", 1)


def test_three_phrases_with_sizes_are_no_caption():
    """No scene is told so, and such a sentence would be longer than the tokenizer's."""
    with pytest.raises(ValueError, match="expected a caption such as"):
        parse("a small circle , a large square and a small ring")


# Prompts


def test_prompt_sets_are_disjoint_and_the_kinds_take_turns():
    tune, evaluation = prompt_set("tune", 6), prompt_set("eval", 6)
    assert not set(tune) & set(evaluation)
    for prompts in (tune, evaluation):
        assert len(set(prompts)) == len(prompts) == 6 * len(KIND_NAMES)
        captions = [parse(text) for text in prompts]
        assert [c.kind for c in captions] == list(KIND_NAMES) * 6
        assert all(possible(c) and not c.background and not c.place for c in captions)
    assert prompt_set("eval", 2) == evaluation[: 2 * len(KIND_NAMES)]
    assert prompt_set("tune", 4) == tune[: 4 * len(KIND_NAMES)]


def test_training_prompts_are_neither_chosen_by_nor_judged():
    found = training_set(120)
    assert len(set(found)) == 120
    assert not set(found) & {*prompt_set("tune", 4), *prompt_set("eval", 6)}
    assert {parse(text).kind for text in found} == set(KIND_NAMES)
    assert training_set(40) == found[:40]


def test_an_unknown_prompt_set_is_named():
    with pytest.raises(ValueError, match="expected the tune or eval prompts, got 'test'"):
        prompt_set("test")


# Weights


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "model.safetensors").write_bytes(b"numbers")
    (tmp_path / "README.md").write_text("read me")
    return tmp_path


def test_signed_weights_verify(folder):
    version = weights.sign(folder)
    assert len(version) == 16
    assert int(version, 16) >= 0
    assert weights.verify(folder) == weights.version(folder) == version
    assert weights.sign(folder) == version  # the digests themselves are not signed
    listed = json.loads((folder / weights.DIGESTS).read_text())
    assert sorted(listed) == ["README.md", "large/model.safetensors"]


def test_other_weights_are_another_version(folder):
    before = weights.sign(folder)
    (folder / "large" / "model.safetensors").write_bytes(b"other numbers")
    assert weights.sign(folder) != before
    renamed = folder / "large" / "renamed.safetensors"
    (folder / "large" / "model.safetensors").rename(renamed)
    renamed.write_bytes(b"numbers")
    assert weights.sign(folder) != before


def test_missing_weights_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="weights in .*got no digests.json there"):
            weights.verify(folder)


def test_a_missing_file_is_named(folder):
    weights.sign(folder)
    (folder / "large" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected large/model.safetensors in .*no such"):
        weights.verify(folder)


def test_a_changed_file_is_named(folder):
    weights.sign(folder)
    (folder / "README.md").write_text("read me again")
    with pytest.raises(ValueError, match=r"README.md with digest .* changed after it was signed"):
        weights.verify(folder)


# Banks' folders


def test_only_long_work_is_announced(monkeypatch, capsys):
    assert list(narrated(range(5), "bank")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    ticks = iter(range(0, 1000, 20))
    monkeypatch.setattr(banks_module.time, "monotonic", lambda: next(ticks))
    assert list(narrated(range(3), "bank")) == [0, 1, 2]
    told_first, *_ = capsys.readouterr().err.splitlines()
    assert told_first == "making the bank, once: 33%, about 1.3 min left"


# What imagined people think


@cache
def scenes_of(split, count):
    return draw(split, count)


def test_ratings_are_standardised():
    scenes = prior_scenes()[0]
    assert abs(float(rating(scenes).mean()) - 5) < 0.1
    assert 1.0 < float(rating(scenes).std()) < 1.6
    for name, values in composition(scenes).items():
        assert abs(float(values.mean()) - MEANS[name]) < 0.1 * SPREADS[name]
        assert float(values.std()) == pytest.approx(SPREADS[name], rel=0.1)


def test_raters_differ_by_their_noise():
    scenes = prior_scenes()[0]
    noise = rated(scenes, torch.Generator().manual_seed(0)) - rating(scenes)
    assert within(noise, 0)
    assert float(noise.std()) == pytest.approx(RATER / RATERS**0.5, rel=0.03)


def test_composition_of_one_scene_by_hand():
    """One red circle of radius 6 at (8, 0) on mid grey."""
    scene = scenes_of("train", 1)
    scene = replace(
        scene,
        n=torch.tensor([1]),
        colour=torch.tensor([[0, 3, 3]]),
        shape=torch.zeros(1, 3, dtype=torch.long),
        radius=torch.full((1, 3), 6.0),
        x=torch.tensor([[8.0, 1.0, 1.0]]),
        y=torch.zeros(1, 3),
        rgb=torch.full((1, 3, 3), 0.9),
        grey=torch.full((1, 3), 0.5),
    )
    found = {k: float(v) for k, v in composition(scene).items()}
    area = 3.14 * 36 / 32**2
    expected = {"fill": area, "warmth": 1.0, "contrast": 0.4, "balance": 0.5}
    assert found == pytest.approx(expected, abs=1e-6)


def test_tampering_changes_about_two_scenes_in_three():
    scenes = scenes_of("train", 6000)
    out = tamper(scenes, torch.Generator().manual_seed(0))
    changed = torch.zeros(len(scenes), dtype=torch.bool)
    for f in fields(Scenes):
        differs = getattr(out, f.name) != getattr(scenes, f.name)
        changed |= differs.reshape(len(scenes), -1).any(1)
    assert 0.6 < float(changed.float().mean()) < 2 / 3 + 0.02
    assert bool(((out.n >= 1) & (out.n <= scenes.n)).all())
    assert int(out.n.max()) == 3
    centres = torch.stack([out.x, out.y], -1)
    apart = torch.cdist(centres, centres) - out.radius[:, :, None] - out.radius[:, None]
    both = out.present[:, :, None] & out.present[:, None] & ~torch.eye(3, dtype=torch.bool)
    assert bool((apart[both] >= GAP - 1e-4).all())
    assert bool(((out.rgb >= 0) & (out.rgb <= 1)).all())


def test_wear_of_degree_zero_leaves_pictures_as_they_are():
    x = render(scenes_of("train", 300))
    worn, degree = wear(x, torch.Generator().manual_seed(0))
    untouched = degree == 0
    assert 0.2 < float(untouched.float().mean()) < 0.4
    assert torch.equal(worn[untouched], x[untouched])
    moved = (worn - x).abs().flatten(1).mean(1)
    assert bool((moved[degree > 0.1] > 1e-3).all())
    assert bool(((worn >= -1) & (worn <= 1)).all())
    assert bool(((degree >= 0) & (degree <= 1)).all())


# The training loop


def regression(step_of_failure=None):
    """A linear map to learn, and a loss that may break off at a step."""
    torch.manual_seed(0)
    model, aim = nn.Linear(3, 2), torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])

    def loss(model, step, rng):
        if step == step_of_failure:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=rng)
        return (model(x) - x @ aim.T).pow(2).mean()

    def check(model, step):
        error = float((model.weight - aim).detach().pow(2).mean())
        return {"score": -error, "error": error}

    return model, loss, check


RECIPE = Recipe(steps=40, rate=3e-2, warmup=5, average=8.0, check_every=10)


def log_of(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(r).items() if k != "seconds"} for r in lines]


@pytest.mark.parametrize("broken_at", [1, 17, 20, 39])
@pytest.mark.parametrize("save_every", [0.0, 1e9])
@pytest.mark.parametrize("muon", [None, "weight"])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    broken_at, save_every, muon, tmp_path, monkeypatch
):
    """To the last bit, whether every step was saved or none before the end."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY", save_every)
    recipe = replace(RECIPE, muon=muon)
    model, loss, check = regression()
    records = list(fit(model, loss, check, recipe, tmp_path / "whole", 7))
    assert [r["step"] for r in records] == [10, 20, 30, 40]
    other, breaking, _ = regression(broken_at)
    with pytest.raises(KeyboardInterrupt):
        list(fit(other, breaking, check, recipe, tmp_path / "broken", 7))
    again, loss, check = regression()
    list(fit(again, loss, check, recipe, tmp_path / "broken", 7))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_muon_trains_the_matrices_that_the_recipe_names(tmp_path):
    ends = {}
    for muon in (None, "weight", "no such matrix"):
        model, loss, check = regression()
        list(fit(model, loss, check, replace(RECIPE, muon=muon), tmp_path / str(muon), 7))
        ends[muon] = model
    assert torch.equal(ends["no such matrix"].weight, ends[None].weight)
    assert not torch.allclose(ends["weight"].weight, ends[None].weight, atol=1e-3)


def test_matrix_products_run_in_bfloat16_but_attention_does_not(tmp_path):
    met = []

    def loss(model, step, rng):
        h = model(torch.randn(4, model.in_features, generator=rng))
        q = h[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(q, q, value=q)
        met.append((h.dtype, attended.dtype))
        return attended.pow(2).mean()

    for bf16 in (True, False):
        model, _, check = regression()
        list(fit(model, loss, check, replace(RECIPE, steps=1, bf16=bf16), tmp_path / str(bf16), 7))
    assert met == [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]


def test_a_run_stopped_at_a_record_logs_it_once(tmp_path):
    """The caller may stop listening at any record."""
    model, loss, check = regression()
    for record in fit(model, loss, check, RECIPE, tmp_path, 7):
        if record["step"] == 20:
            break
    again, loss, check = regression()
    list(fit(again, loss, check, RECIPE, tmp_path, 7))
    assert [r["step"] for r in log_of(tmp_path)] == [10, 20, 30, 40]


def test_a_finished_run_gives_its_weights_again(tmp_path):
    model, loss, check = regression()
    list(fit(model, loss, check, RECIPE, tmp_path, 7))
    again, loss, check = regression()
    assert list(fit(again, loss, check, RECIPE, tmp_path, 7)) == []
    assert torch.equal(again.weight, model.weight)
    assert not again.training
    assert not again.weight.requires_grad


def test_the_weights_of_the_best_check_are_kept(tmp_path):
    model, loss, _ = regression()
    scores, met = iter([0.1, 0.9, 0.5, 0.3]), []

    def check(model, step):
        met.append(model.weight.detach().clone())
        return {"score": next(scores)}

    list(fit(model, loss, check, RECIPE, tmp_path, 7))
    assert torch.equal(model.weight, met[1])
    assert not torch.equal(model.weight, met[3])


def test_what_is_checked_is_the_average_of_the_weights(tmp_path):
    """After s steps by Recipe.average, never more than a tenth of the past: by hand."""
    model, loss, _ = regression()
    average, met = model.weight.detach().clone(), []
    own = []

    def watched(model, step, rng):
        own.append(model.weight.detach().clone())
        return loss(model, step, rng)

    def check(model, step):
        assert step == len(own)
        met.append(model.weight.detach().clone())
        return {"score": 0.0}

    list(fit(model, watched, check, replace(RECIPE, check_every=5), tmp_path, 7))
    for step, value in enumerate(own[1:], 1):
        keep = min(0.5 ** (1 / RECIPE.average), 1 - 10 / (step + 10))
        average = keep * average + (1 - keep) * value
        if step % 5 == 0:
            torch.testing.assert_close(met[step // 5 - 1], average, rtol=0, atol=1e-6)


def test_a_folder_of_another_seed_is_refused(tmp_path):
    model, loss, check = regression()
    list(fit(model, loss, check, RECIPE, tmp_path, 7))
    again, loss, check = regression()
    with pytest.raises(ValueError, match=r"expected a run of seed 8 in .*, got 7"):
        list(fit(again, loss, check, RECIPE, tmp_path, 8))


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    recipe = Recipe(steps=1000, rate=2e-3, warmup=100)
    assert recipe.rate_at(0) == pytest.approx(2e-5)
    assert recipe.rate_at(99) == pytest.approx(2e-3)
    assert recipe.rate_at(100) == pytest.approx(2e-3)
    assert recipe.rate_at(550) == pytest.approx(2e-3 * (0.01 + 0.99 / 2))
    assert recipe.rate_at(1000) == pytest.approx(2e-5)
    rates = [recipe.rate_at(step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)
    assert Recipe(steps=10, rate=1.0, warmup=0).rate_at(0) == 1.0


# Words


def test_what_has_been_said_at_every_word():
    caption = "a small red ring left of a blue cross on a dark background"
    words = [None, *caption.split()]
    labels = heard(caption)
    told = [
        [None if k == 0 else known[k - 1] for known, k in zip(CLASSES * 2, row, strict=True)]
        for row in labels[1 : len(words)].tolist()
    ]
    nothing = [None] * len(CLASSES)
    assert told[3] == ["a", "small", "red", "ring", None, None, None, *nothing]
    assert told[5] == [*nothing, "a", "small", "red", "ring", "left", None, "left"]
    assert told[8][:4] == ["a", None, "blue", "cross"]
    assert told[8][7:] == ["a", "small", "red", "ring", "left", None, "left"]
    assert told[12] == ["a", *[None] * 4, "dark", None, "a", None, "blue", "cross", *[None] * 3]
    assert (labels[[0, *range(len(words), LENGTH)]] == NOTHING).all()


def test_scenes_of_several_kinds_are_found():
    scenes = draw("tune", 400)
    kinds = [{(t.colour, t.shape) for t in scene.things} for scene in seen(scenes)]
    assert _mixed(scenes).tolist() == [len(k) > 1 for k in kinds]


@cache
def captioned(count=500):
    return sorted({text for scene in seen(draw("tune", count)) for text in told(scene)})


def test_every_caption_is_made_of_known_words_and_fits():
    words, texts = tokenizer(), captioned()
    batch = words(texts, padding="max_length")["input_ids"]
    assert {len(ids) for ids in batch} == {LENGTH}
    pad, unknown, begin, end = range(len(SPECIAL))
    for ids, text in zip(batch, texts, strict=True):
        said = [i for i in ids if i != pad]
        assert unknown not in ids
        assert said[0] == begin
        assert said[-1] == end  # so nothing was cut off
        assert len(said) == len(text.split()) + 2
        assert ids[len(said) :] == [pad] * (LENGTH - len(said))


def test_unknown_words_are_unknown():
    words = tokenizer()
    ids = words("a mauve circle")["input_ids"]
    assert ids.count(words.unk_token_id) == 1
    assert words.convert_ids_to_tokens(ids)[2] == UNKNOWN
    assert words("")["input_ids"] == [words.bos_token_id, words.eos_token_id]


def test_a_text_is_pooled_at_its_end():
    torch.manual_seed(0)
    text, words = architecture(JUDGE).text_model.eval(), tokenizer()
    batch = words(["a circle", "two small red rings and a cross", ""], padding="max_length")
    ids = torch.tensor(batch["input_ids"])
    with torch.no_grad():
        out = text(ids)
    end = [row.index(words.convert_tokens_to_ids(END)) for row in ids.tolist()]
    assert torch.equal(out.pooler_output, out.last_hidden_state[torch.arange(3), end])


# Rewards in the making


@cache
def told_scenes():
    return Told(draw("tune", 200))


def test_recall_is_of_the_nearest_text():
    pictures, texts = torch.eye(3), torch.eye(3)[[1, 2, 0]]
    true = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    assert recalled(pictures, texts, true).tolist() == [True, False, False]


def test_captions_come_as_often_as_the_grammar_makes_them():
    data, rng = told_scenes(), torch.Generator().manual_seed(0)
    drawn = [data.caption(0, rng) for _ in range(2000)]
    for text, p in data.captions[0].items():
        share = drawn.count(text) / 2000
        assert abs(share - p) <= SIGMAS * (p * (1 - p) / 2000) ** 0.5
    assert data.true(drawn[:5])[0].all()
    assert data.tokens(drawn[:5]).shape == (5, LENGTH)


def test_the_contrastive_loss_knows_all_true_pairs():
    """Of embeddings that cannot tell anything: log B either way, however many pairs are true."""

    class Blind(nn.Module):
        logit_scale = torch.tensor(1.0)

        def forward(self, input_ids, pixel_values):
            self.image_embeds = torch.ones(len(pixel_values), 4)
            self.text_embeds = torch.ones(len(input_ids), 4)
            return self

    loss = contrastive(Blind(), told_scenes(), 32, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(math.log(32), abs=1e-5)


def test_features_are_unit_embeddings_and_a_one():
    torch.manual_seed(0)
    x = features(architecture(JUDGE).eval(), scenes_of("train", 6))
    assert x.shape == (6, JUDGE.embedding + 1)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x[:, :-1].norm(dim=1), torch.ones(6).double(), rtol=0, atol=1e-6)
    assert bool((x[:, -1] == 1).all())


def test_raters_choose_by_the_difference_of_utilities():
    data, count, gap = told_scenes(), 4000, 0.1
    utilities = iter([torch.full((count,), gap), torch.zeros(count)])

    def rule(told, rows, texts, rng):
        return torch.zeros(len(rows), 3, 1, 1), next(utilities)

    x, texts, better, chosen = pairs(data, rule, count, torch.Generator().manual_seed(0))
    assert len(x) == 2 * len(texts) == 2 * count
    assert float(better[0]) == pytest.approx(gap)
    assert within(chosen, 1 / (1 + math.exp(-gap / DOUBT)))


def test_utilities_of_untouched_scenes(monkeypatch):
    """Without faults every part holds: `hps` sees wear alone, `pick` the rating alone."""
    monkeypatch.setattr(preference, "tamper", lambda scenes, rng: scenes)
    data, rows = told_scenes(), list(range(60))
    rng = torch.Generator().manual_seed(0)
    texts = [data.caption(row, rng) for row in rows]
    x, utility = graded(data, rows, texts, torch.Generator().manual_seed(1))
    worn, degree = wear(render(data.scenes[:60]), torch.Generator().manual_seed(1))
    assert torch.equal(x, worn)
    torch.testing.assert_close(utility, -WEAR * degree)
    x, utility = pleased(data, rows, texts, rng)
    assert torch.equal(x, render(data.scenes[:60]))
    torch.testing.assert_close(utility, 1 + LIKING * (rating(data.scenes[:60]) - 5))


def test_utilities_of_broken_parts(monkeypatch):
    """A scene of another colour breaks exactly one part of a caption that names it."""
    one = draw_for(parse("a red circle"), "bank", 20)
    other = replace(one, colour=(one.colour + 1) % 6)
    monkeypatch.setattr(preference, "tamper", lambda scenes, rng: other)
    monkeypatch.setattr(preference, "wear", lambda x, rng: (x, torch.zeros(len(x))))
    data, rows, texts = Told(one), list(range(20)), ["a red circle"] * 20
    rng = torch.Generator().manual_seed(0)
    torch.testing.assert_close(graded(data, rows, texts, rng)[1], torch.full((20,), -BROKEN))
    expected = 0.5 + LIKING * (rating(other) - 5)
    torch.testing.assert_close(pleased(data, rows, texts, rng)[1], expected)


# Stages


def test_an_unknown_stage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected stages in \['vae'.*got \['unet'\]"):
        list(build(tmp_path, ("vae", "unet"), 1))


@pytest.mark.parametrize(
    ("stage", "needs"),
    [
        ("large", "vae"),
        ("large", "reader"),
        ("small", "vae"),
        ("tiny", "vae"),
        ("aesthetic", "clip"),
        ("hps", "clip"),
        ("pick", "judge"),
    ],
)
def test_a_stage_without_its_input_is_named(stage, needs, tmp_path):
    if needs != "vae":
        (tmp_path / "vae" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"expected stage '{needs}' to be finished first, got no"):
        list(build(tmp_path, (stage,), 1))
    assert list(STAGES).index(needs) < list(STAGES).index(stage)


def test_finished_stages_are_not_made_again(tmp_path):
    assert missing(tmp_path) == list(STAGES)
    for name in STAGES:
        assert name in missing(tmp_path)
        (tmp_path / name / "model").mkdir(parents=True)
        assert name not in missing(tmp_path)
    assert list(build(tmp_path, (), 1)) == []
    assert missing(tmp_path / "empty", ("clip", "vae")) == ["vae", "clip"]


def test_the_card_adds_up_what_was_trained_further(tmp_path):
    (tmp_path / "logs").mkdir()
    records = [
        {"step": 500, "seconds": 300, "score": -0.7, "velocity_mse": 0.7},
        {"step": 1000, "seconds": 600, "score": -0.5, "velocity_mse": 0.5},
        {"step": 400, "seconds": 240, "score": -0.4, "velocity_mse": 0.4},
        {"step": 800, "seconds": 480, "score": -0.45, "velocity_mse": 0.45},
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (tmp_path / "logs" / "large.jsonl").write_text(text)
    assert "| large | 1800 | 18 | velocity_mse 0.4 |" in card(tmp_path)
