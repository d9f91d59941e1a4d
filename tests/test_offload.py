"""Blocks that wait in main memory: the same numbers, in less room, in every kind of pass."""

import copy
from itertools import pairwise

import pytest
import torch

from baselines import ESTIMATORS
from bench import suite as suites
from bench.meter import Calls, Live
from bench.plan import plan
from bench.predict import predicted
from bench.predicted import cost
from bench.worlds import named
from bench.worlds.full import BUILDS, fast
from stitchvm.identity import identity
from stitchvm.models import lora
from stitchvm.models.offload import PIECE, Offloaded, offload, pin, waiting
from stitchvm.stitch import Stitched
from stitchvm.value import value_and_gradient

T = torch.tensor(0.7)
SMALL = {"side": 32, "blocks": 2, "precision": "float32"}
MODELS = ("sd35-medium", "flux-dev")  # a stack of blocks, and two of them


@pytest.fixture(scope="module")
def small():
    return named("shapes,generator=small")


@pytest.fixture(scope="module")
def pair(small):
    """A generator, and the same offloaded."""
    other = copy.deepcopy(small.backbone)
    offload(other.blocks)
    return small.backbone, other


def latents(backbone, rows=2):
    return torch.randn(rows, *backbone.latent, generator=torch.Generator().manual_seed(0))


def size(tensors):
    return sum(x.untyped_storage().nbytes() for x in tensors)


def gradient(backbone, i):
    z = latents(backbone).requires_grad_()
    backbone.trunk(z, T, i).features.square().sum().backward()
    return z.grad


def peak(backbone, call):
    live = Live(iter(backbone.state_dict().values()))
    with live:
        call()
    return live.peak


# the same numbers


def test_a_pass_says_the_same_to_the_bit(small, pair):
    plain, other = pair
    z, c = latents(plain), small.prompts[:2]
    assert torch.equal(other.velocity(z, T, c), plain.velocity(z, T, c))
    state, theirs = (b.trunk(z, T, 2, c) for b in (other, plain))
    assert torch.equal(state.features, theirs.features)
    assert torch.equal(
        other.resume(other.advance(state, 3)), plain.resume(plain.advance(theirs, 3))
    )


def test_a_gradient_is_the_same_to_the_bit_and_recomputed_as_well(pair):
    plain, other = pair
    assert torch.equal(gradient(other, 3), gradient(plain, 3))
    with other.recomputing():
        assert torch.equal(gradient(other, 3), gradient(plain, 3))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_stitched_value_of_true_shapes_is_the_same_to_the_bit(model):
    found = []
    for paths in ((), ("offload",)):
        world = BUILDS[model](**SMALL, fast=paths)
        value = ESTIMATORS["untrained"](world, world.reward("aesthetic"), i=1)
        found.append(value_and_gradient(value, latents(world.backbone, 1), T, ["a cat"]))
        assert len(waiting(world.backbone)) == bool(paths) * len(
            [w for block in world.generator.blocks for w in block.state_dict()]
        )
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_a_twin_with_lora_learns_the_same(pair):
    gradients = []
    for backbone in pair:
        twin = lora.adapted(backbone, rank=2)
        twin.velocity(latents(twin), T, ["", ""]).square().sum().backward()
        gradients.append({n: w.grad for n, w in twin.named_parameters() if w.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(x is not None and bool(x.any()) for x in gradients[0].values())
    for name, x in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], x, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_wait_as_plain_ones_do(small, monkeypatch):
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiling(f, backend="eager", **how))
    fast.compiled.cache_clear()
    paths = ("compile", "offload")
    quick = fast.quick_backbone(copy.deepcopy(small.backbone), paths, "cpu")
    assert all("OffloadedCompiled" in type(block).__name__ for block in quick.blocks)
    z, c = latents(quick), small.prompts[:2]
    torch.testing.assert_close(quick.velocity(z, T, c), small.backbone.velocity(z, T, c))
    torch.testing.assert_close(gradient(quick, 2), gradient(small.backbone, 2))
    fast.compiled.cache_clear()
    torch._dynamo.reset()


# in less room


def test_a_pass_without_a_gradient_holds_one_block_at_a_time(pair):
    plain, other = pair
    z = latents(plain)
    most = max(size(block.parameters()) for block in plain.blocks)
    with torch.no_grad():
        more = [peak(b, lambda b=b: b.velocity(z, T, ["", ""])) for b in (plain, other)]
    assert more[0] < more[1] <= more[0] + most


def test_a_graph_keeps_the_blocks_that_it_ran_and_those_alone(pair):
    plain, other = pair
    peaks = [[peak(b, lambda b=b, i=i: gradient(b, i)) for i in (1, 2, 3)] for b in pair]
    held = [mine - theirs for theirs, mine in zip(*peaks, strict=True)]
    own = size(plain.blocks[1].parameters())
    assert all(own / 2 < b - a <= own for a, b in pairwise(held))  # what going back reads of them
    with other.recomputing():
        mine = [peak(other, lambda i=i: gradient(other, i)) for i in (1, 3)]
    with plain.recomputing():
        theirs = [peak(plain, lambda i=i: gradient(plain, i)) for i in (1, 3)]
    assert mine[1] - theirs[1] == pytest.approx(mine[0] - theirs[0], abs=own / 2)


def test_weights_that_wait_are_not_predicted_to_be_resident():
    found = {}
    for paths in ((), ("offload",)):
        world = BUILDS["sd35-medium"](**SMALL, fast=paths, device="meta")
        backbone = world.backbone
        z = backbone.empty_latents(1)
        standing = list(backbone.state_dict().values())
        with torch.no_grad():
            call = lambda b=backbone, z=z: b.velocity(z, T.to("meta"), ["a cat"])  # noqa: E731
            found[paths] = cost(call, standing, backbone=backbone)
    plain, other = found.values()
    blocks = size(w for block in world.generator.blocks for w in block.parameters())
    assert plain.weights - other.weights == blocks
    assert plain.live < other.live < plain.live + blocks
    assert plain.flops == other.flops
    assert (plain.copied, other.copied) == (0, blocks)


# where they are


def test_blocks_stay_while_all_else_moves(pair):
    moved = copy.deepcopy(pair[1]).to("meta")
    assert {w.device.type for w in waiting(moved)} == {"cpu"}
    names = {n for n, w in moved.state_dict().items() if w.device.type == "cpu"}
    blocks = {n for n in names if "transformer_blocks" in n}
    assert names == blocks != set()
    moved.to(torch.bfloat16)
    assert {(w.device.type, w.dtype) for w in waiting(moved)} == {("cpu", torch.bfloat16)}


def test_weights_go_to_where_the_input_is():
    block = torch.nn.Linear(3, 2)
    before = {n: w.clone() for n, w in block.named_parameters()}
    offload([block])
    assert block(torch.ones(1, 3, device="meta")).device.type == "meta"
    assert isinstance(block, Offloaded)
    assert {n: w.device.type for n, w in block.named_parameters()} == {
        "weight": "cpu",
        "bias": "cpu",
    }
    assert all(torch.equal(w, before[n]) for n, w in block.named_parameters())


def test_pinned_weights_lie_together_and_say_the_same(small, pair):
    pieces, other = [], copy.deepcopy(pair[1])

    def allocate(size):
        pieces.append(torch.empty(size, dtype=torch.uint8))
        return pieces[-1]

    before = {name: w.clone() for name, w in other.state_dict().items()}
    pin(other.blocks, allocate)
    own = size(w for block in pair[0].blocks for w in block.parameters())
    assert [len(piece) for piece in pieces] == [PIECE]  # the smallest: all of them fit
    assert {w.untyped_storage().data_ptr() for w in waiting(other)} == {pieces[0].data_ptr()}
    assert all(w.data_ptr() % 64 == 0 for w in waiting(other))
    ends = [w.storage_offset() * w.element_size() + w.nbytes for w in waiting(other)]
    assert own <= max(ends) < 1.01 * own + 64 * len(ends)
    assert all(torch.equal(w, before[name]) for name, w in other.state_dict().items())
    z, c = latents(other), small.prompts[:2]
    assert torch.equal(other.velocity(z, T, c), pair[0].velocity(z, T, c))


def test_pinned_weights_take_as_many_pieces_as_they_need(monkeypatch):
    monkeypatch.setattr("stitchvm.models.offload.PIECE", 512)
    block, sizes = torch.nn.Sequential(*(torch.nn.Linear(8, k) for k in (8, 8, 64))), []

    def allocate(size):
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    before = [w.clone() for w in block.parameters()]
    pin([block], allocate)
    assert sizes == [512, 512, 2048, 512]  # 256 + 64 bytes, twice; 2048, larger than a piece; 256
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["cost-offload", "cost-fk", "cost-nft", "cost-stitch"])
def test_a_whole_cell_runs_across_two_devices(suite, monkeypatch):
    """Blocks on the CPU, all else on meta: PyTorch refuses what is on the wrong one."""
    cell = plan(suites.load(suite), quick=True)[0]
    settings = cell.spec.world.settings | {"side": 32, "fast": ["offload"]}
    world = cell.spec.world.model_copy(update={"settings": settings})
    cell = cell.model_copy(update={"spec": cell.spec.model_copy(update={"world": world})})
    (same,) = predicted([cell])
    monkeypatch.setattr("bench.worlds.full.world.made_on", lambda *_: "cpu")
    (mixed,) = predicted([cell])
    assert [c.flops for c in mixed.costs.values()] == [c.flops for c in same.costs.values()]
    assert mixed.waiting == same.waiting > 0


def test_to_offload_twice_is_to_do_it_once():
    block, calls = torch.nn.Linear(3, 2), []
    block.register_forward_hook(lambda *_: calls.append(1))
    offload([block])
    kind = type(block)
    offload([block])
    assert type(block) is kind
    block(torch.ones(1, 3))
    assert calls == [1]


def test_names_digests_and_counted_blocks_stay(pair):
    plain, other = pair
    assert list(plain.state_dict()) == list(other.state_dict())
    assert identity(plain.trunk_weights(2)) == identity(other.trunk_weights(2))
    calls = Calls()
    calls.watch(other)
    with calls.during() as spent:
        other.trunk(latents(other), T, 3)
    assert spent["blocks"] == 2 * 3


def test_a_saved_value_model_fits_an_offloaded_generator(small, pair, tmp_path):
    plain, other = pair
    reward = small.reward("aesthetic")
    value = ESTIMATORS["untrained"](small, reward, i=2)
    value.save_pretrained(tmp_path / "model")
    read = Stitched.from_pretrained(tmp_path / "model", other, reward)
    z, c = latents(plain), small.prompts[:2]
    assert torch.equal(read(z, T, c), value(z, T, c))
