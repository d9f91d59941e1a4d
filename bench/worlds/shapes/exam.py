"""What the shapes world's networks can do, on scenes and prompts that nothing was trained on.

Every figure comes with its count; shares and recalls with a Wilson interval.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import scipy.stats
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.stats import share_interval
from bench.worlds.shapes.captions import KIND_NAMES, parse
from bench.worlds.shapes.make.clip import AMONG, Told, recalled
from bench.worlds.shapes.make.preference import graded, pairs, pleased
from bench.worlds.shapes.make.vae import psnr
from bench.worlds.shapes.prompts import prompt_set
from bench.worlds.shapes.ratings import rating
from bench.worlds.shapes.scenes import COLOURS, HELD_OUT, SHAPES, draw, render
from bench.worlds.shapes.verifier import correct
from bench.worlds.shapes.world import ShapesWorld
from stitchvm.align.guide import CFG
from stitchvm.path import time_grid
from stitchvm.sample import Ode, sample
from stitchvm.streams import Streams, derive

SCALES = (1.0, 2.0, 3.0, 4.0, 6.0)  # of guidance
STEPS = 28  # of the ODE, as SD 3.5's own default
PER_KIND = 6  # prompts of each kind
SEEDS, BEST_SEEDS = 4, 20  # samples of each prompt, and at the guidance that was chosen
PAIRS = 6000  # of pictures, for the rewards that learned preferences
AT_ONCE = 120
SD35_MEDIUM = {"denoise": 22.5, "decode": 10.47, "reward": 0.38}  # TFLOP at 1024 px, CLIP-L/336


def share(right: Tensor) -> dict[str, float]:
    """A share with its count and 95 % Wilson interval."""
    found = share_interval(right.flatten().double().numpy())
    return {"share": found.mean, "lo": found.lo, "hi": found.hi, "n": found.n}


def batched(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of batches, in batches."""
    with torch.no_grad():
        return torch.cat([function(part) for part in x.split(AT_ONCE)])


def autoencoders(world: ShapesWorld) -> Iterator[tuple[str, Any]]:
    """PSNR of both decoders, and the verifier on what the VAE makes of pictures."""
    scenes = draw("eval", 1200)
    x = render(scenes)
    z = batched(world.backbone.encode, x)
    again = batched(world.backbone.decode, z)
    for name, y in (("vae", again), ("tiny", batched(world.tiny.decode, z))):
        yield f"psnr_{name}_db", psnr(x, y).mean().item()
    held = Told(scenes)
    rng = torch.Generator().manual_seed(0)
    texts = [held.caption(row, rng) for row in range(len(scenes))]
    kinds = [parse(text).kind for text in texts]
    for name, y in (("rendered", x), ("reconstructed", again)):
        yield f"verifier_{name}", by_kind(correct(y, texts), kinds)
    false = texts[1:] + texts[:1]
    wrong = torch.tensor(
        [c not in told_of for c, told_of in zip(false, held.captions, strict=True)]
    )
    refused = ~correct(x, false)
    yield "verifier_refuses_false", share(refused[wrong])


def by_kind(right: Tensor, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Shares of each kind of prompt, and of all."""
    out = {"all": share(right)}
    for kind in KIND_NAMES:
        out[kind] = share(right[torch.tensor([k == kind for k in kinds])])
    return out


def rewards(world: ShapesWorld) -> Iterator[tuple[str, Any]]:
    """Recall of CLIP, rank correlation of the aesthetic, accuracy of both preferences."""
    clip: Any = world.reward("clip")
    for split in ("eval", "shift"):
        held = Told(draw(split, AMONG))
        rng = torch.Generator().manual_seed(1)
        texts = [held.caption(row, rng) for row in range(AMONG)]
        e = batched(lambda x: clip.features(x).embedding, render(held.scenes))
        yield f"clip_recall_at_1_{split}", share(recalled(e, clip.texts(texts), held.true(texts)))
    scenes = draw("eval", 4096)
    r = batched(lambda x: world.reward("aesthetic")(x, ["a circle"] * len(x)), render(scenes))
    yield (
        "aesthetic_spearman",
        {
            "rho": float(scipy.stats.spearmanr(r, rating(scenes)).statistic),
            "n": len(scenes),
        },
    )
    held = Told(draw("eval", PAIRS))
    for name, rule in (("hps", graded), ("pick", pleased)):
        x, texts, better, chosen = pairs(held, rule, PAIRS, torch.Generator().manual_seed(2))
        reward = world.reward(name)
        scores = torch.cat(
            [
                batched(lambda part: reward.features(part).embedding, side)  # noqa: B023
                for side in x.chunk(2)
            ]
        )
        a, b = (reward.score(e, texts) for e in scores.chunk(2))
        yield f"{name}_pairwise_accuracy", share((a > b) == chosen)
        yield f"{name}_pairwise_ceiling", share((better > 0) == chosen)


@torch.no_grad()
def pictures(
    world: ShapesWorld, prompts: Sequence[str], scale: float, steps: int = STEPS, seed: int = 0
) -> Tensor:
    """One sample of each prompt, (P, 3, 32, 32); the noise depends on prompt and seed alone."""
    parts = []
    for first in range(0, len(prompts), AT_ONCE):
        c = list(prompts[first : first + AT_ONCE])
        rng = Streams(derive(seed, "picture", text) for text in c)
        z = rng.normal(torch.empty(len(c), *world.backbone.latent))
        sampler = Ode(CFG(world.backbone.velocity, scale))
        parts.append(world.backbone.decode(sample(sampler, z, time_grid(steps), c)))
    return torch.cat(parts)


def generation(
    world: ShapesWorld, split: str, scales: Sequence[float], seeds: int = SEEDS
) -> Iterator[tuple[str, Any]]:
    """Share of right pictures by kind at each guidance scale, and what the judges say."""
    once = prompt_set(split, PER_KIND)  # type: ignore[arg-type]
    prompts = once * seeds
    kinds = [parse(text).kind for text in prompts]
    for scale in scales:
        x = sampled(world, once, scale, seeds)
        scores = {
            name: torch.cat([world.reward(name)(part, c) for part, c in in_batches(x, prompts)])
            .mean()
            .item()
            for name in (*world.rewards, *world.judges)
        }
        yield f"{scale:g}", {"right": by_kind(correct(x, prompts), kinds), "scores": scores}


def sampled(world: ShapesWorld, prompts: Sequence[str], scale: float, seeds: int) -> Tensor:
    """Samples of all prompts with the first seed, then the next, (seeds P, 3, 32, 32)."""
    return torch.cat([pictures(world, prompts, scale, seed=seed) for seed in range(seeds)])


def in_batches(x: Tensor, c: Sequence[str]) -> Iterator[tuple[Tensor, list[str]]]:
    """Pictures and their prompts, AT_ONCE at a time."""
    for first in range(0, len(x), AT_ONCE):
        yield x[first : first + AT_ONCE], list(c[first : first + AT_ONCE])


def shifted(world: ShapesWorld, scale: float, seeds: int = 4) -> dict[str, dict[str, float]]:
    """Right pictures of kinds that training left out, beside kinds as simple that it had."""
    out = {}
    seen = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT]
    for name, kinds in (("held_out", HELD_OUT), ("seen", seen[:: len(seen) // len(HELD_OUT)])):
        prompts = [f"a {size}{c} {s}" for c, s in kinds for size in ("", "small ", "large ")]
        out[name] = share(correct(sampled(world, prompts, scale, seeds), prompts * seeds))
    return out


def shares(world: ShapesWorld) -> dict[str, dict[str, float]]:
    """FLOPs of one guided denoise, one decode and one reward, here and at SD 3.5 Medium."""
    z, t = torch.zeros(1, *world.backbone.latent), torch.tensor(0.5)
    cfg, reward = CFG(world.backbone.velocity, 2.0), world.reward("clip")
    x, c = world.backbone.decode(z), [world.prompts[0]]
    steps: dict[str, Callable[[], Any]] = {
        "denoise": lambda: cfg(z, t, c),
        "decode": lambda: world.backbone.decode(z),
        "reward": lambda: reward(x, c),
    }
    here = {}
    for name, step in steps.items():
        step()  # prompts are remembered after it
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _plain_attention():
            step()
        here[name] = counter.get_total_flops() / 1e9
    scale = SD35_MEDIUM["denoise"] / here["denoise"]
    return {
        "gflop": here,
        "scaled": {name: flops * scale for name, flops in here.items()},
        "sd35_medium_tflop": SD35_MEDIUM,
    }


def _plain_attention() -> Any:
    """Attention by matrix products, which are counted; the CPU's fused kernel is not."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
