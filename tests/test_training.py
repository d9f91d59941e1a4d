"""DiffusionNFT, DRaFT-K and Flow-GRPO-Fast, where gradients and expected rewards are known."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines import ESTIMATORS
from baselines import flow_grpo as grpo
from bench.worlds import WORLDS
from bench.worlds.gaussian.truth import Truth
from stitchvm import checkpoint
from stitchvm.align import draft, nft
from stitchvm.align.nft import LOSSES, OLD, Taught, optimality
from stitchvm.align.policy import Policy
from stitchvm.align.training import CHECKPOINT, Keep, Recipe, Stop, advantages, flat
from stitchvm.path import anchor, bridge, denoise, noise, time_grid
from stitchvm.sample import NU, Ode, Sde
from stitchvm.streams import Streams
from stitchvm.value import Target, ValueEstimator

TIMES = tuple(time_grid(6).tolist())
RECIPE = Recipe(steps=3, prompts=4, group=6, rate=0.02, decay=0.0, batch=9)


@pytest.fixture(scope="module")
def world():
    return WORLDS["gaussian"](latent=(2, 2, 2), components=3, rank=2, prompts=4)


def policy_of(world):
    return Policy(world.trainable(rank=1, seed=0), world.backbone.velocity)


def terminal(world, reward="linear"):
    return ESTIMATORS["terminal"](world, world.reward(reward))


def expected_reward(world, network, reward="linear"):
    """Of a mixture, exact, averaged over prompts: the value where nothing is known of z_0."""
    truth = Truth(network, world.reward(reward), Target("mean", "prompt"))
    z = torch.zeros(len(world.prompts), *world.backbone.latent, dtype=torch.float64)
    with torch.no_grad():
        return float(truth(z, torch.tensor(1.0, dtype=torch.float64), world.prompts).mean())


def trained(world, kind, recipe=RECIPE, keep=None, **plan):
    """A policy, and the records of its training."""
    policy = policy_of(world)
    module = {"nft": nft, "draft": draft, "flow_grpo": grpo}[kind]
    run = getattr(module, kind)(
        policy,
        terminal(world),
        world.prompts,
        module.Plan(TIMES, **plan),
        recipe,
        keep=keep or Keep(),
    )
    return policy, list(run)


KINDS = ("nft", "draft", "flow_grpo")


# the bridge and its anchor


def on_the_way(world, tau, t, rows, seed=0):
    """Anchors z_tau of data, noised on to t: prompts, anchors, what the bridge says."""
    c = [world.prompts[row % len(world.prompts)] for row in range(rows)]
    rng = Streams.of(seed, "way", rows=rows)
    z_0 = world.draw(c, rng.child("z_0"))
    z_tau = noise(z_0, tau, rng.child("tau").normal(z_0))
    return c, z_tau, bridge(z_tau, tau, t, rng.child("t").normal(z_0))


def shaken(policy):
    """Its weights moved a little, the same whenever asked."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.weights.values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_a_bridge_leads_back_to_its_anchor(world, tau):
    tau, t = double(tau), double([0.31, 0.5, 0.9, 1.0])
    _, z_tau, made = on_the_way(world, tau, t, 4)
    torch.testing.assert_close(anchor(made.z_t, tau, t, made.u), z_tau, rtol=1e-9, atol=1e-9)


def test_the_anchor_at_time_zero_is_the_denoised_latent(world):
    t = double(0.4)
    _, _, made = on_the_way(world, double(0.0), t, 4)
    found = anchor(made.z_t, double(0.0), t, made.u)
    torch.testing.assert_close(found, denoise(made.z_t, t, made.u), rtol=1e-12, atol=1e-12)


def test_an_anchor_is_where_it_is_as_the_times_meet(world):
    """Where the bridge's velocity is without bound, the anchor is the latent itself."""
    tau, t = double(0.3), double(0.3 + 1e-9)
    c, z_tau, made = on_the_way(world, tau, t, 4)
    assert made.u.abs().max() > 1e3
    u = world.backbone.velocity(made.z_t, t, c)
    torch.testing.assert_close(anchor(made.z_t, tau, t, u), z_tau, rtol=0, atol=1e-3)


def test_the_bridges_velocity_is_the_marginal_one_on_average(world):
    """E[(u_{t|tau} - u_t) f(z_t)] = 0 for functions of z_t: five, each in every coordinate."""
    tau, t, rows = double(0.3), double(0.5), 40_000
    c, _, made = on_the_way(world, tau, t, rows)
    off = made.u - world.backbone.velocity(made.z_t, t, c)
    for f in (torch.ones_like(off), made.z_t, made.z_t**2, made.z_t.sin(), made.z_t.flip(1)):
        x = (off * f).flatten(1)
        z = x.mean(0) / (x.std(0) / math.sqrt(rows))
        assert z.abs().max() < 4.5, z
    assert off.std() > 1  # it is not zero, but averages to zero


# what the losses' gradients are


def batch(rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_tau, eps, u_old = torch.randn(3, rows, 2, 3, 3, dtype=torch.float64, generator=generator)
    tau, t = double(0.2).expand(rows), double([0.3, 0.5, 0.7, 0.9, 1.0])[:rows]
    made = bridge(z_tau, tau, t, eps)
    r = torch.rand(rows, dtype=torch.float64, generator=generator)
    return Taught(made.z_t, t, z_tau, tau, made.u), u_old, r


def gradient(loss, taught, u, u_old, r, beta):
    u = u.clone().requires_grad_()
    LOSSES[loss](taught, u, u_old, r, beta).sum().backward()
    return u.grad


def rows_of(x):
    return x[:, None, None, None]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_printed_gradient_is_proportional_to_beta(beta):
    taught, u_old, r = batch()
    found = gradient("velocity", taught, u_old, u_old, r, beta)
    expected = 2 * beta * rows_of(2 * r - 1) * (u_old - taught.u) / u_old[0].numel()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_the_public_gradient_is_free_of_beta():
    """(2 r - 1) times that of the weighted squared error of the anchor."""
    taught, u_old, r = batch()
    u = u_old.clone().requires_grad_()
    off = anchor(taught.z_t, taught.tau, taught.t, u) - taught.z_tau
    weight = off.detach().abs().flatten(1).mean(1)
    (off.square().flatten(1).mean(1) / weight).sum().backward()
    for beta in (0.1, 1.0):
        found = gradient("anchor", taught, u_old, u_old, r, beta)
        torch.testing.assert_close(found, rows_of(2 * r - 1) * u.grad, rtol=1e-8, atol=1e-12)


def test_the_public_loss_at_the_old_policy_says_nothing_of_the_reward():
    taught, u_old, r = batch()
    one, other = (LOSSES["anchor"](taught, u_old, u_old, x, 0.5) for x in (r, 1 - r))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_anchors_and_velocities_are_one_error_in_two_units():
    taught, u, _ = batch()
    off = anchor(taught.z_t, taught.tau, taught.t, u) - taught.z_tau
    t, tau = taught.t, taught.tau
    sbar_square = t**2 - ((1 - t) / (1 - tau) * tau) ** 2
    unit = rows_of((1 - tau) / t * sbar_square)
    torch.testing.assert_close(off, -unit * (u - taught.u), rtol=1e-9, atol=1e-9)


def test_the_adaptive_weight_is_each_branchs_own_and_has_a_floor():
    taught, u_old, _ = batch()
    u = u_old + 0.3
    one = torch.ones(len(u), dtype=torch.float64)
    for r, v in ((one, 0.5 * u + 0.5 * u_old), (0 * one, 1.5 * u_old - 0.5 * u)):
        off = (anchor(taught.z_t, taught.tau, taught.t, v) - taught.z_tau).flatten(1)
        expected = off.square().mean(1) / off.abs().mean(1) / 0.5
        torch.testing.assert_close(LOSSES["anchor"](taught, u, u_old, r, 0.5), expected)
    exact = taught._replace(z_tau=anchor(taught.z_t, taught.tau, taught.t, u_old))
    assert LOSSES["anchor"](exact, u_old, u_old, one, 1.0).abs().max() < 1e-20


# rewards as advantages and probabilities


def test_optimality_is_by_prompt_in_units_of_the_spread_of_all():
    reward = double([1.0, 3.0, 10.0, 16.0])
    spread = reward.std(correction=0)  # prompts' means included
    expected = 0.5 + double([-1.0, 1.0, -3.0, 3.0]) / (spread + 1e-4) / 10
    torch.testing.assert_close(optimality(reward, 2, 5.0), expected, rtol=1e-9, atol=0)


def test_advantages_are_clipped_and_equal_rewards_teach_nothing():
    reward = torch.zeros(100, dtype=torch.float64)
    assert torch.equal(optimality(reward, 10, 5.0), torch.full_like(reward, 0.5))
    assert flat(reward, 10) == 1.0
    reward[0] = 1.0
    assert advantages(reward, 10, 5.0)[0] == 5.0
    assert optimality(reward, 10, 5.0)[0] == 1.0
    assert flat(reward, 10) == 0.9


def test_the_old_policy_follows_by_schedule():
    steps = (1, 75, 175, 1000)
    assert [OLD[0](k) for k in steps] == [0, 0, 0, 0]
    assert [OLD[1](k) for k in steps] == pytest.approx([0.001, 0.075, 0.175, 0.5])
    assert [OLD[2](k) for k in steps] == pytest.approx([0, 0, 0.75, 0.999])


def test_equal_rewards_leave_the_policy_where_it_is(world):
    """Zero spread: probability 1/2 for all, no gradient but the reference's, which is 0 too.

    Up to a thousandth of a step: Adam divides rounding by its own size.
    """

    class Equal(ValueEstimator):
        latent, target = world.backbone.latent, Target("mean", "data")

        def forward(self, z_t, t, c, rng=None):
            return torch.ones(len(z_t), dtype=z_t.dtype)

    policy = policy_of(world)
    before = {name: w.detach().clone() for name, w in policy.weights.items()}
    records = list(nft.nft(policy, Equal(), world.prompts, nft.Plan(TIMES), RECIPE))
    assert [record.flat for record in records] == [1.0] * 3
    for name, weight in policy.weights.items():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=1e-3 * RECIPE.rate)


# training raises what it should


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        ("nft", {}),
        ("nft", {"loss": "velocity", "beta": 1.0}),
        ("draft", {}),
        ("draft", {"last": 3, "recompute": True}),
        ("flow_grpo", {"clip": 0.2}),
    ],
)
def test_training_raises_the_exact_expected_reward(world, kind, plan):
    policy, records = trained(world, kind, replace(RECIPE, steps=20, group=12), **plan)
    base = expected_reward(world, policy_of(world).network)
    now = expected_reward(world, policy.network)
    policy.become(policy.averaged)
    kept = expected_reward(world, policy.network)
    assert now > base + 0.05
    assert kept > base + 0.04
    assert all(math.isfinite(record.loss) for record in records)
    assert records[-1].samples == 20 * 4 * 12


@pytest.mark.parametrize("kind", ["nft", "draft"])
def test_stopped_at_tau_an_exact_value_raises_it_too(world, kind):
    """The same code, rollouts of 3 or 4 of 6 steps, no sample ever finished."""
    policy, value = policy_of(world), ESTIMATORS["truth"](world, world.reward("linear"))
    module = {"nft": nft, "draft": draft}[kind]
    plan = module.Plan(TIMES, stop=Stop(3, 4))
    recipe = replace(RECIPE, steps=20, group=12)
    list(getattr(module, kind)(policy, value, world.prompts, plan, recipe))
    assert expected_reward(world, policy.network) > 0.04 + expected_reward(
        world, policy_of(world).network
    )


@pytest.mark.parametrize("last", [1, 2, 6])
@pytest.mark.parametrize("recompute", [False, True])
def test_drafts_gradient_is_that_of_finite_differences(world, last, recompute):
    """Of the value as a function of a weight that only the last K steps see."""
    policy, value = policy_of(world), terminal(world, "sigmoid")
    rng = Streams.of(0, rows=3)
    c = list(world.prompts[:3])
    z = rng.normal(torch.empty(3, *policy.latent, dtype=torch.float64))
    plan = draft.Plan(TIMES, last=last, recompute=recompute)
    times = double(TIMES)
    shaken(policy)  # away from the reference
    held = {name: w.detach().clone() for name, w in policy.weights.items()}

    def worth(weights):
        """The steps before the last K by the old weights, those by these; 2 x the distance off."""
        x, turn, off = z, len(TIMES) - 1 - last, []
        for k, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
            velocity = policy.holding(held if k < turn else weights)
            if k >= turn:
                u, u_ref = velocity(x, t, c), policy.reference(x, t, c)
                off.append((u - u_ref).square().flatten(1).mean(1))
            x = Ode(velocity).transition(x, t, s, c).mean
        return (value(x, times[-1], c) - 2 * torch.stack(off).mean(0)).sum()

    from stitchvm.align.training import Samples  # noqa: PLC0415

    end = draft._rolled(policy, z, times, Samples(c, rng), plan, Ode)
    (value(end.z, times[-1], c) - 2 * end.kl).sum().backward()
    name = next(n for n in policy.weights if n.endswith("means"))
    grad = policy.weights[name].grad
    for index in [(0, 0), (1, 3), (2, 7)]:
        near = []
        for sign in (1, -1):
            moved = {n: w.clone() for n, w in held.items()}
            moved[name][index] += sign * 1e-5
            near.append(worth(moved))
        assert float(grad[index]) == pytest.approx(float(near[0] - near[1]) / 2e-5, rel=1e-5)


def test_the_average_keeps_its_share_a_step_whatever_the_updates(world):
    """Of one step from 0: the average moves by 1 - 2/11 of the way, with one update or two."""
    for updates in (1, 2):
        policy, _ = trained(world, "flow_grpo", replace(RECIPE, steps=1), updates=updates)
        before = policy_of(world)
        for name, weight in policy.weights.items():
            moved = weight.detach() - before.weights[name].detach()
            kept = policy.averaged[name] - before.weights[name].detach()
            torch.testing.assert_close(kept, (1 - 2 / 11) * moved, rtol=1e-9, atol=1e-12)


def test_a_sample_is_taught_at_its_share_of_times_on_average():
    plan, rng = nft.Plan(TIMES, share=0.35), torch.Generator().manual_seed(0)
    counts = [plan.count(6, rng) for _ in range(2000)]
    assert set(counts) == {2, 3}
    assert sum(counts) / 2000 == pytest.approx(2.1, abs=0.03)
    assert plan.count(1, rng) == 1


def test_ppo_clips_on_the_side_that_has_gone_far():
    ratio, advantage = double([1.5, 0.5, 1.5, 0.5]), double([1.0, 1.0, -1.0, -1.0])
    found = grpo.clipped(ratio, advantage, 0.2)
    assert found.tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8])


def test_log_probabilities_are_a_gaussians_but_for_constants(world):
    z = torch.zeros(2, *world.backbone.latent, dtype=torch.float64)
    t, s, c = double(0.5), double(0.4), list(world.prompts[:2])
    kernel = Sde(world.backbone.velocity, NU["flow_grpo"]).transition(z, t, s, c)
    x, y = (kernel.mean + k for k in (0.1, 0.4))
    std = kernel.std.expand_as(x)
    exact = torch.distributions.Normal(kernel.mean, std)
    expected = (exact.log_prob(x) - exact.log_prob(y)).flatten(1).mean(1)
    torch.testing.assert_close(grpo.log_p(kernel, x) - grpo.log_p(kernel, y), expected)


# one seed, one result


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_changes_nothing(world, kind):
    whole = trained(world, kind, replace(RECIPE, batch=24))[0]
    for size in (1, 7):
        policy = trained(world, kind, replace(RECIPE, batch=size))[0]
        for name, weight in policy.weights.items():
            torch.testing.assert_close(weight, whole.weights[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(world, kind, tmp_path):
    recipe = replace(RECIPE, steps=5)
    plan = {} if kind == "flow_grpo" else {"stop": Stop(2, 5)}
    whole, records = trained(world, kind, recipe, **plan)
    keep = Keep(tmp_path, every=2)
    trained(world, kind, replace(recipe, steps=4), keep, **plan)
    policy, rest = trained(world, kind, recipe, keep, **plan)
    assert [record.step for record in rest] == [5]
    same = [a == b or a != a for a, b in zip(rest[0][:-1], records[-1][:-1], strict=True)]  # noqa: PLR0124
    assert all(same)
    for values in ("weights", "old", "averaged"):
        for name, value in getattr(policy, values).items():
            assert torch.equal(value, getattr(whole, values)[name])


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_training as t
from stitchvm.align.training import Keep
from pathlib import Path
world = t.WORLDS["gaussian"](latent=(2, 2, 2), components=3, rank=2, prompts=4)
policy = t.policy_of(world)
recipe = t.replace(t.RECIPE, steps=100000)
run = t.nft.nft(policy, t.terminal(world), world.prompts, t.nft.Plan(t.TIMES), recipe,
                keep=Keep(Path({folder!r}), every=1))
for record in run:
    print(record.step, flush=True)
"""


def test_a_run_killed_at_any_moment_goes_on_from_a_whole_checkpoint(world, tmp_path):
    """Three times with SIGKILL, whatever it is doing: it writes a checkpoint every step."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    steps = 0
    for wait in (0.05, 0.11, 0.23):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
        kept = checkpoint.read(tmp_path / CHECKPOINT)["step"]
        assert kept > steps
        steps = kept
    recipe = replace(RECIPE, steps=steps + 1)
    whole, records = trained(world, "nft", recipe)
    state = checkpoint.read(tmp_path / CHECKPOINT)
    state["recipe"]["steps"] = steps
    checkpoint.write(tmp_path / CHECKPOINT, state)
    policy, rest = trained(world, "nft", recipe, Keep(tmp_path))
    assert rest[0].reward == records[-1].reward
    for name, value in policy.weights.items():
        assert torch.equal(value, whole.weights[name])


def test_a_torn_checkpoint_or_one_of_another_run_is_refused(world, tmp_path):
    keep = Keep(tmp_path)
    trained(world, "nft", keep=keep)
    with pytest.raises(ValueError, match="expected a checkpoint of .*'beta': 0.5"):
        trained(world, "nft", keep=keep, beta=0.5)
    with pytest.raises(ValueError, match="expected a checkpoint of .*draft"):
        trained(world, "draft", keep=keep)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        trained(world, "nft", keep=keep)


def test_prompts_come_in_rounds(world):
    from stitchvm.align.training import Training  # noqa: PLC0415

    recipe = replace(RECIPE, prompts=3)
    run = Training(policy_of(world), recipe, {}, Keep(), time.perf_counter)
    seen = []
    for _ in range(4):
        seen += run.samples(world.prompts).c[:: recipe.group]
        run.step += 1
    for at in range(0, 12, 4):
        assert sorted(seen[at : at + 4]) == sorted(world.prompts)


# what goes wrong


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(world):
    class Odd(ValueEstimator):
        latent, target = world.backbone.latent, Target("mean", "data")

        def forward(self, z_t, t, c, rng=None):
            return z_t.flatten(1).sum(1) * float("nan")

    policy = policy_of(world)
    before = {name: w.detach().clone() for name, w in policy.weights.items()}
    records = list(draft.draft(policy, Odd(), world.prompts, draft.Plan(TIMES), RECIPE))
    assert [record.skipped for record in records] == [1, 2, 3]
    for name, weight in policy.weights.items():
        assert torch.equal(weight.detach(), before[name])
        assert torch.equal(policy.averaged[name], before[name])


@pytest.mark.parametrize("kind", ["nft", "flow_grpo"])
def test_a_group_of_one_is_refused(world, kind):
    with pytest.raises(ValueError, match="at least 2 samples a prompt to compare, got 1"):
        trained(world, kind, replace(RECIPE, group=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nft.Plan(TIMES, stop=Stop(3, 7)), r"stops within steps 1..6, got 3 to 7"),
        (lambda: nft.Plan(TIMES, stop=Stop(0, 3)), r"stops within steps 1..6, got 0 to 3"),
        (lambda: nft.Plan(TIMES, stop=Stop(4, 3)), r"stops within steps 1..6, got 4 to 3"),
        (lambda: nft.Plan(TIMES, stop=Stop(1, 3), gap=0.2), r"at least 0.2 above that of step 1"),
        (lambda: nft.Plan(TIMES, beta=0.0), "expected beta, most > 0"),
        (lambda: nft.Plan(TIMES, share=1.5), r"share in \(0, 1\], got 1.5"),
        (lambda: nft.Plan(TIMES, old=3), r"old in \[0, 1, 2\], got 3"),
        (lambda: draft.Plan(TIMES, last=7), r"K in 1..6, the steps that all rollouts have, got 7"),
        (lambda: draft.Plan(TIMES, last=4, stop=Stop(3, 5)), r"K in 1..3"),
        (lambda: draft.Plan(TIMES, last=0), r"K in 1..6"),
        (lambda: draft.Plan(TIMES, regulariser=-1.0), "regulariser >= 0, got -1"),
        (lambda: grpo.Plan(TIMES, window=4), r"a window of 1..3 steps, .* got 4"),
        (lambda: grpo.Plan(TIMES, clip=0.0), "clip, most > 0"),
        (lambda: grpo.Plan(TIMES, updates=0), "updates >= 1, got 0"),
        (lambda: Recipe(steps=0), "steps >= 1, got 0"),
        (lambda: Recipe(steps=1, rate=0.0), "rate and clip > 0, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_generator_without_trainable_weights_is_refused(world):
    with pytest.raises(ValueError, match="expected a network with trainable weights, got none"):
        Policy(world.backbone, world.backbone.velocity)


def test_draft_refuses_a_value_without_a_gradient(world):
    value = ESTIMATORS["constant"](world, world.reward("linear"))
    with pytest.raises(ValueError, match="expected a differentiable value, got Constant"):
        next(draft.draft(policy_of(world), value, world.prompts, draft.Plan(TIMES), RECIPE))


def test_a_value_of_other_latents_is_refused(world):
    other = WORLDS["gaussian"](latent=(2, 4, 4), components=3, rank=2, prompts=4)
    for kind, module in (("nft", nft), ("draft", draft), ("flow_grpo", grpo)):
        run = getattr(module, kind)
        with pytest.raises(ValueError, match=r"value of latents \(2, 2, 2\), got \(2, 4, 4\)"):
            next(run(policy_of(world), terminal(other), world.prompts, module.Plan(TIMES), RECIPE))


def test_flow_grpo_refuses_a_deterministic_solver_and_more_updates_than_prompts(world):
    given = (policy_of(world), terminal(world), world.prompts)
    with pytest.raises(ValueError, match="expected a stochastic solver"):
        next(grpo.flow_grpo(*given, grpo.Plan(TIMES), RECIPE, solver=Ode))
    with pytest.raises(ValueError, match="at most 4 updates, one a prompt, got 5"):
        next(grpo.flow_grpo(*given, grpo.Plan(TIMES, updates=5), RECIPE))
