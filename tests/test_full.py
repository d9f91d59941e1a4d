"""Worlds of full size with random weights: true shapes, nothing built before it is asked for."""

import json
import re

import pytest
import torch
from click.testing import CliRunner

from baselines.untrained import build as untrained
from bench.cli import cli
from bench.plan import plan
from bench.suite import load
from bench.worlds import make, named
from bench.worlds.full import BUILDS, drawn
from stitchvm import search
from stitchvm.flops import count_flops
from stitchvm.memo import SharedTrunk
from stitchvm.value import value_and_gradient
from stitchvm.whole import WholeBackbone

SMALL = {"side": 32, "blocks": 2}
C = ["a lighthouse in a storm, oil painting", "two cats playing chess in a library"]


@pytest.fixture(scope="module", params=["sd35-medium", "flux-dev"])
def world(request):
    return BUILDS[request.param](**SMALL)


def latents(world, rows=2):
    return torch.randn(rows, *world.backbone.latent, generator=torch.Generator().manual_seed(0))


def test_a_suite_is_planned_without_building_anything(monkeypatch):
    for name in ("backbone", "reward", "tiny"):
        monkeypatch.setattr(drawn, name, None)
    cells = plan(load("cost-dps"))
    assert len({cell.id for cell in cells}) == len(cells) > 10
    assert {cell.spec.world.build for cell in cells} == set(BUILDS)


def test_the_shapes_are_those_of_the_published_models():
    with torch.device("meta"):
        counted = {}
        for name in BUILDS:
            shapes = drawn.config(name)
            kind = drawn.FluxTransformer2DModel if shapes["kind"] == "flux" else None
            transformer = (kind or drawn.SD3Transformer2DModel)(**shapes["transformer"])
            counted[name] = sum(w.numel() for w in transformer.parameters())
    assert counted == {
        "sd35-medium": 2_243_171_520,
        "sd35-large": 8_056_627_520,
        "flux-dev": 11_901_408_320,
    }


def test_a_step_runs_in_the_precision_of_its_weights_and_latents_stay_float32(world):
    z, t = latents(world), torch.tensor(0.7)
    u = world.backbone.velocity(z, t, C)
    assert u.dtype == z.dtype == torch.float32
    assert u.isfinite().all()
    assert next(world.backbone.parameters()).dtype == torch.bfloat16
    x = world.backbone.decode(z)
    assert x.shape == (2, 3, 32, 32)
    assert world.reward("aesthetic")(x, C).shape == (2,)


def test_blocks_one_after_the_other_are_the_whole(world):
    z, t = latents(world), torch.tensor(0.7)
    state = world.backbone.trunk(z, t, 1, C)
    assert torch.equal(world.backbone.resume(state), world.backbone.velocity(z, t, C))


@pytest.mark.parametrize(
    "reward", ["aesthetic", *(pytest.param(r, marks=pytest.mark.slow) for r in ("clip", "hps"))]
)
def test_an_untrained_stitchvm_has_a_value_and_a_gradient(world, reward):
    model = untrained(world, world.reward(reward), i=2, j=2)
    found = value_and_gradient(model, latents(world), torch.tensor(0.5), C)
    assert found.value.isfinite().all()
    assert found.gradient.isfinite().all()
    assert found.gradient.abs().sum() > 0


def test_the_same_weights_are_drawn_again():
    mine, theirs = (BUILDS["sd35-medium"](**SMALL).reward("clip") for _ in range(2))
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_drawing_leaves_the_generator_and_the_default_dtype_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with drawn.drawing("cpu", torch.bfloat16):
        assert torch.rand(1).dtype == torch.bfloat16
    assert torch.equal(torch.rand(3), expected)


def test_what_changes_a_cost_changes_the_digest():
    given = [{}, {"side": 512}, {"precision": "float32"}, {"blocks": 3}]
    digests = {BUILDS[model](**settings).digest for model in BUILDS for settings in given}
    assert len(digests) == len(BUILDS) * len(given)
    assert all(digest.startswith("random-") for digest in digests)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 1000}, "side divisible by 16, got 1000"),
        ({"side": 0}, "side divisible by 16, got 0"),
        ({"blocks": 25}, r"blocks in 1\.\.24, got 25"),
        ({"blocks": 0}, r"blocks in 1\.\.24, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        BUILDS["sd35-medium"](**settings)


def test_only_weights_that_exist_can_be_named():
    with pytest.raises(FileNotFoundError, match="weights"):
        named("sd35-medium,weights=trained")


def test_prompts_have_embeddings_of_their_own(world):
    like = torch.empty((), dtype=torch.float32)
    texts = world.backbone.texts(C, like)
    assert torch.equal(texts.tokens, world.backbone.texts(C, like).tokens)
    assert not torch.equal(texts.tokens[0], texts.tokens[1])


def test_quality_is_absent(world):
    reward, z = world.reward("clip"), latents(world)
    assert world.truth(reward, None) is None
    assert world.pictures(z) is None
    assert world.correct(z, C) is None


@pytest.mark.slow
def test_a_step_at_full_size_is_rehearsed_by_the_same_suite(tmp_path):
    store, small = tmp_path / "store", tmp_path / "small.yaml"
    small.write_text(
        "{name: small, about: A rehearsal., minutes: 1, task: align, isolation: inline, "
        "defaults: {world: {name: 'Medium, random weights', build: sd35-medium, side: 32, "
        "blocks: 2}, reward: aesthetic, algorithm: {build: guide}, kernel: ode, samples: 0, "
        "rounds: 2, cost_batches: [1]}, "
        "axes: {estimator: [{name: DPS + StitchVM, build: untrained, i: 1}]}}"
    )
    done = CliRunner().invoke(cli, ["run", str(small), "--store", str(store)])
    assert done.exit_code == 0, done.output
    assert "A guided step beside an unsteered one" in done.output
    for file in store.glob("cells/*/*/result.json"):
        (row,) = json.loads(file.read_text())["rows"]
        assert row["metrics"] == {}  # no quality where weights are random
        assert row["flops"]["classic DPS"] > row["flops"]["unsteered"] > 0
    assert "A guided step, over an unsteered one, at batch 1: DPS + StitchVM" in done.output
    page = CliRunner().invoke(cli, ["report", str(store)])
    assert page.exit_code == 0, page.output
    claims = (store / "report" / "tables" / "claims.csv").read_text()
    assert re.search(r"times as fast.* times faster than classic DPS, FLOPs say", claims)
    assert re.search(r"higher target reward than DPS by other values.*,not testable here", claims)


def test_pairs_of_blocks_have_their_cost_where_weights_are_of_half_precision(world):
    trunk, tail = search._flops(world.backbone, world.reward("clip"), (1, 2))
    assert 0 < trunk[1] < trunk[2]
    assert 0 < tail[2] < tail[1]


def test_flops_are_those_of_the_formula():
    world = named("sd35-medium,side=64,blocks=2,precision=float32")
    z, c = latents(world, 1), C[:1]
    counted = count_flops(lambda: world.backbone.velocity(z, torch.tensor(0.5), c))
    d, image, text = 1536, 16, 333
    both = 2 * 12 * d * d * (image + text) + 4 * (image + text) ** 2 * d
    own = 8 * d * d * image + 4 * image**2 * d
    # The last of all blocks drops its text: neither its output nor its feed-forward runs.
    dropped = 2 * 9 * d * d * text
    embedded = 2 * text * 4096 * d
    assert counted == pytest.approx(embedded + 2 * (both + own) - dropped, rel=0.01)


def test_a_world_is_built_on_the_device_that_a_cell_names():
    cell = next(iter(plan(load("cost-dps"))))
    assert make(cell.spec.world, "cpu").device == "cpu"


class Nowhere(WholeBackbone):
    """A generator that has no tensor."""

    latent = (1, 2, 2)

    def velocity(self, z_t, t, c):
        return z_t

    def encode(self, x):
        return x

    def decode(self, z_0):
        return z_0


def test_latents_are_where_a_generator_is_and_of_32_bits_at_least(world):
    low, high = world.backbone, named("gaussian").backbone
    assert next(low.parameters()).dtype == torch.bfloat16
    for backbone, dtype in ((low, torch.float32), (high, torch.float64)):
        for of in (backbone, SharedTrunk(backbone)):
            made = of.empty_latents(3)
            assert (made.dtype, tuple(made.shape)) == (dtype, (3, *backbone.latent))
    moved = BUILDS["sd35-medium"](side=32, blocks=1, device="meta").backbone
    assert moved.empty_latents(1).device.type == "meta"
    with pytest.raises(ValueError, match="expected a weight or a buffer, .* got none"):
        Nowhere().empty_latents(1)
