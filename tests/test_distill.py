"""Stage 2: losses by hand, what is trained, resume to the bit, and what is saved."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from together import both
from torch.nn.functional import normalize, smooth_l1_loss

from bench.worlds.shapes import shapes as shapes_world
from bench.worlds.shapes.scenes import draw, render
from stitchvm.backbone import NULL
from stitchvm.distill import CHECKPOINT, Recipe, distill, held_loss, losses
from stitchvm.models import sd3
from stitchvm.path import match_snr
from stitchvm.reward import Features
from stitchvm.search import Settings, search
from stitchvm.stitch import Stitched, StitchLayer
from stitchvm.teacher import prepare
from stitchvm.value import Target, value_and_gradient
from stitchvm.workers import Workers

RECIPE = Recipe(steps=6, batch=8, rate=1e-3, warmup=3)


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def world():
    return shapes_world()


@pytest.fixture(scope="module")
def pictures():
    return render(draw("train", 48))


@pytest.fixture(scope="module")
def interfaces(world, pictures):
    settings = Settings(entries=(1, 2))
    halves = pictures.split(24)
    found = search(world.backbone, world.reward("clip"), halves[:1], halves[1:], settings=settings)
    return found.interfaces


@pytest.fixture(scope="module")
def data(world, pictures):
    return prepare(world.backbone, world.reward("clip"), pictures.split(20))


def student(world, interfaces, *, i=2, j=1, reward="clip", **settings):
    interface = interfaces[i, j]
    layer = StitchLayer(interface.fit, (4, 4), interface.cls).float()
    return Stitched(world.backbone, i, layer, copy.deepcopy(world.reward(reward)), j, **settings)


def noisy(world, rows=3):
    rng = torch.Generator().manual_seed(3)
    z_t = torch.randn(rows, *world.backbone.latent, generator=rng)
    return z_t, torch.tensor([0.2, 0.5, 0.8])[:rows], list(world.prompts[:rows])


# What is learned from


def test_targets_are_the_frozen_rewards(world, pictures, data):
    reward = world.reward("clip")
    with torch.no_grad():
        for rows in torch.arange(48).split(20):
            out = reward.tail(reward.head(pictures[rows], 1), 1)
            assert torch.equal(data.embedding[rows], out.embedding)
            assert torch.equal(data.tokens[rows], out.tokens)
            assert torch.equal(data.z_0[rows], world.backbone.encode(pictures[rows]))
    assert list(data.c) == [NULL] * 48


def test_targets_can_come_from_decoded_latents(world, pictures):
    reward, backbone = world.reward("clip"), world.backbone
    found = prepare(backbone, reward, [pictures[:8]], source="latents", c=["a circle"] * 8)
    with torch.no_grad():
        x = backbone.decode(backbone.encode(pictures[:8]))
        assert torch.equal(found.embedding, reward.tail(reward.head(x, 1), 1).embedding)
    assert list(found.c) == ["a circle"] * 8


def test_prompts_and_images_must_be_as_many(world, pictures):
    with refused("expected 8 prompts, one per image, got 2"):
        prepare(world.backbone, world.reward("clip"), [pictures[:8]], c=["a circle"] * 2)
    with refused("expected at least one image, got none"):
        prepare(world.backbone, world.reward("clip"), [])


# Losses


def features(seed, unit):
    rng = torch.Generator().manual_seed(seed)
    raw, tokens = torch.randn(5, 64, generator=rng), torch.randn(5, 16, 96, generator=rng)
    return Features(tokens, normalize(raw, dim=-1) if unit else raw, raw)


def test_equation_78(world, interfaces):
    found, target = features(0, unit=True), features(1, unit=True)
    terms = losses(student(world, interfaces), found, target, [NULL] * 5, RECIPE)
    cosine = (found.embedding * target.embedding).sum(-1)
    torch.testing.assert_close(terms["embedding"], (2 - 2 * cosine).mean())
    torch.testing.assert_close(terms["tokens"], ((found.tokens - target.tokens) ** 2).mean())
    heavier = losses(
        student(world, interfaces), found, target, [NULL] * 5, replace(RECIPE, token_weight=3.0)
    )
    torch.testing.assert_close(heavier["tokens"], 3 * terms["tokens"])


def test_equation_79(world, interfaces):
    scored = student(world, interfaces, reward="aesthetic")
    found, target = features(0, unit=True), features(1, unit=True)
    recipe = replace(RECIPE, loss="score")
    terms = losses(scored, found, target, [NULL] * 5, recipe)
    w, b = scored.reward.w, scored.reward.b
    scores = [f.embedding @ w + b for f in (found, target)]
    torch.testing.assert_close(terms["score"], smooth_l1_loss(*scores))
    off = (found.embedding - target.embedding).abs()
    by_hand = torch.where(off < 1, off**2 / 2, off - 0.5).sum(-1).mean()
    torch.testing.assert_close(terms["embedding"], by_hand)
    torch.testing.assert_close(terms["tokens"], smooth_l1_loss(found.tokens, target.tokens))


def test_only_a_free_embedding_has_the_mean_as_its_minimiser():
    """Two clean embeddings equally likely: the best free vector is their mean, the best unit one
    is longer and overrates a cosine by 1 / |E[e]|."""
    e = normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]], dtype=torch.float64), dim=-1)
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    unit = torch.tensor([1.0, 0.3], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([free, unit], lr=0.1)
    for _ in range(2000):
        optimiser.zero_grad()
        (
            (free - e).square().sum(-1) + (normalize(unit, dim=0) - e).square().sum(-1)
        ).mean().backward()
        optimiser.step()
    mean = e.mean(0)
    torch.testing.assert_close(free.detach(), mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        normalize(unit, dim=0).detach(), mean / mean.norm(), rtol=0, atol=1e-6
    )


def test_the_soft_loss_is_least_at_the_soft_value(world, interfaces):
    """Of rewards seen at one latent: log E exp(lambda r) / lambda, by Newton's method."""
    scored = student(world, interfaces, reward="aesthetic")
    target = features(1, unit=True)
    r = scored.reward.score(target.embedding, [NULL] * 5).double()
    for lam in (0.01, 2.0):
        soft = (lam * r).exp().mean().log() / lam
        recipe = replace(RECIPE, loss="soft", lam=lam)

        def loss(v, recipe=recipe):
            e = scored.reward.w * (v - scored.reward.b) / scored.reward.w.square().sum()
            found = Features(target.tokens, e.expand(5, -1).float())
            return losses(scored, found, target, [NULL] * 5, recipe)["soft"].double()

        around = torch.stack([loss(soft + off) for off in (-0.3, 0.0, 0.3)])
        assert around.argmin() == 1
        assert loss(soft + 0.02) - loss(soft - 0.02) == pytest.approx(0, abs=2e-3)
    assert around[1] > 0
    small = replace(RECIPE, loss="soft", lam=1e-2)
    found = features(0, unit=True)
    x = r - scored.reward.score(found.embedding, [NULL] * 5)
    near = (x**2 + 1e-2 * x**3 / 3 + 1e-4 * x**4 / 12).mean()  # Taylor: the squared error first
    terms = losses(scored, found, target, [NULL] * 5, small)
    assert terms["soft"].item() == pytest.approx(near.item(), rel=1e-3)


# Noise and rates


def test_times_are_centred_where_the_recipe_says():
    rng = torch.Generator().manual_seed(0)
    for median in (0.5, match_snr(0.5, 64)):
        t = replace(RECIPE, median=median).draw(20_000, rng)
        assert t.median().item() == pytest.approx(median, rel=0.03)
        spread = (t / (1 - t)).log().std().item()
        assert spread == pytest.approx(1.0, rel=0.03)
    t = replace(RECIPE, times="uniform").draw(20_000, rng)
    assert (t.mean().item(), t.std().item()) == pytest.approx((0.5, 12**-0.5), rel=0.02)


def test_the_rate_warms_up_and_stays_or_falls():
    recipe = Recipe(steps=1000)
    assert recipe.rate_at(0) == pytest.approx(1e-7)
    assert recipe.rate_at(99) == recipe.rate_at(999) == pytest.approx(1e-5)
    falling = replace(recipe, schedule="cosine")
    assert falling.rate_at(550) == pytest.approx(1e-5 / 2)
    assert falling.rate_at(999) < 1e-10


# The loop


@pytest.mark.parametrize("j", [1, 2])
def test_layer_and_tail_are_trained_and_nothing_else(j, world, interfaces, data):
    model = student(world, interfaces, j=j)
    before = copy.deepcopy(model.state_dict())
    records = list(distill(model, data, RECIPE))
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    tail = {f"reward.{name}" for name in model.reward.tail_weights(j)}
    assert changed == {n for n in after if n.startswith("layer.")} | tail
    entry = {"reward.vision.embeddings.class_embedding", "reward.vision.pre_layrnorm.weight"}
    assert (entry <= changed) == (j == 1)
    assert ("layer.cls" in changed) == (j == 2)
    assert "reward.vision.embeddings.patch_embedding.weight" not in changed
    assert not any(w.requires_grad for w in model.parameters())


def test_layer_and_tail_have_their_own_rates(world, interfaces, data):
    """AdamW's first step moves every weight by its rate, whatever the gradient."""
    model = student(world, interfaces)
    before = copy.deepcopy(model)
    next(iter(distill(model, data, replace(RECIPE, warmup=1))))
    layer = (model.layer.linear.weight - before.layer.linear.weight).abs().median().item()
    block = "vision.encoder.layers.3.mlp.fc1.weight"
    tail = (model.reward.get_parameter(block) - before.reward.get_parameter(block)).abs().median()
    assert layer == pytest.approx(5e-3, rel=1e-2)
    assert tail.item() == pytest.approx(1e-3, rel=1e-2)


def test_finetuning_lowers_the_loss(world, interfaces, data):
    records = list(distill(student(world, interfaces), data, replace(RECIPE, steps=40)))
    assert sum(r.loss for r in records[-5:]) < 0.7 * sum(r.loss for r in records[:5])
    assert all(math.isclose(r.loss, sum(r.terms.values()), rel_tol=1e-5) for r in records)


@pytest.mark.parametrize("average", [None, 2.0])
def test_a_stopped_run_goes_on_bit_for_bit(average, world, interfaces, data, tmp_path):
    recipe = replace(RECIPE, average=average, bf16=average is not None)
    whole = student(world, interfaces)
    records = list(distill(whole, data, recipe))
    broken = student(world, interfaces)
    for record in distill(broken, data, recipe, tmp_path, every=2):
        if record.step == 3:
            break
    again = student(world, interfaces)
    rest = list(distill(again, data, recipe, tmp_path, every=2))
    assert rest == records[2:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def same_but_for_rounding(records, others, model, other):
    assert [r.step for r in records] == [r.step for r in others]
    assert [r.loss for r in records] == pytest.approx([r.loss for r in others], rel=1e-4)
    assert [r.gradient for r in records] == pytest.approx([r.gradient for r in others], rel=1e-3)
    trained = {name for group in model.trained().values() for name in group}
    assert trained
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, other.state_dict()[name], rtol=1e-3, atol=2e-4), name


SMOOTH = replace(RECIPE, steps=3, rate=1e-4)  # AdamW's first steps are signs of gradients


@pytest.mark.parametrize("micro", [3, 8])
def test_a_batch_may_be_taken_in_parts(micro, world, interfaces, data):
    models = [student(world, interfaces) for _ in range(2)]
    whole = list(distill(models[0], data, SMOOTH))
    parts = list(distill(models[1], data, SMOOTH, micro=micro))
    same_but_for_rounding(parts, whole, models[1], models[0])
    assert (parts == whole) == (micro == SMOOTH.batch)


@pytest.mark.parametrize("loss", ["embedding", "soft"])
def test_two_processes_train_as_one_does(loss, world, interfaces, data, tmp_path):
    """For the soft loss, under the prompts of other images of the whole batch."""
    recipe = replace(SMOOTH, loss=loss)
    data = data._replace(c=[world.prompts[k % 7] for k in range(len(data.c))])
    alone = student(world, interfaces)
    records = list(distill(alone, data, recipe))
    held = held_loss(alone, data, recipe)

    models = [student(world, interfaces) for _ in range(2)]  # a layer seeds all threads at once

    def work(worker):
        model, folder = models[worker.rank], tmp_path / f"{worker.rank}"
        made = list(distill(model, data, recipe, folder, workers=worker))
        return model, made, held_loss(model, data, recipe, workers=worker)

    (first, made, judged), (second, others, _) = both(work)
    assert made == others
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    same_but_for_rounding(made, records, first, alone)
    assert judged == pytest.approx(held, rel=1e-3)
    assert (tmp_path / "0").is_dir()
    assert not (tmp_path / "1").exists()  # who is not the first writes nothing


def test_a_batch_that_cannot_be_shared_is_refused(world, interfaces, data):
    with pytest.raises(ValueError, match="expected a batch that 3 processes share, got 8"):
        next(distill(student(world, interfaces), data, RECIPE, workers=Workers(0, 3)))


def test_what_is_kept_is_the_average(world, interfaces, data):
    recipe = replace(RECIPE, average=3.0)
    model = student(world, interfaces)
    weight = model.layer.linear.weight
    average, seen = weight.detach().clone(), []
    for record in distill(model, data, recipe):
        keep = min(0.5 ** (1 / 3.0), 1 - 10 / (record.step + 10))
        average = keep * average + (1 - keep) * weight.detach()
        seen.append(weight.detach().clone())
    torch.testing.assert_close(model.layer.linear.weight.detach(), average, rtol=0, atol=1e-6)
    assert not torch.allclose(average, seen[-1], atol=1e-5)


def test_checkpoints_of_another_recipe_or_torn_ones_are_refused(world, interfaces, data, tmp_path):
    list(distill(student(world, interfaces), data, RECIPE, tmp_path))
    with pytest.raises(ValueError, match=r"expected a checkpoint of .*'rate': 0.002.*got .*0.001"):
        next(distill(student(world, interfaces), data, replace(RECIPE, rate=2e-3), tmp_path))
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected a whole checkpoint at .*, got a torn one"):
        next(distill(student(world, interfaces), data, RECIPE, tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(world, interfaces, data):
    broken = data._replace(embedding=data.embedding * torch.nan)
    with pytest.raises(FloatingPointError, match="expected a finite loss at step 0, got nan"):
        next(distill(student(world, interfaces), broken, RECIPE))


def test_a_gradient_that_is_not_finite_changes_nothing(world, interfaces, data):
    model = student(world, interfaces)
    model.layer.linear.weight.register_hook(lambda g: g * torch.inf)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="expected a finite gradient at step 0"):
        next(distill(model, data, RECIPE))
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


# The value model


def test_a_free_embedding_is_scored_as_it_is(world, interfaces):
    z_t, t, c = noisy(world)
    unit, free = (student(world, interfaces, gain=gain) for gain in (None, 0.25))
    with torch.no_grad():
        out = unit.features(z_t, t, c)
        torch.testing.assert_close(free.features(z_t, t, c).embedding, 0.25 * out.raw)
        cosine = unit(z_t, t, c)
        torch.testing.assert_close(free(z_t, t, c), 0.25 * out.raw.norm(dim=-1) * cosine)


def test_a_trunk_may_see_the_prompt(world, interfaces):
    z_t, t, c = noisy(world)
    null, seeing = (student(world, interfaces, condition=k) for k in ("null", "prompt"))
    assert (null.target, seeing.target) == (Target("mean", "data"), Target("mean", "prompt"))
    with torch.no_grad():
        e, f = null.features(z_t, t, c).embedding, seeing.features(z_t, t, c).embedding
        assert torch.equal(e, null.features(z_t, t, [NULL] * 3).embedding)
        assert (e - f).abs().max() > 1e-3
        torch.testing.assert_close(seeing.features(z_t, t, [NULL] * 3).embedding, e)


# Saved and loaded


@pytest.fixture(scope="module")
def kept(world, interfaces, data):
    """A finetuned model entered at block 2, with a gain."""
    model = student(world, interfaces, j=2, gain=0.3)
    list(distill(model, data, RECIPE))
    return model


def test_loaded_equals_kept_bit_for_bit(kept, world, tmp_path):
    kept.save_pretrained(tmp_path / "saved", {"steps": 6})
    again = Stitched.from_pretrained(tmp_path / "saved", world.backbone, world.reward("clip"))
    z_t, t, c = noisy(world)
    for found, expected in zip(
        value_and_gradient(again, z_t, t, c), value_and_gradient(kept, z_t, t, c), strict=True
    ):
        assert torch.equal(found, expected)
    assert (again.target, again.i, again.j) == (kept.target, 2, 2)
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert files == {
        "stitch.json",
        "linear.safetensors",
        "residual.safetensors",
        "tail.safetensors",
        "null.safetensors",
    }
    assert json.loads((tmp_path / "saved" / "stitch.json").read_text())["about"] == {"steps": 6}
    with refused(f"expected a new folder, got {tmp_path / 'saved'}, which exists"):
        kept.save_pretrained(tmp_path / "saved")


def test_first_blocks_and_the_saved_null_prompt_are_enough(kept, world, tmp_path):
    kept.save_pretrained(tmp_path / "saved")
    null = tmp_path / "saved" / "null.safetensors"
    first = sd3.load(world.folder / "large", blocks=kept.i, null=null)
    assert not list(first.texts.parameters())
    again = Stitched.from_pretrained(tmp_path / "saved", first, world.reward("clip"))
    z_t, t, c = noisy(world)
    for found, expected in zip(
        value_and_gradient(again, z_t, t, c), value_and_gradient(kept, z_t, t, c), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_it_was_not_made_of_is_refused(kept, world, tmp_path):
    kept.save_pretrained(tmp_path / "saved")
    small = shapes_world(generator="small").backbone
    with pytest.raises(ValueError, match=r"expected backbone [0-9a-f]{16} for .*, got [0-9a-f]"):
        Stitched.from_pretrained(tmp_path / "saved", small, world.reward("clip"))
    with pytest.raises(ValueError, match=r"expected reward [0-9a-f]{16} for .*, got [0-9a-f]{16}"):
        Stitched.from_pretrained(tmp_path / "saved", world.backbone, world.reward("hps"))


def test_another_null_prompt_is_refused_and_the_backbone_left_alone(
    kept, world, tmp_path, monkeypatch
):
    kept.save_pretrained(tmp_path / "saved")
    parts = (world.backbone, world.reward("clip"))
    weight = next(world.backbone.parameters())
    weight.requires_grad = True  # as a policy in training
    try:
        Stitched.from_pretrained(tmp_path / "saved", *parts)
        assert weight.requires_grad
    finally:
        weight.requires_grad = False
    null = world.backbone.null_text()
    for factor, same in ((1.001, True), (1.1, False)):
        scaled = {name: factor * x for name, x in null.items()}
        monkeypatch.setattr(world.backbone, "null_text", lambda scaled=scaled: scaled)
        if same:
            Stitched.from_pretrained(tmp_path / "saved", *parts)
        else:
            with pytest.raises(ValueError, match="expected the null prompt's embedding that"):
                Stitched.from_pretrained(tmp_path / "saved", *parts)


def test_files_that_were_changed_or_lost_are_refused(kept, world, tmp_path):
    kept.save_pretrained(tmp_path / "saved")
    arguments = (tmp_path / "saved", world.backbone, world.reward("clip"))
    tail = tmp_path / "saved" / "tail.safetensors"
    whole = tail.read_bytes()
    tail.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"expected .*tail.safetensors with digest .*, got"):
        Stitched.from_pretrained(*arguments)
    tail.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected .*tail.safetensors, got no such file"):
        Stitched.from_pretrained(*arguments)
    described = json.loads((tmp_path / "saved" / "stitch.json").read_text())
    described["files"] = {"tail.bin": "0"}
    (tmp_path / "saved" / "stitch.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"expected safetensors files in .*, got tail.bin"):
        Stitched.from_pretrained(*arguments)
    with pytest.raises(FileNotFoundError, match=r"expected a saved value model in .*, got no"):
        Stitched.from_pretrained(tmp_path / "nothing", *arguments[1:])
