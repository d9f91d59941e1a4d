"""The head of `aesthetic`: an affine map of CLIP's unit embedding, fitted to raters' means.

Least squares with a little shrinkage, chosen on the tune split; LAION's head is affine too.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from bench.worlds.shapes.make.fit import LOG, keep
from bench.worlds.shapes.ratings import rated, rating
from bench.worlds.shapes.scenes import Scenes, draw, render

SCENES = 40_000
SHRINKAGES = (1e-6, 1e-5, 1e-4, 1e-3)  # of the mean squared feature


@torch.no_grad()
def features(clip: CLIPModel, scenes: Scenes) -> Tensor:
    """Unit embeddings with a one, (B, D + 1), float64."""
    parts = [
        normalize(clip.get_image_features(render(scenes[slice(k, k + 512)])).pooler_output, dim=-1)
        for k in range(0, len(scenes), 512)
    ]
    e = torch.cat(parts).double()
    return torch.cat([e, torch.ones(len(e), 1, dtype=e.dtype)], 1)


def train(folder: Path, clip_folder: Path, seed: int = 5) -> Iterator[dict[str, Any]]:
    """Fit the head; yields one record, with its rank correlation on the tune split."""
    begun = time.monotonic()
    clip = CLIPModel.from_pretrained(
        clip_folder, local_files_only=True, dtype=torch.float32
    ).eval()
    scenes, tune = draw("train", SCENES), draw("tune", 4096)
    x, x_tune = features(clip.eval(), scenes), features(clip, tune)
    y = rated(scenes, torch.Generator().manual_seed(seed)).double()
    gram = x.T @ x / len(x)
    best: tuple[float, Tensor] = (-1.0, gram[0])
    for shrinkage in SHRINKAGES:
        ridge = shrinkage * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        w = torch.linalg.solve(gram + ridge, x.T @ y / len(x))
        rank = float(scipy.stats.spearmanr(x_tune @ w, rating(tune)).statistic)
        best = max(best, (rank, w), key=lambda pair: pair[0])
    rank, w = best
    layers = {"layers.0.weight": w[None, :-1].float(), "layers.0.bias": w[-1:].float()}

    def save(to: Path) -> None:
        save_file(layers, to / "head.safetensors")
        (to / "head.json").write_text(json.dumps({"sizes": [len(w) - 1, 1]}) + "\n")

    keep(folder, save)
    spent = time.monotonic() - begun
    record = {"step": 1, "seconds": spent, "score": rank, "spearman": rank}
    (folder / LOG).write_text(json.dumps(record) + "\n")
    yield record
