"""What clean latents look like, and what their posterior mean keeps of them at each noise level.

The posterior mean is what Tweedie's reward looks at.  The cells of the truth keep both.
"""

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from bench.report import drawing, plots
from bench.report.facets import split
from bench.report.lettering import capital
from bench.store import Store

Bytes = npt.NDArray[np.uint8]

CLEAN, MEAN, PROMPTS = (f"pictures_{name}" for name in ("clean", "posterior_mean", "prompts"))
INCH, MARGIN, HEAD = 0.85, 2.1, 0.55  # inches of a picture, for the prompts, for the headings
LINE = 28  # characters of a prompt in a line


class Pictures(NamedTuple):
    """Pictures of one world.

    Attributes:
        world: Which.
        prompts: Of each row, n texts.
        sigmas: Noise levels, S.
        clean: uint8, (n, 3, H, W).
        mean: Posterior means, uint8, (S, n, 3, H, W).
    """

    world: str
    prompts: list[str]
    sigmas: list[float]
    clean: Bytes
    mean: Bytes

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{capital(self.world)} world: clean pictures and posterior means"


def collect(store: Store, frame: pd.DataFrame) -> list[Pictures]:
    """One grid for every world that has pictures of noised clean latents."""
    found: dict[str, Pictures] = {}
    for facet in split(frame):
        rows = facet.frame[facet.frame["estimator_build"] == "truth"]
        for row in rows[rows["latents"] == "data"].drop_duplicates("cell").itertuples():
            arrays = _samples(store, str(row.cell), str(row.attempt))
            if facet.world not in found and CLEAN in arrays:
                found[facet.world] = _of(facet.world, arrays)
    return list(found.values())


def draw(shown: Pictures) -> Figure:
    """A row for each prompt: the clean picture, then the posterior mean at each noise level."""
    columns, rows = 1 + len(shown.sigmas), len(shown.clean)
    with drawing.styled():
        out = Figure(figsize=(MARGIN + INCH * columns, HEAD + INCH * rows))
        out.set_layout_engine("none")
        drawing.head(out, shown.title)
        grid = out.subplots(rows, columns, squeeze=False)
        left, top = MARGIN / out.get_figwidth(), 1 - HEAD / out.get_figheight()
        out.subplots_adjust(left, 0.01, 0.99, top, wspace=0.06, hspace=0.06)
        for axis, heading in zip(grid[0], headings(shown), strict=True):
            axis.set_title(heading, fontsize=8)
        for k, (prompt, line) in enumerate(zip(shown.prompts, grid, strict=True)):
            for axis, picture in zip(line, row(shown, k), strict=True):
                axis.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
                axis.set_axis_off()
            line[0].text(-0.1, 0.5, textwrap.fill(prompt, LINE), ha="right", va="center",
                         fontsize=7.5, transform=line[0].transAxes)  # fmt: skip
    return out


def write(found: list[Pictures], folder: Path) -> list[Path]:
    """Write the grids as png and pdf: `pictures`, after the world's name if several have some."""
    names = {shown.world: f"{shown.world}-pictures" for shown in found}
    if len(found) == 1:
        names = {found[0].world: "pictures"}
    return [p for shown in found for p in plots.save(draw(shown), folder, names[shown.world])]


def headings(shown: Pictures) -> list[str]:
    """Of the columns."""
    return ["clean", *(f"\N{GREEK SMALL LETTER SIGMA} = {sigma:g}" for sigma in shown.sigmas)]


def row(shown: Pictures, k: int) -> list[Bytes]:
    """The pictures of a prompt, (3, H, W) each."""
    return [shown.clean[k], *shown.mean[:, k]]


def png(picture: Bytes) -> bytes:
    """A picture (3, H, W) pixel by pixel; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.ascontiguousarray(picture.transpose(1, 2, 0)), format="png")
    return buffer.getvalue()


def _of(world: str, arrays: Mapping[str, np.ndarray]) -> Pictures:
    clean = arrays[CLEAN][0]  # the same at every noise level
    prompts = [f"prompt {k + 1}" for k in range(len(clean))]
    if PROMPTS in arrays:
        prompts = arrays[PROMPTS][0].tolist()
    return Pictures(world, prompts, arrays["sigma"].tolist(), clean, arrays[MEAN])


def _samples(store: Store, cell: str, attempt: str) -> dict[str, np.ndarray]:
    """Nothing for a record whose arrays were not kept with it."""
    try:
        return store.samples(cell, attempt)
    except FileNotFoundError:
        return {}
