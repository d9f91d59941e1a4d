"""The learned rivals: what they see, what they are made of, and that they are kept whole."""

import json
import re

import pytest
import torch
from torch.nn.functional import normalize

from baselines import ESTIMATORS
from baselines.calibrated import build as calibrated
from baselines.feature_head import FeatureHead, Head
from baselines.trained import folder_of, weights
from bench.arms import Given, feature_head, noisy_student
from bench.worlds.shapes import shapes as shapes_world
from stitchvm.calibrate import LEVELS


@pytest.fixture(scope="module")
def world():
    return shapes_world()


@pytest.fixture(scope="module")
def given(world):
    x_0 = next(world.images("train", 24)).x_0
    return Given(world.backbone, world.reward("clip"), None, (3, 1), x_0)


def noisy(world, rows=3):
    rng = torch.Generator().manual_seed(3)
    z_t = torch.randn(rows, *world.backbone.latent, generator=rng)
    return z_t, torch.rand(rows, generator=rng), list(world.prompts[:rows])


def test_a_noisy_student_begins_as_the_reward_of_the_noisy_picture(world, given):
    student = noisy_student(given)
    z_t, t, c = noisy(world)
    with torch.no_grad():
        x = world.backbone.decode(z_t)
        assert torch.equal(student(z_t, t, c), world.reward("clip")(x, c))
        free = noisy_student(given, norm="free")
        raw = world.reward("clip").features(x).raw
        assert torch.equal(free.features(z_t, t, c).embedding, free.gain * raw)


def test_a_noisy_student_trains_all_that_sees_and_nothing_that_reads(given):
    student, reward = noisy_student(given), given.reward
    (names,) = (set(group) for group in student.trained().values())
    seeing = {n for n, _ in reward.named_parameters() if n.startswith(("vision.", "projection."))}
    assert names == seeing
    mine = dict(student.reward.named_parameters())
    theirs = dict(reward.named_parameters())
    assert not any(mine[name] is theirs[name] for name in names)


def test_a_feature_head_reads_blocks_up_to_three_quarters(world, given):
    head = feature_head(given)
    assert head.taps == (2, 4, 6)
    z_t, t, c = noisy(world)
    with torch.no_grad():
        taps = [world.backbone.trunk(z_t, t, i).features for i in head.taps]
        raw = head.head(taps, t)
        assert torch.equal(head.features(z_t, t, c).embedding, normalize(raw, dim=-1))
        free = feature_head(given, norm="free")
        assert torch.equal(free.features(z_t, t, c).embedding, free.head(taps, t))
    for taps in ((), (0, 2), (4, 2), (2, 2), (2, 9)):
        with pytest.raises(ValueError, match=r"expected blocks .*, got"):
            FeatureHead(world.backbone, taps, head.head, given.reward)


def test_a_head_by_hand():
    """Films, sum, attention of the queries, and the last layers, written out."""
    torch.manual_seed(0)
    head = Head((3, 5), out=4, width=8).double()
    taps = [torch.randn(2, c, 2, 2, dtype=torch.float64) for c in (3, 5)]
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    angles = t[:, None] * torch.logspace(0, 3, 32, dtype=torch.float64)
    time = head.time(torch.cat([angles.sin(), angles.cos()], 1))
    tokens = 0
    for x, norm, inner, film in zip(taps, head.norms, head.maps, head.films, strict=True):
        scale, shift = film(time).split(8, 1)
        h = inner(norm(x.permute(0, 2, 3, 1).reshape(2, 4, -1)))
        tokens = tokens + h * (1 + scale[:, None]) + shift[:, None]
    w, b = head.pool.in_proj_weight, head.pool.in_proj_bias
    q = (head.queries @ w[:8].T + b[:8]).expand(2, -1, -1)
    k, v = (tokens @ w[s].T + b[s] for s in (slice(8, 16), slice(16, 24)))
    q, k, v = (x.unflatten(-1, (4, 2)).transpose(1, 2) for x in (q, k, v))
    attention = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v
    pooled = head.pool.out_proj(attention.transpose(1, 2).flatten(2))
    torch.testing.assert_close(head(taps, t), head.last(pooled.flatten(1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [noisy_student, feature_head])
@pytest.mark.parametrize("norm", ["unit", "free"])
def test_saved_and_loaded_is_the_same(make, norm, world, given, tmp_path):
    model = make(given, norm=norm)
    with torch.no_grad():
        for group in model.trained().values():
            for weight in group.values():
                weight.add_(0.01)
                weight.requires_grad = False  # as training leaves it: kernels may differ
    model.save_pretrained(tmp_path / "model", {"by": "hand"})
    again = type(model).from_pretrained(tmp_path / "model", world.backbone, given.reward)
    z_t, t, c = noisy(world)
    with torch.no_grad():
        assert torch.equal(again(z_t, t, c), model(z_t, t, c))
    assert not any(w.requires_grad for w in again.parameters())


@pytest.mark.parametrize(("make", "other"), [(noisy_student, "pick"), (feature_head, "hps")])
def test_what_it_was_not_made_of_is_refused(make, other, world, given, tmp_path):
    model, kind = make(given), type(make(given))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected (reward|the same weights) .*, got"):
        kind.from_pretrained(tmp_path / "model", world.backbone, world.reward(other))
    with pytest.raises(FileNotFoundError, match="expected a saved value model in"):
        kind.from_pretrained(tmp_path / "nowhere", world.backbone, given.reward)
    file = next((tmp_path / "model").glob("*.safetensors"))
    *kept, last = file.read_bytes()
    file.write_bytes(bytes([*kept, last ^ 1]))
    with pytest.raises(ValueError, match=re.escape(f"expected {file} with digest")):
        kind.from_pretrained(tmp_path / "model", world.backbone, given.reward)


def test_a_feature_head_of_another_backbone_is_refused(given, tmp_path):
    feature_head(given).save_pretrained(tmp_path / "model")
    small = shapes_world(generator="small")
    with pytest.raises(ValueError, match="expected backbone .* for .*, got"):
        FeatureHead.from_pretrained(tmp_path / "model", small.backbone, given.reward)


def test_weights_are_those_of_the_folder(world, given, tmp_path):
    reward = given.reward
    for name, norm in (("one", "unit"), ("two", "free")):
        noisy_student(given, norm=norm).save_pretrained(tmp_path / name)
    one, two = (weights(world, reward, model=str(tmp_path / n)) for n in ("one", "two"))
    assert one != two
    assert one == weights(world, reward, model=str(tmp_path / "one"))
    with pytest.raises(FileNotFoundError, match="expected a folder, or a value model that ships"):
        folder_of(world, reward, "three")


def test_calibrating_what_knows_nothing_of_the_prompt_uses_other_prompts(world):
    """Aesthetic values know no prompt at all: a calibrated Tweedie is a line of Tweedie."""
    reward = world.reward("aesthetic")
    estimator = calibrated(world, reward, of="tweedie", posterior="data", images=24)
    z_t, _, c = noisy(world)
    t = torch.tensor(LEVELS[6])
    slope, offset = estimator.lines.slope[6], estimator.lines.offset[6]
    with torch.no_grad():
        inner = estimator.inner(z_t, t, c)
        torch.testing.assert_close(estimator(z_t, t, c), (slope * inner + offset).float())
    assert json.dumps(estimator.target.as_dict()) == json.dumps(estimator.inner.target.as_dict())


@pytest.mark.parametrize(
    "name", ["stitched", "vae_stitch", "noisy_student", "feature_head", "tweedie"]
)
def test_times_may_be_more_precise_than_latents(name, world):
    model = ESTIMATORS[name](world, world.reward("aesthetic"))
    z_t, c = torch.randn(2, *world.backbone.latent), list(world.prompts[:2])
    for t in (torch.tensor(0.5), torch.tensor([0.5, 0.75])):
        with torch.no_grad():
            assert torch.allclose(model(z_t, t.double(), c), model(z_t, t, c), atol=1e-4)
