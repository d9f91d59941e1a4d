"""What is claimed of training, and what the frame says to it."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bench.report import numbers
from bench.report.claims import PAPER, Claim
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.report.train.frame import ends, published_of, together
from bench.report.train.reach import reached
from bench.report.train.tables import comparisons, start
from bench.stats import holm, paired

ALPHA = 0.05
SPEEDUP, SAVING = 2.3, 0.22
SEVERAL = 2  # runs of each
STITCHED = ("stitched", "linear_stitch")


def raises(facet: Facet) -> Iterator[Evidence]:
    """Whether DiffusionNFT as published raises target and verifier, over all its runs."""
    last = ends(facet.frame)
    mine = last[(last["algorithm_build"] == "nft") & (last["estimator_build"] == "terminal")]
    if "algorithm.loss" in mine:
        mine = mine[mine["algorithm.loss"] == "anchor"]  # as public, not as printed
    found = []
    for metric in ("target", "correct") if len(mine) else ():
        now = together(mine, metric)
        then = together(start(facet.frame, mine.iloc[0]), metric)
        if now is not None and then is not None:
            found.append((metric, paired(now, then)))
    for (metric, x), p in zip(found, holm([x.p for _, x in found]), strict=True):
        held = x.difference.mean > 0 if p < ALPHA else None
        figures = f"{metric}: {numbers.interval(*x.difference[:3])}, {numbers.p_value(p)}"
        yield Evidence(facet.title, held, figures)


def sooner(facet: Facet) -> Iterator[Evidence]:
    """Seconds to target over the published method's, seed by seed."""
    rows = facet.frame[facet.frame["algorithm_build"] == "nft"]
    found = pd.DataFrame([x for a in rows["algorithm"].unique() for x in reached(rows, a)])
    for name, part in found.groupby("method") if len(found) else ():
        row = rows[rows["method"] == name].iloc[0]
        other = published_of(rows, row)
        if other is None or row["estimator_build"] not in STITCHED:
            continue
        theirs = found[found["method"] == other].set_index("run")["seconds"]
        mine = part.set_index("run")["seconds"]
        kin = mine.index.intersection(theirs.index)
        with np.errstate(invalid="ignore"):
            ratios = [mine[k] / theirs[k] for k in kin]
        goal = 1 / SPEEDUP
        held = all(x <= goal for x in ratios) if ratios and not np.isnan(ratios).any() else None
        if held is False and any(x <= goal for x in ratios):
            held = None
        shown = ", ".join("never" if np.isinf(x) else numbers.plain(x) for x in ratios)
        yield Evidence(facet.title, held, f"{name} over {other}, seed by seed: {shown}")


def saves(facet: Facet) -> Iterator[Evidence]:
    """Seconds of a DRaFT step saved by stopping, and whether quality is lost."""
    costs = facet.frame[(facet.frame["phase"] == "cost")
                        & (facet.frame["algorithm_build"] == "draft")]  # fmt: skip
    compared = comparisons(facet.frame)
    adjusted = holm([x.p for _, _, x in compared])
    for _, row in costs[costs["estimator_build"].isin(STITCHED)].iterrows():
        lost = [
            metric
            for (name, metric, x), p in zip(compared, adjusted, strict=True)
            if name == row["method"] and metric in {"target", "correct"}
            and p < ALPHA and x.difference.mean < 0
        ]  # fmt: skip
        saved = [1 - row[f"over_published{end}"] for end in ("", "_hi", "_lo")]
        held: bool | None = True if saved[1] >= SAVING and not lost else None
        runs = ends(facet.frame).query("algorithm == @row.algorithm").groupby("method").size()
        if saved[2] < SAVING or (lost and runs.min() >= SEVERAL):
            held = False
        shown = numbers.interval(*(100 * x for x in saved))
        loss = f", clearly lost: {' and '.join(lost)}" if lost else ", nothing clearly lost"
        yield Evidence(facet.title, held, f"{row['method']}: {shown} % a step{loss}")


CLAIMS = (
    Claim(
        "DiffusionNFT raises target reward and verifier accuracy",
        f"{PAPER}, Table 3, and arXiv 2509.16117",
        "both clearly above the generator before training, paired by prompt",
        raises,
        "HPSv2 0.347, DFN-CLIP 0.413, GenEval 0.67 after 191.5 GPU-hours",
        "table3",
    ),
    Claim(
        "DiffusionNFT with StitchVM reaches the target in 1/2.3 of the time",
        f"{PAPER}, Table 3: 84.7 for 191.5 GPU-hours",
        "seed by seed, seconds to 80 % of what the published method's pilot gained",
        sooner,
        "2.3 times: 84.7 for 191.5 GPU-hours",
        "table3",
    ),
    Claim(
        "DRaFT with StitchVM saves at least 22 % of the time and loses nothing",
        f"{PAPER}, Table 3: 22 % for K = 3, 26 % for K = 1",
        "a training step timed in turns; no clear loss in target reward or verifier accuracy, "
        "of which single runs decide nothing",
        saves,
        "22 % for K = 3 (100.3 for 128.0 GPU-hours), 26 % for K = 1 (94.8 for 128.1)",
        "table3",
    ),
)
