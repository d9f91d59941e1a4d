"""What a guided step holds in memory: a waterfall over the methods."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report import drawing, numbers
from bench.report.align.looks import looks
from bench.report.facets import Facet


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """Methods with their live memory at the largest batch, the dearest first."""
    known = rows[rows["phase"] == "cost"]
    known = known[known["memory"].notna()] if "memory" in known else known.iloc[:0]
    if known.empty:
        return known
    largest = known[known["batch"] == known["batch"].max()]
    return largest.sort_values("memory", ascending=False).drop_duplicates("method")


def memory(facet: Facet) -> Figure:
    """A waterfall: from the method that holds most to the one that holds least."""
    rows, look = held(facet.frame), looks(facet.frame)
    names, sizes = rows["method"].tolist(), rows["memory"].to_numpy(float)
    out = Figure(figsize=(7.0, 1.3 + 0.3 * len(names)), layout="constrained")
    drawing.head(out, f"{facet.title}: live memory, batch {rows['batch'].iloc[0]:g}")
    axis = out.add_subplot()
    below = np.append(sizes[1:], 0.0)
    for k, (name, size) in enumerate(zip(names, sizes, strict=True)):
        axis.barh(k, size - below[k], left=below[k], height=0.6, color=look[str(name)].colour)
        axis.plot([below[k]] * 2, [k - 0.3, k + 1.3], color="#888888", linewidth=0.7,
                  linestyle=":", zorder=1)  # fmt: skip
        axis.annotate(numbers.size(size), (size, k), xytext=(4, 0), va="center", fontsize=7,
                      textcoords="offset points")  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * sizes.max())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: numbers.size(x) if x else "0"))
    axis.set_xlabel("live tensors above weights and inputs")
    return out
