"""Pictures of the shapes world as files: grids, and figures of what its networks can do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

ENLARGE = 3  # screen pixels per pixel


def grid(x: Tensor, columns: int) -> np.ndarray:
    """Pictures (B, 3, H, W) in [-1, 1] side by side with a white line between, uint8 (H', W', 3).

    Rows that are not full end in white.
    """
    missing = -len(x) % columns
    x = torch.cat([x.detach().clamp(-1, 1), x.new_ones(missing, *x.shape[1:])])
    cells = pad(x, (1, 1, 1, 1), value=1.0).unflatten(0, (-1, columns))
    rows, columns, channels, height, width = cells.shape
    page = cells.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    page = ((page + 1) * 127.5).round().byte().cpu().numpy()
    return page.repeat(ENLARGE, 0).repeat(ENLARGE, 1)


def save(x: Tensor, path: Path, columns: int = 12) -> Path:
    """Write a grid as png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, grid(x, columns))
    return path


def captioned(x: Tensor, captions: Sequence[str], right: Tensor, path: Path) -> Path:
    """Pictures with their prompts, those that the verifier calls wrong marked, as png."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    columns = 6
    rows = -(-len(x) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 2.5 * rows), layout="constrained"
    )
    pictures = ((x.detach().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption, good in zip(
        axes.flat, pictures, captions, right.tolist(), strict=False
    ):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(
            _wrapped(caption) + ("" if good else "\n(wrong)"),
            fontsize=7.5,
            color="black" if good else "tab:red",
        )
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _wrapped(caption: str, width: int = 24) -> str:
    lines = [""]
    for word in caption.replace(" ,", ",").split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(lines)


def accuracy(found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Share of right pictures against guidance, a line for each kind of prompt, as png.

    Args:
        found: By guidance scale: `right` by kind, each with share, lo and hi.
        path: Where to.
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415

    scales = [float(scale) for scale in found]
    kinds = list(next(iter(found.values()))["right"])
    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for k, kind in enumerate(kinds):
        shares = [of["right"][kind] for of in found.values()]
        colour, width = ("black", 2.4) if kind == "all" else (f"C{k}", 1.3)
        axis.plot(
            scales, [s["share"] for s in shares], marker="o", ms=3.5, label=kind,
            color=colour, lw=width,
        )  # fmt: skip
        axis.fill_between(
            scales, [s["lo"] for s in shares], [s["hi"] for s in shares],
            color=colour, alpha=0.08, lw=0,
        )  # fmt: skip
    axis.set(xlabel="guidance scale", ylabel="right by the verifier", ylim=(0, 1.02))
    axis.legend(fontsize=8, ncols=2, loc="lower right")
    axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
