"""Kept samples as picture files that other programs can score, in GenEval's layout.

    FOLDER/<cell>/<attempt>/<phase>/files.csv                   file, prompt: every picture
    FOLDER/<cell>/<attempt>/<phase>/00000/metadata.jsonl        {"prompt": ...}, or GenEval's line
    FOLDER/<cell>/<attempt>/<phase>/00000/samples/00000.png     the prompt's first sample

GenEval's `evaluate_images.py` takes a phase's folder; any other program takes `files.csv`
(Ghosh et al., 2023, arXiv:2310.11513).  A phase's folder appears whole or not at all.
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.cell import Spec
from bench.rescore import AT_ONCE, PHASES
from bench.store import Store
from bench.worlds import make
from stitchvm.world import World

FILES = "files.csv"


def export(
    store: Store,
    folder: Path,
    metadata: Mapping[str, dict[str, Any]] | None = None,
    device: str = "cpu",
) -> Iterator[tuple[Path, bool]]:
    """Write the kept samples of every `align` cell.

    Args:
        store: Where they are.
        folder: Where the pictures go.
        metadata: GenEval's line of every prompt; None writes the prompt alone.
        device: Where to decode.

    Yields:
        The folder of each phase, and whether it was written now.

    Raises:
        ValueError: if the store has no kept samples, a world has no pictures, or a prompt has no
            metadata; or if the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder for the pictures, got the file {folder}")
    worlds: dict[str, World] = {}
    none = True
    for record in store.latest().values():
        if record["spec"]["task"] != "align" or record["status"] != "ok":
            continue
        arrays = store.samples(record["id"], record["attempt"])
        for row in record["rows"]:
            if PHASES.get(row["phase"]) not in arrays:
                continue
            none = False
            lines = [line_of(prompt, metadata) for prompt in row["prompts"]]
            place = folder / record["id"] / record["attempt"] / row["phase"]
            if place.is_dir():
                _expect(place, lines)
                yield place, False
                continue
            spec = Spec.model_validate(record["spec"])
            if (key := spec.world.model_dump_json()) not in worlds:
                worlds[key] = make(spec.world, device)
            z_0 = torch.from_numpy(arrays[PHASES[row["phase"]]])
            _write(place, worlds[key], z_0, lines)
            yield place, True
    if none:
        raise ValueError(
            f"expected samples of the align task in {store.path}, found none (`keep: true` in a "
            f"suite keeps them)"
        )


def line_of(prompt: str, metadata: Mapping[str, dict[str, Any]] | None) -> dict[str, Any]:
    """What `metadata.jsonl` says of a prompt.

    Raises:
        ValueError: if there is metadata, but none of this prompt.
    """
    if metadata is None:
        return {"prompt": prompt}
    if prompt not in metadata:
        raise ValueError(f"expected GenEval's metadata of every prompt, got none of {prompt!r}")
    return metadata[prompt]


def _expect(place: Path, lines: list[dict[str, Any]]) -> None:
    """Refuse a phase's folder that says something else of its prompts.

    Raises:
        ValueError: naming it.
    """
    said = place / f"{0:05}" / "metadata.jsonl"
    if lines and json.loads(said.read_text("utf-8")) != lines[0]:
        raise ValueError(f"expected the metadata asked for in {said}, got other: export elsewhere")


def picture(k: int, n: int) -> str:
    """Where the n-th sample of the k-th prompt is, below its phase's folder."""
    return f"{k:05}/samples/{n:05}.png"


def _write(place: Path, world: World, z_0: Tensor, lines: list[dict[str, Any]]) -> None:
    """A phase's folder, made aside and renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        each, drawn = len(z_0) // len(lines), _drawn(world, z_0)
        rows = [("file", "prompt")]
        for k, line in enumerate(lines):
            (made / f"{k:05}" / "samples").mkdir(parents=True)
            (made / f"{k:05}" / "metadata.jsonl").write_text(json.dumps(line), "utf-8")
            for n in range(each):
                next(drawn).save(made / picture(k, n))
                whole = Path(*place.parts[-3:], picture(k, n))
                rows.append((whole.as_posix(), line["prompt"]))
        with (made / FILES).open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows(rows)
        made.chmod(0o755)
        made.rename(place)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@torch.no_grad()
def _drawn(world: World, z_0: Tensor) -> Iterator[Image.Image]:
    """Latents (B, *latent) as pictures.

    Raises:
        ValueError: if the world has none.
    """
    like = world.backbone.empty_latents(0)
    for part in z_0.split(AT_ONCE):
        shown = world.pictures(part.to(like))
        if shown is None:
            raise ValueError(f"expected a world whose samples are pictures, got {world.name!r}")
        pixels = ((shown.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()
        for x in pixels:
            yield Image.fromarray(x.permute(1, 2, 0).numpy())
