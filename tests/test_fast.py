"""Fast paths at full size: the same numbers to tolerance, in copies and beside what is shared."""

import copy

import pytest
import torch

from baselines import ESTIMATORS
from bench.meter import Calls
from bench.worlds import named
from bench.worlds.full import BUILDS, fast
from stitchvm.flops import count_flops
from stitchvm.memo import SharedTrunk
from stitchvm.models import lora
from stitchvm.value import value_and_gradient

# The compiler itself looks at gradients of what is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
SMALL = {"side": 32, "blocks": 2, "precision": "float32"}
C, T = ["two cats playing chess in a library"], torch.tensor(0.7)


@pytest.fixture
def eagerly(monkeypatch):
    """Compiled as a graph of PyTorch's own kernels: what is tested is not the code generator."""
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiling(f, backend="eager", **how))
    fast.compiled.cache_clear()
    yield
    fast.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def small():
    return named("shapes,generator=small")


def latents(world):
    return torch.randn(1, *world.backbone.latent, generator=torch.Generator().manual_seed(0))


def values(world):
    """A velocity, and a StitchVM's value with its gradient."""
    z = latents(world)
    with torch.no_grad():
        u = world.backbone.velocity(z, T, C)
    model = ESTIMATORS["untrained"](world, world.reward("aesthetic"), i=1)
    return (u, *value_and_gradient(model, z, T, C))


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_compiled_blocks_of_small_networks_say_what_plain_ones_do(small):
    z, c = latents(small), small.prompts[:1]
    backbone = fast.quick_backbone(copy.deepcopy(small.backbone), ("compile",), "cpu")
    torch.testing.assert_close(backbone.velocity(z, T, c), small.backbone.velocity(z, T, c))
    gradients = []
    for of in (backbone, small.backbone):
        at = z.clone().requires_grad_()
        of.trunk(at, T, 2).features.square().sum().backward()
        gradients.append(at.grad)
    torch.testing.assert_close(*gradients)
    reward, x = small.reward("clip"), small.backbone.decode(z)
    quick = fast.quick_reward(copy.deepcopy(reward), ("compile",))
    torch.testing.assert_close(quick(x, c), reward(x, c))
    blocks = [*backbone.blocks, *quick.vision.encoder.layers]
    assert all(type(block).__name__.startswith("Compiled") for block in blocks)
    assert backbone.state_dict().keys() == small.backbone.state_dict().keys()


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_compiled_blocks_say_what_plain_ones_do():
    plain, quick = (BUILDS["sd35-medium"](**SMALL, fast=f) for f in ((), ("compile",)))
    for mine, theirs in zip(values(quick), values(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    blocks = [*quick.generator.blocks, *quick.reward("aesthetic").vision.encoder.layers]
    assert all(type(block).__name__.startswith("Compiled") for block in blocks)
    assert quick.generator.state_dict().keys() == plain.generator.state_dict().keys()


@pytest.mark.usefixtures("eagerly")
def test_a_copy_of_a_compiled_block_has_weights_of_its_own():
    block = torch.nn.Linear(3, 2)
    fast.compile_all([block])
    x, before = torch.ones(1, 3), block(torch.ones(1, 3))
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    assert type(other) is type(block)
    assert torch.equal(other(x), torch.zeros(1, 2))
    assert torch.equal(block(x), before)


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_trunk_is_shared_and_counted_when_compiled():
    world, calls = BUILDS["sd35-medium"](**SMALL, fast=("compile",)), Calls()
    calls.watch(world.backbone)
    shared, z = SharedTrunk(world.backbone), latents(world)
    both = z.repeat(2, 1, 1, 1)
    with torch.no_grad(), calls.during() as spent:
        shared.trunk(z, T, 1)
        u = shared.velocity(both, T, ["", *C])
    assert spent["blocks"] == 1 + 1 + 2  # the prompt's branch up to there, then both
    with torch.no_grad():
        torch.testing.assert_close(u, world.backbone.velocity(both, T, ["", *C]))


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_flops_are_counted_through_compiled_blocks():
    plain, quick = (BUILDS["sd35-medium"](**SMALL, fast=f) for f in ((), ("compile",)))
    found = [
        count_flops(lambda world=world: world.backbone.velocity(latents(world), T, C))
        for world in (plain, quick)
    ]
    assert found[0] == found[1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_twin_with_lora_trains_when_compiled():
    world = BUILDS["sd35-medium"](**SMALL, fast=("compile",))
    twin, z = lora.adapted(world.generator, rank=2), latents(world)
    torch.testing.assert_close(twin.velocity(z, T, C), world.backbone.velocity(z, T, C))
    twin.velocity(z, T, C).square().mean().backward()
    asked = [w for w in twin.parameters() if w.requires_grad]
    assert asked
    assert any(w.grad is not None and bool(w.grad.abs().sum() > 0) for w in asked)


def test_a_decoder_with_channels_last_says_the_same(small):
    z, plain = latents(small), small.backbone
    quick = fast.quick_backbone(copy.deepcopy(plain), ("channels_last",), "cpu")
    torch.testing.assert_close(quick.decode(z), plain.decode(z), rtol=1e-4, atol=1e-4)
    convolutions = [w for w in quick.vae.parameters() if w.ndim == 4 and w.shape[2] > 1]
    assert convolutions
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)


def test_on_shapes_alone_nothing_is_compiled():
    world = BUILDS["sd35-medium"](**SMALL, fast=("compile",), device="meta")
    assert not any("Compiled" in type(b).__name__ for b in world.generator.blocks)


def test_a_fast_world_is_another_and_a_plain_one_the_same_as_ever():
    digests = {BUILDS["sd35-medium"](fast=f).digest for f in ((), ("compile",))}
    assert len(digests) == 2
    with pytest.raises(ValueError, match="fast"):
        named("sd35-medium,fast=[warp]")


@pytest.mark.slow
def test_generated_code_says_what_plain_blocks_do():
    plain, quick = (BUILDS["sd35-medium"](**SMALL, fast=f) for f in ((), ("compile",)))
    for mine, theirs in zip(values(quick), values(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
