"""What is claimed of steering, and what the frame says to it."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bench.report import numbers
from bench.report.align.frame import CLASSIC, judged
from bench.report.align.insight import foretells, gain_of
from bench.report.align.saving import saves
from bench.report.claims import PAPER, Claim
from bench.report.evidence import Evidence
from bench.report.facets import Facet
from bench.stats import holm, paired

SPEEDUP, MEMORY, STEP = 2.7, 0.46, 1.3
NEAR = 0.1  # of the ratio that FLOPs give
LOST = 0.1  # of the gain: what a value model of a smaller generator may cost
ALPHA = 0.05


def stitched(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of stitched value models as published: trunk without the prompt."""
    return rows[rows["estimator_build"] == "stitched"]


def costed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of stitched value models, trained or not: weights change no cost."""
    return rows[rows["estimator_build"].isin(("stitched", "untrained"))]


def faithful(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of classic DPS with its full gradient: the denoiser's Jacobian, the full decoder."""
    rows = rows[rows["estimator_build"] == "tweedie"]
    if rows.empty:
        return rows
    return rows[~rows["estimator.reuse"].astype(bool) & (rows["estimator.decoder"] == "full")]


def _classics(part: pd.DataFrame, ours: pd.Series) -> pd.DataFrame:
    """Faithful arms; where none has a cell, what our steps were timed beside."""
    rows = faithful(part)
    if len(rows):
        return rows
    own = ["over_classic", "over_classic_lo", "over_classic_hi", "over_classic_flops"]
    beside = {
        "method": CLASSIC,
        **dict.fromkeys(own, 1.0),
        "memory": ours["classic_memory"],
        "over_unsteered": ours["over_unsteered"] / ours["over_classic"],
    }
    return pd.DataFrame([beside])


def _by_batch(facet: Facet) -> Iterator[tuple[float, pd.DataFrame]]:
    """Steps that were timed beside classic DPS, by batch size."""
    costs = facet.frame[facet.frame["phase"] == "cost"]
    costs = costs[costs["over_classic"].notna()] if len(costs) else costs
    for batch in sorted(costs["batch"].unique()) if len(costs) else ():
        yield float(batch), costs[costs["batch"] == batch]


def faster(facet: Facet) -> Iterator[Evidence]:
    """Time of a guided step against the fastest faithful classic arm, one a batch."""
    for batch, part in _by_batch(facet):
        ours = costed(part)
        if ours.empty:
            continue
        classics = _classics(part, ours.iloc[0])
        row, best = ours.iloc[0], classics.sort_values("over_classic").iloc[0]
        ratio = best["over_classic"] / row["over_classic"]
        flops = best["over_classic_flops"] / row["over_classic_flops"]
        lo = best["over_classic_lo"] / row["over_classic_hi"]
        hi = best["over_classic_hi"] / row["over_classic_lo"]
        level = min(SPEEDUP, (1 - NEAR) * flops)
        held = True if lo >= level else False if hi < level else None
        figures = (
            f"batch {batch:g}: {numbers.interval(ratio, lo, hi)} times faster than "
            f"{best['method']}, FLOPs say {numbers.plain(flops)}"
        )
        yield Evidence(facet.title, held, figures)


def leaner(facet: Facet) -> Iterator[Evidence]:
    """Live memory of a guided step against the leanest faithful classic arm, one a batch."""
    for batch, part in _by_batch(facet):
        ours = costed(part)
        if ours.empty:
            continue
        classics = _classics(part, ours.iloc[0])
        ranked = classics.sort_values("memory")
        least, most = ranked.iloc[0], ranked.iloc[-1]
        mine = float(ours.iloc[0]["memory"])
        shares = [numbers.plain(mine / row["memory"], 2) for row in (least, most)]
        figures = (
            f"batch {batch:g}: {numbers.size(mine)}, {shares[0]} of {least['method']}, whose "
            f"step takes {numbers.plain(least['over_unsteered'], 2)} unsteered ones, {shares[1]} "
            f"of {most['method']}"
        )
        yield Evidence(facet.title, bool(mine <= MEMORY * least["memory"]), figures)


def cheap_step(facet: Facet) -> Iterator[Evidence]:
    """A guided step against an unsteered one."""
    for _, row in costed(facet.frame[facet.frame["phase"] == "cost"]).iterrows():
        held = True if row["over_unsteered_hi"] <= STEP else None
        held = False if row["over_unsteered_lo"] > STEP else held
        figures = (
            f"{row['method']}, batch {row['batch']:g}: {numbers.of(row, 'over_unsteered')}, "
            f"FLOPs say {numbers.plain(row['over_unsteered_flops'])}"
        )
        yield Evidence(facet.title, held, figures)


def better(facet: Facet, builds: tuple[str, ...], metric: str) -> Iterator[Evidence]:
    """A stitched method against rivals of the same algorithm, paired by prompt."""
    rows = judged(facet.frame)
    ours = stitched(rows)
    if ours.empty:
        return
    rivals = rows[rows["algorithm_build"].isin(builds) & (rows["estimator_build"] != "stitched")]
    row, rivals = _as_many(ours, rivals)
    found = [
        (str(rival["method"]), paired(row[f"{metric}_by_prompt"], rival[f"{metric}_by_prompt"]))
        for _, rival in rivals.iterrows()
        if all(isinstance(x.get(f"{metric}_by_prompt"), np.ndarray) for x in (row, rival))
    ]
    for (name, x), p in zip(found, holm([x.p for _, x in found]), strict=True):
        clear = p < ALPHA
        held = (True if x.difference.mean > 0 else False) if clear else None
        figures = f"minus {name}: {numbers.interval(*x.difference[:3])}, {numbers.p_value(p)}"
        yield Evidence(facet.title, held, figures)


def _as_many(ours: pd.DataFrame, rivals: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """One of ours, and the rivals with as many particles, where there are several numbers.

    The first; where another number is there in every kind of rival, the one of most particles.
    """
    count = "algorithm.particles"
    if count not in rivals or rivals[count].nunique() <= 1:
        return ours.iloc[0], rivals
    kinds = rivals.groupby(["algorithm_build", "estimator_build"], dropna=False)[count]
    counts = [set(of_kind) for _, of_kind in kinds]
    shared = counts[0].intersection(*counts[1:])
    met = ours[ours[count].isin(shared)]
    if met.empty:
        return ours.iloc[0], rivals
    row = met.sort_values(count, kind="stable", ascending=False).iloc[0]
    return row, rivals[rivals[count] == row[count]]


def smaller(facet: Facet) -> Iterator[Evidence]:
    """Value models of another generator against the first of the steered one's own."""
    rows = stitched(judged(facet.frame))
    if "estimator.generator" not in rows:
        return
    of_other = rows["estimator.generator"].notna()
    if rows[~of_other].empty:
        return
    own = rows[~of_other].iloc[0]
    least = -LOST * gain_of(facet.frame, own).mean
    for _, row in rows[of_other].iterrows():
        x = paired(row["target_by_prompt"], own["target_by_prompt"]).difference
        held = True if x.lo >= least else False if x.hi < least else None
        figures = f"{row['method']} minus {own['method']}: {numbers.interval(*x[:3])}"
        yield Evidence(facet.title, held, f"{figures}, may lose {numbers.plain(-least, 2)}")


CLAIMS = (
    Claim(
        "A step of DPS + StitchVM is at least 2.7 times as fast as one of classic DPS",
        f"{PAPER}, Table 1: 3.2 times and more with SD 3.5 Medium, 2.3 with Large",
        "against the fastest arm with the full gradient, at every batch the interval lies above "
        "2.7, or above 0.9 of the ratio of FLOPs where that is less",
        faster,
        "3.2 to 3.69 times (SD 3.5 Medium), 2.29 to 2.33 (Large)",
        "table1",
    ),
    Claim(
        "It needs at most 0.46 of the memory of classic DPS",
        f"{PAPER}, Table 1: 0.43 to 0.48, weights included",
        "live tensors against the leanest arm with the full gradient, at every batch",
        leaner,
        "0.43 to 0.46 (SD 3.5 Medium), 0.47 to 0.48 (Large)",
        "table1",
    ),
    Claim(
        "With a shared trunk a step of DPS + StitchVM costs at most 1.3 unsteered ones",
        "the trunk is the beginning of the unconditional branch",
        "at every batch the interval of the ratio lies at or below 1.3",
        cheap_step,
    ),
    Claim(
        "DPS + StitchVM reaches a higher target reward than DPS by other values",
        f"{PAPER}, Table 1",
        "each at its own tuned strength: clearly higher, paired by prompt, than every other",
        lambda facet: better(facet, ("guide",), "target"),
        "SD 3.5 Medium, each steered to its own: HPSv2 0.348 against 0.335, aesthetic 5.87 "
        "against 5.73, CLIP 33.12 against 33.01",
        "table1",
    ),
    Claim(
        "FK steering by StitchVM reaches a higher target reward than by Tweedie and Best-of-N",
        f"{PAPER}, Table 2",
        "clearly higher, paired by prompt, than every other",
        lambda facet: better(facet, ("steer", "best_of_n"), "target"),
        "SD 3.5 Medium: HPSv2 0.303 against 0.283 of FKS and 0.284 of BoN, aesthetic 5.58 "
        "against 5.46 and 5.47",
        "table2",
    ),
    Claim(
        "Local proposals save time at equal target reward",
        f"{PAPER}, Fig. 3: 33 % with FLUX and HPSv2",
        "the bootstrap interval of every saving lies above 0",
        saves,
        "33 %",
        "fig3",
    ),
    Claim(
        "An estimator's error foretells what steering with it gains",
        "what a value estimator is chosen by",
        "over estimators and windows both rank correlations lie above 0",
        foretells,
    ),
    Claim(
        "A value model of a smaller generator steers a large one as well as its own",
        f"{PAPER}, Table 6",
        "target reward, paired by prompt: the interval of the difference lies above minus a tenth "
        "of what the own value model gains; did not hold: below",
        smaller,
        "SD 3.5 Large, its own or Medium's: HPSv2 0.31 or 0.309, aesthetic 5.68 or 5.65",
        "table6",
    ),
)
