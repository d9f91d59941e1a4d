"""From finished stages to the folder of weights that a world is loaded from.

    large/      a StableDiffusion3Pipeline       small/   the same without its own vae
    tiny/       AutoencoderTiny                  clip/ hps/ pick/   CLIPModel and tokenizer
    aesthetic/  head.safetensors                 banks/   what the quickstart needs
    reference.safetensors           logs/    what each stage recorded
    digests.json, README.md

All weights are float16 safetensors in shards of less than 3 MB.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModelWithProjection

from bench.worlds.shapes import SHIPPED_MEMBERS, SHIPPED_PROMPT_MEMBERS, reference, shapes
from bench.worlds.shapes.banks import Banks
from bench.worlds.shapes.make.words import tokenizer
from bench.worlds.shapes.weights import sign
from bench.worlds.shapes.world import REFERENCE
from stitchvm.models import sd3

SHARD = "2800KB"
REWARDS = ("clip", "hps", "pick")
CARD = """# The networks of the shapes world

Made by `stitchbench world build shapes` from procedural scenes alone (bench/worlds/shapes); no
picture or text of anyone's is in them.  Apache-2.0, as the code.  Figures are of the tune split;
`results/shapes` has those of held-out data.

| stage | steps | minutes, on one or two cores | best |
|---|---|---|---|
{stages}

| folder | parameters | on disk |
|---|---|---|
{sizes}

The generators' first text encoder was taught to read captions before (`reader`), and while they
learned, a linear head had to tell from their middle block which shape and colour lie where
(representation alignment, arXiv:2410.06940, with the scene as the reference).  No reward had a
part in it.

`large` and `small` are StableDiffusion3Pipelines without T5, `small` with the VAE of `large`;
every file's SHA-256 is in digests.json, whose own digest is the world's version.

With diffusers alone:

    pipe = StableDiffusion3Pipeline.from_pretrained(
        "large", text_encoder_3=None, tokenizer_3=None
    )
    pipe("a red circle left of a blue square", max_sequence_length=0, height=32, width=32)
"""
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}  # bicubic


def export(stages: Path, folder: Path) -> str:
    """Write a new folder of weights; returns its version, before any banks.

    Args:
        stages: Where the stages were made.
        folder: What to write; must not exist.

    Raises:
        ValueError: if the folder exists.
    """
    if folder.exists():
        raise ValueError(f"expected a new folder for the weights, got {folder}, which exists")
    vae = _half(AutoencoderKL, stages / "vae" / "model")
    for name, own in (("large", vae), ("small", None)):
        pipeline = _pipeline(stages / name / "model", own)
        pipeline.save_pretrained(folder / name, max_shard_size=SHARD)
        backbone = sd3.load(folder / name, vae=folder / "large" / "vae", text_length=0)
        backbone.texts.save_null(folder / name)
    _half(AutoencoderTiny, stages / "tiny" / "model").save_pretrained(folder / "tiny")
    _forget(folder / "tiny" / "config.json", "block_out_channels")
    for config in folder.rglob("config.json"):
        _forget(config, "_name_or_path")
    for name in REWARDS:
        _half(CLIPModel, stages / name / "model").save_pretrained(
            folder / name, max_shard_size=SHARD
        )
        tokenizer().save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(PIXELS, indent=2))
    shutil.copytree(stages / "aesthetic" / "model", folder / "aesthetic")
    (folder / "logs").mkdir()
    for log in sorted(stages.glob("*/log.jsonl")):
        (folder / "logs" / f"{log.parent.name}.jsonl").write_text(_whole_log(log))
    (folder / "README.md").write_text(card(folder))
    return sign(folder)


def _whole_log(log: Path) -> str:
    """All that a stage recorded; a fall of `step` shows where it was trained further."""
    earlier = log.with_name("earlier.jsonl")
    return (earlier.read_text() if earlier.is_file() else "") + log.read_text()


def add_truth(folder: Path, prompts: int) -> str:
    """Add the banks that the quickstart needs and the reference rollouts; returns the version.

    Args:
        folder: Signed weights without them.
        prompts: How many of the world's prompts get a bank.
    """
    world = shapes(folder=str(folder))
    banks = Banks(world.backbone, world.banks.towers, folder / "banks", world.version)
    banks.cache = folder / "banks"  # made here, not in the user's cache
    banks.data(SHIPPED_MEMBERS)
    for caption in world.prompts[:prompts]:
        banks.prompt(caption, SHIPPED_PROMPT_MEMBERS)
    reference.make(world, (*world.rewards, *world.judges), folder / REFERENCE)
    return sign(folder)


def _forget(config: Path, key: str) -> None:
    """Drop a setting that says nothing: where a file lay, or what its reader warns of."""
    settings = json.loads(config.read_text())
    settings.pop(key, None)
    config.write_text(json.dumps(settings, indent=2) + "\n")


def _half(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True).half()


def _pipeline(folder: Path, vae: AutoencoderKL | None) -> StableDiffusion3Pipeline:
    """A stage's networks as a pipeline without T5."""
    encoders = [
        _half(CLIPTextModelWithProjection, folder / part)
        for part in ("text_encoder", "text_encoder_2")
    ]
    return StableDiffusion3Pipeline(
        transformer=_half(SD3Transformer2DModel, folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer(),
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def card(folder: Path) -> str:
    """How the networks were made, what each reached, and how large they are, as markdown."""
    rows = []
    for path in sorted((folder / "logs").iterdir()):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        later = [*records[1:], {"step": 0}]
        ends = [r for r, n in zip(records, later, strict=True) if n["step"] <= r["step"]]
        steps, seconds = (sum(end.get(key, 0) for end in ends) for key in ("step", "seconds"))
        best = max(records, key=lambda r: r.get("score", 0.0))
        figure = next(k for k in best if k not in {"step", "seconds", "loss", "score"})
        rows.append(
            f"| {path.stem} | {steps} | {seconds / 60:.0f} | {figure} {best[figure]:.4g} |"
        )
    sizes = []
    for part in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "logs"):
        files = [p for p in part.rglob("*") if p.is_file()]
        count = sum(
            t.numel() for p in files if p.suffix == ".safetensors" for t in load_file(p).values()
        )
        size = sum(p.stat().st_size for p in files)
        sizes.append(f"| {part.name} | {count / 1e6:.2f} M | {size / 1e6:.2f} MB |")
    return CARD.format(stages="\n".join(rows), sizes="\n".join(sizes))
