"""LoRA twins of generators: nothing of the original changes, and diffusers loads what is saved."""

import pytest
import torch
from test_models_generators import (
    BACKBONES,
    EXACT,
    PROMPTS,
    flux_pipeline,
    plain,
    sd3_pipeline,
)

from stitchvm.align.policy import Policy
from stitchvm.models import lora
from stitchvm.models.flux import FluxBackbone, FluxTexts
from stitchvm.models.sd3 import Sd3Backbone, Sd3Texts

RANK = 3


def made(name):
    torch.manual_seed(0)
    return BACKBONES[name]()


def asked(backbone, rows=2):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, *backbone.latent, dtype=torch.float64, generator=generator)
    return z, torch.tensor([0.3, 0.8], dtype=torch.float64)[:rows], PROMPTS[:rows]


def shaken(twin, seed=2):
    """The twin, its LoRA weights no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trained(twin).values():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return twin


def trained(twin):
    return {n: w for n, w in twin.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_twin_begins_as_the_generator_and_shares_all_its_weights(name):
    backbone = made(name)
    before = {n: w.clone() for n, w in backbone.state_dict().items()}
    with torch.no_grad():
        expected = backbone.velocity(*asked(backbone))
    twin = lora.adapted(backbone, RANK)
    with torch.no_grad():
        torch.testing.assert_close(twin.velocity(*asked(twin)), expected, **EXACT)
        assert not torch.allclose(shaken(twin).velocity(*asked(twin)), expected, rtol=1e-3)
        assert torch.equal(backbone.velocity(*asked(backbone)), expected)
    assert {n: w.shape for n, w in backbone.state_dict().items()} == {
        n: w.shape for n, w in before.items()
    }
    assert all(torch.equal(w, before[n]) for n, w in backbone.state_dict().items())
    own = {w.data_ptr() for w in backbone.parameters()}
    frozen = [w for w in twin.parameters() if not w.requires_grad]
    assert len(frozen) == len(list(backbone.parameters()))
    assert {w.data_ptr() for w in frozen} == own


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_trained_is_lora_on_every_attention_projection(name):
    backbone = made(name)
    layers = {
        n
        for n, module in backbone.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and n.endswith(lora.ATTENTION)
    }
    weights = trained(lora.adapted(backbone, RANK))
    found = {n.removeprefix("transformer.").partition(".lora_")[0] for n in weights}
    assert found == layers
    assert len(weights) == 2 * len(layers)
    assert all(RANK in weight.shape for weight in weights.values())


def test_a_seed_decides_what_it_begins_with_and_no_other_draw_does():
    backbone = made("sd3")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (trained(lora.adapted(backbone, RANK, seed=s)) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


def test_weights_of_a_half_precision_generator_are_trained_in_32_bits():
    """Steps of 3e-4, and averages of them, would round to nothing in bfloat16."""
    backbone = made("sd3").to(torch.bfloat16)
    policy = Policy(lora.adapted(backbone, RANK), backbone.velocity)
    assert {w.dtype for w in (*policy.weights.values(), *policy.old.values())} == {torch.float32}
    z, t, c = asked(backbone)
    z = z.float()
    with torch.no_grad():
        expected = backbone.velocity(z, t, c)
    u = policy.velocity(z, t, c)
    torch.testing.assert_close(u.detach(), expected, rtol=2e-2, atol=2e-2)
    u.square().sum().backward()
    assert all(
        w.grad is not None and w.grad.dtype == torch.float32 for w in policy.weights.values()
    )


def test_a_policy_of_a_twin_has_three_velocities_of_one_network():
    backbone = made("sd35_medium")
    policy = Policy(lora.adapted(backbone, RANK), backbone.velocity)
    given = asked(backbone)
    shaken(policy.network)
    current = policy.velocity(*given)
    assert current.requires_grad
    old = policy.holding(policy.old)(*given)
    assert not old.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(old, policy.reference(*given), **EXACT)
    assert not torch.allclose(current, old, rtol=1e-3)
    policy.follow(policy.old, 0.0)
    torch.testing.assert_close(policy.holding(policy.old)(*given), current.detach(), **EXACT)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_diffusers_loads_what_is_saved(kind, tmp_path):
    if kind == "sd3":
        pipe = sd3_pipeline(patch_size=1, num_layers=2)
        backbone = Sd3Backbone(pipe.transformer, pipe.vae, Sd3Texts(pipe, 0))
    else:
        pipe = flux_pipeline(guidance=False)
        texts = FluxTexts(pipe, 7)
        backbone = FluxBackbone(pipe.transformer, pipe.vae, texts, guidance=None, latent=(4, 8, 8))
    twin = shaken(lora.adapted(backbone, RANK, alpha=5))
    lora.save(twin, tmp_path)
    with torch.no_grad():
        expected = twin.velocity(*asked(twin))
    pipe.load_lora_weights(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(backbone.velocity(*asked(backbone)), expected, rtol=1e-6,
                                   atol=1e-6)  # fmt: skip


def test_what_is_saved_is_read_back(tmp_path):
    backbone = made("sd3")
    one, other = (lora.adapted(backbone, RANK, seed=s) for s in (0, 1))
    lora.save(shaken(one), tmp_path)
    lora.load(other, tmp_path)
    for name, weight in trained(one).items():
        assert torch.equal(trained(other)[name], weight)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    backbone = made("sd3")
    lora.save(shaken(lora.adapted(backbone, RANK)), tmp_path)
    with pytest.raises(ValueError, match=r"of rank 4, got .* they differ at .*lora_A"):
        lora.load(lora.adapted(backbone, 4), tmp_path)
    with pytest.raises(ValueError, match=r"expected LoRA weights of 4 tensors"):
        lora.load(lora.adapted(backbone, RANK, targets=("0.attn.to_q", "1.attn.to_q")), tmp_path)
    with pytest.raises(ValueError, match="expected LoRA of alpha 9, got 6"):
        lora.load(lora.adapted(backbone, RANK, alpha=9), tmp_path)
    with pytest.raises(FileNotFoundError, match="expected LoRA weights in .*, got none"):
        lora.load(lora.adapted(backbone, RANK), tmp_path / "nowhere")


def test_what_cannot_be_adapted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected rank >= 1, got 0"):
        lora.adapted(plain(), 0)
    with pytest.raises(ValueError, match="expected a generator with LoRA weights"):
        lora.save(plain(), tmp_path)
    with pytest.raises(ValueError, match="[Tt]arget"):
        lora.adapted(plain(), RANK, targets=("nothing",))
