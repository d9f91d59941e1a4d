"""SharedTrunk, and select and join under it: the same numbers in fewer blocks.

Everything in float64: what is taken over is what would have been computed, to rounding.
"""

import pytest
import torch
from test_models_generators import BACKBONES as TINY  # random SD 3.5 and FLUX
from test_models_generators import PROMPTS as SAID
from test_models_generators import build as tiny

from baselines import ESTIMATORS
from baselines.terminal import Terminal
from baselines.tweedie import Tweedie
from bench.meter import Calls
from bench.worlds import WORLDS
from stitchvm.align.guide import CFG, Guided, constant, exact, within
from stitchvm.align.steer import Plan, steer, steps_at
from stitchvm.backbone import NULL
from stitchvm.memo import Remembered, SharedTrunk
from stitchvm.path import time_grid
from stitchvm.sample import Ode, Sde, sample
from stitchvm.stitch import LinearFit, Stitched, StitchLayer
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NAMES = ("gaussian", *TINY)
WORLD = WORLDS["gaussian"](latent=(2, 2, 2), components=3, rank=2, prompts=4)
WORLD.backbone.means.mul_(15.0)  # components apart, so that prompts matter

every_backbone = pytest.mark.parametrize("name", NAMES)


def scalar(t):
    return torch.tensor(t, dtype=torch.float64)


def backbone_of(name):
    return WORLD.backbone if name == "gaussian" else tiny(name)


def said(name):
    """Two prompts and the null one."""
    return [*WORLD.prompts[:2], NULL] if name == "gaussian" else [SAID[0], "a blue square", NULL]


def latents(backbone, rows, seed=0):
    like = torch.empty(rows, *backbone.latent, dtype=torch.float64)
    return Streams.of(seed, "latents", rows=rows).normal(like)


def counted(backbone):
    """A shared trunk, and the counter of what its backbone runs."""
    shared, calls = SharedTrunk(backbone), Calls()
    calls.watch(shared)
    return shared, calls


@pytest.fixture(autouse=True)
def unwatched():
    """Counters come off the backbones, which tests share."""
    yield
    for name in NAMES:
        backbone = backbone_of(name)
        for method in ("velocity", "trunk", "resume", "advance", "decode"):
            backbone.__dict__.pop(method, None)


def same_state(found, expected):
    torch.testing.assert_close(found.features, expected.features, **EXACT)
    torch.testing.assert_close(found.z_t, expected.z_t, rtol=0, atol=0)
    rows = len(expected.z_t)
    torch.testing.assert_close(found.t.expand(rows), expected.t.expand(rows), rtol=0, atol=0)
    texts = [[NULL] * rows if s.c is None else list(s.c) for s in (found, expected)]
    assert texts[0] == texts[1]
    assert found.i == expected.i


# Rows of a state


@every_backbone
@torch.no_grad()
def test_selected_rows_are_the_trunk_of_those_rows(name):
    """Reversed, and one of them twice; for times of their own and one for all."""
    backbone, c, rows = backbone_of(name), said(name), torch.tensor([2, 0, 2, 1])
    z_t, times = latents(backbone, 3), scalar([0.3, 0.8, 0.5])
    for i in range(1, backbone.depth + 1):
        for t, asked in ((times, times[rows]), (scalar(0.4), scalar(0.4))):
            for texts in (None, c):
                state = backbone.select(backbone.trunk(z_t, t, i, texts), rows)
                picked = None if texts is None else [texts[row] for row in rows.tolist()]
                same_state(state, backbone.trunk(z_t[rows], asked, i, picked))
                u = backbone.velocity(z_t[rows], asked, picked or [NULL] * 4)
                torch.testing.assert_close(backbone.resume(state), u, **EXACT)


JOINED = {
    "null and prompts": (None, [0, 1], 0.4, [0.7, 0.2]),
    "prompts and null": ([1, 0], None, [0.3, 0.9], 0.6),
    "prompts": ([0, 1], [2, 0], [0.3, 0.9], [0.7, 0.2]),
    "null": (None, None, 0.4, 0.6),
    "one time": ([0, 0], [1, 1], 0.5, 0.5),
}


@every_backbone
@pytest.mark.parametrize("case", JOINED.values(), ids=JOINED)
@torch.no_grad()
def test_joined_states_are_one_batch(name, case):
    """Resumed it is the velocity, advanced the deeper trunk, and its rows are what they were."""
    backbone, texts = backbone_of(name), said(name)
    *asked, first_t, second_t = case
    asked = [None if c is None else [texts[k] for k in c] for c in asked]
    a, b = latents(backbone, 2), latents(backbone, 2, seed=1)
    times = scalar(first_t), scalar(second_t)
    t = torch.cat([x.expand(2) for x in times])
    c = [text for part in asked for text in (part or [NULL] * 2)]
    z_t, rows = torch.cat([a, b]), torch.tensor([3, 1, 1])
    u = backbone.velocity(z_t, t, c)
    for i in range(1, backbone.depth + 1):
        first, second = (
            backbone.trunk(z, time, i, part)
            for z, time, part in zip((a, b), times, asked, strict=True)
        )
        joined = backbone.join(first, second)
        same_state(joined, backbone.trunk(z_t, t, i, c))
        torch.testing.assert_close(backbone.resume(joined), u, **EXACT)
        deepest = backbone.advance(joined, backbone.depth)
        same_state(deepest, backbone.trunk(z_t, t, backbone.depth, c))
        same_state(backbone.select(joined, torch.tensor([2, 3])), second)
        picked = backbone.select(joined, rows)
        torch.testing.assert_close(backbone.resume(picked), u[rows], **EXACT)
        again = backbone.join(joined, backbone.select(first, torch.tensor([1])))
        torch.testing.assert_close(backbone.resume(again), u[[0, 1, 2, 3, 1]], **EXACT)


LAST = 0  # stands for the last block, whichever that is


@every_backbone
@pytest.mark.parametrize(("i", "k"), [(1, 2), (2, 1), (1, LAST), (LAST, 1)])
@torch.no_grad()
def test_states_after_other_blocks_do_not_join(name, i, k):
    backbone, t = backbone_of(name), scalar(0.4)
    i, k = i or backbone.depth, k or backbone.depth
    first, second = (backbone.trunk(latents(backbone, 2), t, n) for n in (i, k))
    with pytest.raises(ValueError, match=f"expected states after one block, got {i} and {k}$"):
        backbone.join(first, second)


# An estimator and a sampler on one trunk


class Features(ValueEstimator):
    """A smooth function of a trunk's features, under the null prompt or the own one."""

    def __init__(self, backbone, i, condition="null"):
        super().__init__()
        self.backbone, self.i, self.condition = backbone, i, condition
        self.latent, self.target = backbone.latent, Target()

    def forward(self, z_t, t, c, rng=None):
        seen = None if self.condition == "null" else c
        h = self.backbone.trunk(z_t, t, self.i, seen).features.flatten(1)
        return torch.sin(3 * h + torch.linspace(0, 1, h.shape[1], dtype=h.dtype)).mean(1)


def guides(name, make, scale, *, share, rows=3, seed=0):
    """A guided velocity, and what it ran, with a shared trunk or without."""
    backbone = backbone_of(name)
    shared, calls = counted(backbone)
    held = shared if share else backbone
    calls.watch(backbone)
    velocity = Guided(CFG(held.velocity, scale), make(held), 0.3, profile=constant)
    z_t, t, c = latents(backbone, rows, seed), scalar(0.6), (said(name)[:2] * rows)[:rows]
    with calls.during() as spent:
        u = velocity(z_t, t, c)
    return u, spent, rows


def agree(name, make, scale, **settings):
    (shared, spent, rows), (alone, all_of_it, _) = (
        guides(name, make, scale, share=share, **settings) for share in (True, False)
    )
    torch.testing.assert_close(shared, alone, **EXACT)
    backbone = backbone_of(name)
    z_t, c = latents(backbone, rows, settings.get("seed", 0)), (said(name)[:2] * rows)[:rows]
    plain = CFG(backbone.velocity, scale)(z_t, scalar(0.6), c)
    assert float((shared - plain).abs().max()) > 1e-6  # it is guided at all
    return spent["blocks"] / rows, all_of_it["blocks"] / rows


@every_backbone
@pytest.mark.parametrize("condition", ["null", "prompt"])
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_a_guided_step_resumes_what_the_estimator_ran(name, condition, scale):
    """Both branches of CFG cost two depths, i blocks less than without sharing."""
    depth = backbone_of(name).depth
    for i in range(1, depth + 1):
        blocks = agree(name, lambda held, i=i: Features(held, i, condition), scale)
        assert blocks == (2 * depth, 2 * depth + i)


@every_backbone
@pytest.mark.parametrize(("condition", "saved"), [("null", 0), ("prompt", 2)])
def test_without_cfg_only_a_trunk_of_the_prompt_is_resumed(name, condition, saved):
    depth = backbone_of(name).depth
    blocks = agree(name, lambda held: Features(held, 2, condition), 1.0)
    assert blocks == (depth + 2 - saved, depth + 2)


@pytest.fixture(scope="module")
def stitches():
    """Value models of every depth, made on the plain backbone."""
    reward = WORLD.reward("sigmoid")
    return {i: ESTIMATORS["linear_stitch"](WORLD, reward, i=i) for i in (1, 3)}


@pytest.mark.parametrize("i", [1, 3])
@pytest.mark.parametrize("condition", ["null", "prompt"])
def test_a_stitched_value_model_shares_its_blocks(i, condition, stitches):
    layer, reward = stitches[i].layer, stitches[i].reward

    def make(held):
        return Stitched(held, i, layer, reward, condition=condition)

    assert agree("gaussian", make, 4.5) == (8, 8 + i)


def test_a_stitched_value_model_shares_the_blocks_of_a_network():
    reward = WORLDS["gaussian"](latent=(2, 2, 2), components=3, rank=2, prompts=2).reward("linear")
    weight = 0.1 * Streams.of(0, rows=1).normal(torch.empty(1, 16, 16).double())[0]
    fit = LinearFit(weight, torch.zeros(16).double(), 0, 0.0)

    class Judged(Stitched):
        """Scored under one prompt, whatever the generator calls it."""

        def forward(self, z_t, t, c, rng=None):
            return self.reward.score(self.features(z_t, t, c).embedding, ["scene 0"] * len(c))

    def make(held):
        return Judged(held, 2, StitchLayer(fit, (2, 2)), reward)

    assert agree("sd35_medium", make, 4.5) == (8, 10)
    assert agree("flux_dev", make, 4.5) == (8, 10)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("graph", ["frozen", "unfrozen"])
def test_tweedie_hands_its_velocity_on(reuse, cfg, graph):
    """With CFG inside: two depths in all, four without sharing."""

    def make(held):
        u = held.velocity if cfg == 1 else CFG(held.velocity, cfg)
        velocity = Remembered(u) if reuse else u
        return Tweedie(WORLD.backbone, WORLD.reward("sigmoid"), "prompt", velocity, graph)

    assert agree("gaussian", make, cfg) == (2 * 4 if cfg > 1 else 4, 4 * 4 if cfg > 1 else 2 * 4)


def test_tweedie_without_cfg_hands_on_half_of_what_cfg_needs():
    """The rows of the prompts are known, those of the null prompt are not: all is computed."""

    def make(held):
        return Tweedie(WORLD.backbone, WORLD.reward("sigmoid"), "prompt", held.velocity)

    assert agree("gaussian", make, 2.5) == (3 * 4, 3 * 4)


def test_tweedie_recomputes_in_the_backward_pass_and_hands_on_all_the_same():
    def make(held):
        velocity = CFG(held.velocity, 2.5)
        return Tweedie(held, WORLD.reward("sigmoid"), "prompt", velocity, "checkpointed")

    shared, alone = agree("gaussian", make, 2.5)
    assert alone - shared == 2 * 4


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_tweedie_hands_on_the_velocity_of_a_network(name):
    class Mean(ValueEstimator):
        """The mean of the sine of the posterior mean."""

        def __init__(self, velocity, latent):
            super().__init__()
            self.velocity, self.latent, self.target = velocity, latent, Target()

        def forward(self, z_t, t, c, rng=None):
            guess = z_t - t * self.velocity(z_t, t, c)
            return torch.sin(3 * guess).flatten(1).mean(1)

    def make(held):
        return Mean(CFG(held.velocity, 2.5), held.latent)

    depth = backbone_of(name).depth
    assert agree(name, make, 2.5) == (2 * depth, 4 * depth)


@pytest.mark.parametrize("name", ["gaussian", "sd35_medium", "flux_dev"])
@pytest.mark.parametrize("build", [Ode, Sde])
def test_a_whole_walk_is_the_same(name, build):
    """Guided in the middle of it; nothing of one step is taken for another."""
    backbone, ends = backbone_of(name), []
    profile, c = within(exact, 0.8, 0.3), said(name)[:2]
    for held in (SharedTrunk(backbone), backbone):
        velocity = Guided(CFG(held.velocity, 2.5), Features(held, 1), 0.5, profile=profile)
        rng = Streams.of(0, "walk", rows=2)
        ends.append(sample(build(velocity), latents(backbone, 2), time_grid(8), c, rng))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


# Rows are told by their content


def spent_on(shared, calls, z_t, t, c):
    """Blocks per latent of one velocity, which must be what the backbone says."""
    with calls.during() as spent:
        u = shared.velocity(z_t, t, c)
    torch.testing.assert_close(u, type(shared.inner).velocity(shared.inner, z_t, t, c), **EXACT)
    return spent["blocks"] / len(z_t)


@pytest.mark.parametrize("memory", ["trunk", "velocity"])
@pytest.mark.parametrize("rows", [[2, 0, 1], [1], [2, 2, 0, 2], [0, 1, 2]])
@torch.no_grad()
def test_any_selection_of_known_rows_is_resumed(memory, rows):
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 3)
    t, c = scalar([0.3, 0.6, 0.9]), list(WORLD.prompts[:3])
    if memory == "trunk":
        shared.trunk(z_t, t, 3, c)
    else:
        shared.velocity(z_t, t, c)
    left = 1 if memory == "trunk" else 0
    assert spent_on(shared, calls, z_t[rows], t[rows], [c[k] for k in rows]) == left


@pytest.mark.parametrize("memory", ["trunk", "velocity"])
@pytest.mark.parametrize(
    "change",
    [
        lambda z_t, t, c: (z_t, t + 1e-9, c),
        lambda z_t, t, c: (z_t, t.flip(0), c),
        lambda z_t, t, c: (z_t, t, [*c[:2], "scene 3"]),
        lambda z_t, t, c: (z_t, t, c[::-1]),
        lambda z_t, t, c: (z_t, t, [*c[:2], NULL]),
        lambda z_t, t, c: (z_t + torch.tensor([0, 0, 1e-12])[:, None, None, None], t, c),
        lambda z_t, t, c: (z_t.flip(0), t, c),
        lambda z_t, t, c: (torch.cat([z_t, z_t[:1] + 1]), t[[0, 1, 2, 0]], [*c, c[0]]),
    ],
    ids=[
        "times",
        "times swapped",
        "prompt",
        "prompts swapped",
        "null",
        "latent",
        "swapped",
        "more",
    ],
)
@torch.no_grad()
def test_another_time_prompt_or_latent_is_not(memory, change):
    """One row of three is enough: the batch is computed as a whole, and right."""
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 3)
    t, c = scalar([0.3, 0.6, 0.9]), list(WORLD.prompts[:3])
    if memory == "trunk":
        shared.trunk(z_t, t, 3, c)
    else:
        shared.velocity(z_t, t, c)
    asked = change(z_t, t, c)
    blocks = spent_on(shared, calls, *asked)
    others_null = memory == "trunk" and NULL in asked[2]
    # The two prompted rows are known, the third is brought up beside them.
    assert blocks == pytest.approx((2 * 1 + 4) / 3 if others_null else 4)


@pytest.mark.parametrize("asked", [scalar(0.6), scalar([0.6, 0.6])])
@pytest.mark.parametrize("known", [scalar(0.6), scalar([0.6, 0.6])])
@torch.no_grad()
def test_one_time_for_all_rows_is_the_same_as_a_time_each(known, asked):
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 2)
    c = list(WORLD.prompts[:2])
    shared.trunk(z_t, known, 2)
    both = torch.cat([asked, asked]) if asked.ndim else asked
    assert spent_on(shared, calls, torch.cat([z_t, z_t]), both, [NULL] * 2 + c) == (2 + 4) / 2
    assert spent_on(shared, calls, torch.cat([z_t, z_t]), both, [NULL] * 2 + c) == 0
    shared.velocity(z_t, known, c)
    assert spent_on(shared, calls, z_t, asked, c) == 0


@torch.no_grad()
def test_equal_latents_of_several_prompts_are_told_apart():
    (shared, calls), one = counted(WORLD.backbone), latents(WORLD.backbone, 1)
    z_t, t, c = one.expand(3, -1, -1, -1), scalar(0.8), list(WORLD.prompts[:3])
    shared.trunk(z_t, t, 2, c)
    assert spent_on(shared, calls, z_t, t, c[::-1]) == 2
    u = shared.velocity(z_t, t, [c[2], c[2], c[0]])
    assert torch.equal(u[0], u[1])
    assert float((u[0] - u[2]).abs().max()) > 0.01


@torch.no_grad()
def test_the_null_text_and_no_text_are_the_same():
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 2)
    shared.trunk(z_t, scalar(0.4), 3, [NULL, NULL])
    assert spent_on(shared, calls, z_t, scalar(0.4), [NULL, NULL]) == 1
    shared.trunk(z_t, scalar(0.5), 3)
    assert spent_on(shared, calls, z_t, scalar(0.5), [NULL, NULL]) == 1


@torch.no_grad()
def test_either_branch_may_come_first_and_their_sizes_may_differ():
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 5)
    t, p = scalar([0.1, 0.3, 0.5, 0.7, 0.9]), WORLD.prompts
    c = [p[0], NULL, p[1], NULL, p[2]]
    shared.trunk(z_t[[1, 3]], t[[1, 3]], 3)
    assert spent_on(shared, calls, z_t, t, c) == (2 * 1 + 3 * 4) / 5
    shared.trunk(z_t[[4, 0, 2]], t[[4, 0, 2]], 2, [p[2], p[0], p[1]])
    fresh = z_t.clone()
    fresh[1] += 1  # so that the velocity is not known
    assert spent_on(shared, calls, fresh, t, c) == (3 * 2 + 2 * 4) / 5


@torch.no_grad()
def test_a_state_that_advances_is_the_one_remembered():
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 2)
    shared.advance(shared.trunk(z_t, scalar(0.4), 1), 3)
    assert spent_on(shared, calls, z_t, scalar(0.4), [NULL, NULL]) == 1


@pytest.mark.parametrize("memory", ["trunk", "velocity"])
@torch.no_grad()
def test_another_dtype_is_another_latent(memory):
    """A network's weights may have another than the latents."""
    (shared, calls), backbone = counted(tiny("sd3")), tiny("sd3")
    z_t, t, c = latents(backbone, 2).float(), scalar(0.5), [NULL] * 2
    for z, other in ((z_t, z_t.double()), (z_t.double(), z_t)):
        if memory == "trunk":
            shared.trunk(z, t, 2)
        else:
            shared.velocity(z, t, c)
        assert spent_on(shared, calls, other, t, c) == backbone.depth
        assert shared.velocity(other, t, c).dtype == other.dtype


@pytest.mark.parametrize("memory", ["trunk", "velocity"])
@torch.no_grad()
def test_latents_changed_in_place_are_other_latents(memory):
    shared, z_t = SharedTrunk(WORLD.backbone), latents(WORLD.backbone, 2)
    t, c = scalar(0.5), list(WORLD.prompts[:2])
    if memory == "trunk":
        shared.trunk(z_t, t, 2, c)
    else:
        shared.velocity(z_t, t, c)
    z_t += 1
    expected = WORLD.backbone.velocity(z_t, t, c)
    torch.testing.assert_close(shared.velocity(z_t, t, c), expected, **EXACT)


@torch.no_grad()
def test_a_velocity_changed_in_place_is_not_remembered_so():
    shared, z_t = SharedTrunk(WORLD.backbone), latents(WORLD.backbone, 2)
    t, c = scalar(0.5), list(WORLD.prompts[:2])
    first = shared.velocity(z_t, t, c)
    first *= 2
    expected = WORLD.backbone.velocity(z_t, t, c)
    torch.testing.assert_close(shared.velocity(z_t, t, c), expected, **EXACT)


# Gradients


@pytest.mark.parametrize("known", [False, True])
def test_what_is_asked_for_with_a_gradient_is_computed(known):
    (shared, calls), z_t = counted(WORLD.backbone), latents(WORLD.backbone, 2)
    t, c = scalar(0.5), list(WORLD.prompts[:2])
    if known:
        shared.velocity(z_t, t, c)
        shared.trunk(z_t, t, 2, c)
    asked, other = (z_t.clone().requires_grad_() for _ in range(2))
    with calls.during() as spent:
        u = shared.velocity(asked, t, c)
    assert spent["blocks"] == 2 * 4
    u.square().sum().backward()
    WORLD.backbone.velocity(other, t, c).square().sum().backward()
    torch.testing.assert_close(asked.grad, other.grad, **EXACT)
    with calls.during() as spent:
        again = shared.velocity(z_t, t, c)
    assert spent["blocks"] == 0
    assert not again.requires_grad
    torch.testing.assert_close(again, u.detach(), **EXACT)


def test_what_is_taken_over_carries_no_graph():
    shared, z_t = SharedTrunk(WORLD.backbone), latents(WORLD.backbone, 2).requires_grad_()
    t = scalar(0.5)
    features = shared.trunk(z_t, t, 2).features
    with torch.no_grad():
        u = shared.velocity(torch.cat([z_t, z_t]), t, [NULL] * 2 + list(WORLD.prompts[:2]))
    assert features.requires_grad
    assert not u.requires_grad
    plain = shared.velocity(z_t.detach(), t, [NULL] * 2)
    assert not plain.requires_grad
    features.sum().backward()
    assert float(z_t.grad.abs().max()) > 0


@every_backbone
@torch.no_grad()
def test_the_rest_is_the_backbones_own(name):
    backbone = backbone_of(name)
    shared, z_t = SharedTrunk(backbone), latents(backbone, 2)
    assert (shared.latent, shared.depth) == (backbone.latent, backbone.depth)
    torch.testing.assert_close(shared.decode(z_t), backbone.decode(z_t), rtol=0, atol=0)
    x = backbone.decode(z_t)
    torch.testing.assert_close(shared.encode(x), backbone.encode(x), rtol=0, atol=0)
    assert shared.trunk_weights(1).keys() == backbone.trunk_weights(1).keys()
    assert shared.null_text().keys() == backbone.null_text().keys()
    state = shared.trunk(z_t, scalar(0.4), 1)
    torch.testing.assert_close(shared.resume(state), backbone.resume(state), rtol=0, atol=0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda world: world.truth(world.reward("linear"), Target()),
        lambda world: world.draw(["scene 0"], Streams.of(0, rows=1)),
        lambda world: world.tilted(world.reward("linear"), "scene 0", 1.0),
        lambda world: ESTIMATORS["linear_stitch"](world, world.reward("linear")),
    ],
    ids=["truth", "draw", "tilted", "linear_stitch"],
)
def test_a_world_whose_backbone_is_shared_still_knows_its_truth(ask):
    """The align task wraps it by default, `share: true`."""
    world = WORLDS["gaussian"](latent=(2, 2, 2), components=3, rank=2, prompts=4)
    world.backbone = SharedTrunk(world.backbone)
    ask(world)


# FK steering


class Tilt(ValueEstimator):
    """What `Features` says, a hundred times: enough to choose by."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.latent, self.target = inner, inner.latent, inner.target

    def forward(self, z_t, t, c, rng=None):
        return 100 * self.inner(z_t, t, c)


@pytest.mark.parametrize(("scale", "condition"), [(2.5, "null"), (2.5, "prompt"), (1.0, "prompt")])
@pytest.mark.parametrize("name", ["gaussian", "sd35_medium", "flux_schnell"])
def test_steering_goes_on_from_the_proposals_it_kept(name, scale, condition):
    """The chosen proposals' trunks, and the resampled particles', are parts of the next step."""
    backbone, c, n, i, steps = backbone_of(name), said(name)[:2], 3, 2, 5
    plan = Plan(
        1.0,
        particles=n,
        proposals=2,
        resample_at=steps_at(steps, 2, 4, 2),
        propose_at=frozenset(range(1, 5)),
    )
    ends, blocks = [], []
    for share in (True, False):
        shared, calls = counted(backbone)
        held = shared if share else backbone
        value, z = Tilt(Features(held, i, condition)), latents(backbone, n * 2)
        with calls.during() as spent:
            made = steer(
                Sde(CFG(held.velocity, scale)),
                value,
                value,
                z.unflatten(0, (n, 2)),
                time_grid(steps),
                c,
                Streams.of(0, "steer", rows=2),
                plan,
            )
        ends.append(made)
        blocks.append(spent["blocks"] / (2 * n))
    torch.testing.assert_close(ends[0].z_0, ends[1].z_0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ends[0].log_weights, ends[1].log_weights, rtol=1e-6, atol=1e-6)
    branches = 1 if scale == 1 else 2
    # The start's value, then two proposals a step in four steps, then the terminal one.
    asked = i + 4 * 2 * i + i
    assert blocks[1] == branches * steps * backbone.depth + asked
    assert blocks[1] - blocks[0] == steps * i  # every step resumes its particles' trunks


def test_steering_by_tweedie_goes_on_from_its_velocity():
    b, c, steps = WORLD.backbone, list(WORLD.prompts[:2]), 4
    plan = Plan(1.0, particles=2, proposals=2, propose_at=frozenset({1, 2, 3}))
    ends, blocks, reward = [], [], WORLD.reward("sigmoid")
    for share in (True, False):
        shared, calls = counted(b)
        u = CFG((shared if share else b).velocity, 2.5)
        z = latents(b, 4).unflatten(0, (2, 2))
        rng = Streams.of(0, "steer", rows=2)
        with calls.during() as spent:
            made = steer(
                Sde(u),
                Tweedie(b, reward, "prompt", u),
                Terminal(b, reward),
                z,
                time_grid(steps),
                c,
                rng,
                plan,
            )
        ends.append(made.z_0)
        blocks.append(spent["blocks"] / 4)
    torch.testing.assert_close(*ends, **EXACT)
    assert blocks[1] == 2 * 4 * (steps + 3 * 2)
    assert blocks[0] == 2 * 4 * (1 + 3 * 2)  # the first step alone has nothing to go on from
