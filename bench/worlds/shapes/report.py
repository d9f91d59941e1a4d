"""The examination of the shapes world as files: exam.json, tables.md, and pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.worlds.shapes import album, exam
from bench.worlds.shapes.captions import KIND_NAMES, parse
from bench.worlds.shapes.prompts import prompt_set
from bench.worlds.shapes.scenes import draw, render
from bench.worlds.shapes.verifier import correct
from bench.worlds.shapes.world import ShapesWorld

SHOWN = 6  # prompts of each kind in the sample grid


def write(world: ShapesWorld, out: Path) -> Iterator[str]:
    """Examine a world and write what was found; yields a line for each figure and file.

    The guidance scale is the one that most tune prompts come out right with; everything is then
    reported on the eval prompts.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"world": world.digest, "steps": exam.STEPS}
    for part in (exam.autoencoders, exam.rewards):
        for name, figure in part(world):
            found[name] = figure
            yield f"{name}: {said(figure)}"
    found["cost"] = exam.shares(world)
    tuned = {}
    for scale, of in exam.generation(world, "tune", exam.SCALES):
        tuned[scale] = of
        yield f"tune prompts, guidance {scale}: {said(of['right']['all'])}"
    best = max(tuned, key=lambda scale: tuned[scale]["right"]["all"]["share"])
    found["best_scale"], found["tune"] = float(best), tuned
    found["eval"] = dict(exam.generation(world, "eval", exam.SCALES))
    found["eval"] |= dict(exam.generation(world, "eval", [float(best)], exam.BEST_SEEDS))
    yield f"eval prompts, guidance {best}: {said(found['eval'][best]['right']['all'])}"
    found["shift"] = exam.shifted(world, float(best))
    (out / "exam.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "tables.md").write_text(tables(found))
    album.accuracy(found["eval"], out / "accuracy.png")
    _draw(world, float(best), out)
    for name in ("exam.json", "tables.md", "accuracy.png", "samples.png", "reconstructions.png"):
        yield str(out / name)


@torch.no_grad()
def _draw(world: ShapesWorld, scale: float, out: Path) -> None:
    """Samples with their prompts by kind, and pictures above their reconstructions."""
    prompts = prompt_set("eval", SHOWN)
    prompts = tuple(sorted(prompts, key=lambda text: KIND_NAMES.index(parse(text).kind)))
    x = exam.pictures(world, prompts, scale)
    album.captioned(x, prompts, correct(x, prompts), out / "samples.png")
    scenes = render(draw("eval", 18))
    again = world.backbone.decode(world.backbone.encode(scenes))
    album.save(torch.cat([scenes, again]), out / "reconstructions.png", len(scenes))


def said(figure: Any) -> str:
    """A figure in words."""
    if isinstance(figure, float):
        return f"{figure:.2f}"
    if "all" in figure:
        return said(figure["all"])
    if "share" in figure:
        return f"{figure['share']:.1%} [{figure['lo']:.1%}, {figure['hi']:.1%}] of {figure['n']}"
    return ", ".join(f"{k} {v:.4g}" for k, v in figure.items())


def tables(found: dict[str, Any]) -> str:
    """The figures as markdown tables."""
    lines = ["| network | figure on held-out data | |", "|---|---|---|"]
    for name, figure in found.items():
        if name.startswith(("psnr", "verifier", "clip", "aesthetic", "hps", "pick")):
            who, _, what = name.partition("_")
            lines.append(f"| {who} | {what.replace('_', ' ')} | {said(figure)} |")
    scale = f"{found['best_scale']:g}"
    lines += ["", f"Right pictures by the verifier, guidance {scale}, {found['steps']} steps:", ""]
    lines += ["| prompts | right |", "|---|---|"]
    lines += [f"| {kind} | {said(of)} |" for kind, of in found["eval"][scale]["right"].items()]
    lines += [
        f"| {kind.replace('_', ' ')} kinds | {said(of)} |" for kind, of in found["shift"].items()
    ]
    names = list(found["eval"][scale]["scores"])
    lines += ["", "| guidance | right, all kinds | " + " | ".join(names) + " |"]
    lines += ["|---|---|" + "---|" * len(names)]
    for guidance, of in found["eval"].items():
        scores = " | ".join(f"{of['scores'][name]:.3f}" for name in names)
        lines.append(f"| {guidance} | {said(of['right'])} | {scores} |")
    cost = found["cost"]
    lines += ["", "| | guided denoise | decode | reward |", "|---|---|---|---|"]
    for about, row in (
        ("here, GFLOP", cost["gflop"]),
        ("here, denoise scaled to 22.5", cost["scaled"]),
        ("SD 3.5 Medium at 1024 px, TFLOP", cost["sd35_medium_tflop"]),
    ):
        lines.append(f"| {about} | " + " | ".join(f"{v:.3g}" for v in row.values()) + " |")
    return "\n".join(lines) + "\n"
