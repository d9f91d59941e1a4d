"""Tables of the align task."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bench.meter import STAGES
from bench.report import floor, held, numbers
from bench.report.align import insight, saving
from bench.report.align.aggregates import aggregates
from bench.report.align.frame import PLAIN_STAGE, STAGE, judged, staged, unsteered_of
from bench.report.facets import REWARDS, Facet
from bench.report.paper import printed
from bench.report.places import by_cell
from bench.report.sheet import Table
from bench.stats import Paired, holm, mean_interval, paired

ALPHA = 0.05
TIMED = ("methods", "steps", "stages", "walks", "saving")  # tables that hold times
COMPARED = {"target": "target reward", "pick": "held-out judge", "correct": "shows the prompt"}
KINDS = {"step": "steps", "asked": "value asked", "proposed": "proposals", "end": "clean reward"}
OTHERS = {"clip": "CLIP", "aesthetic": "aesthetic", "hps": "HPS", "pick": "held-out judge (Pick)"}


def reference(rows: pd.DataFrame) -> str | None:
    """Whom all others are compared with: the first method with a stitched value model."""
    mine = rows.loc[rows["estimator_build"] == "stitched", "method"]
    return None if mine.empty else str(mine.iloc[0])


def tables(facet: Facet) -> list[Table]:
    """All tables of a facet, those that have rows."""
    rows = facet.frame
    made = [
        Table("methods", "Samples on prompts that nothing was chosen on",
              "Means over prompts with 95 % intervals; gain: paired with unsteered samples of the "
              "same sampler, prompts and noise. Strengths multiply gradients of unit root mean "
              "square where they are normalised, else one over the reward's spread. Energy: "
              "distance to the tilted target of that strength, 0 for samples of it; in brackets "
              "what as many draws of the target itself have. Over the tilted target: mean target "
              "reward minus that of its draws.", methods(rows)),
        Table("against", f"Against {reference(rows)}, prompt by prompt",
              "Method minus reference; clear where the Holm-adjusted p over this table is below "
              "0.05. Detectable: the difference that these prompts would show four times in "
              "five.", against(rows)),
        Table("aggregates", "Target reward, by aggregates that a few prompts cannot move",
              "Interquartile mean: of the middle half of prompts, with an interval from 30 on. "
              "Beats: the share of prompts on which a method has the higher target reward, from "
              "the same noise, ties half (probability of improvement, Agarwal et al., 2021, "
              "arXiv:2108.13264); at half, neither is better.",
              aggregates(rows, reference(rows))),
        Table("steps", "A guided step beside an unsteered one"
              + (", and beside classic DPS" if _classic(rows) else ""),
              "Timed in turns in one process"
              + ("; classic DPS: Tweedie through frozen weights, its velocity the sampler's own. "
                 if _classic(rows) else ". ")
              + "Memory: live tensors above weights and inputs; with weights: all that the GPU's "
              "allocator gave out.",
              steps(rows)),
        Table("stages", "Where the time of a guided step goes",
              "In unsteered steps, each stage by the clock in calls of its own; what is computed "
              "again in the backward pass belongs to that. Blocks: those of the generator, "
              "estimator's and sampler's. Reward: all of it; tail: its last blocks.",
              stages(rows)),
        Table("walks", "A whole steered sample beside an unsteered one",
              "Put together from the kinds of its steps, each timed in turns with an unsteered "
              "step of one latent and taken as often as a sample of so many steps has it: where "
              "all particles go on, where their value is asked first, where that of proposals is, "
              "and the clean reward at the end.", walks(rows)),
        Table("kinds", "Samples that show the prompt, by kind of prompt", "", kinds(rows)),
        Table("tuning", "Every strength that was tried",
              "On prompts of their own. Allowed: the prompt is shown at most one point less often "
              "than by unsteered samples. Chosen: the highest target reward among the allowed.",
              tuning(rows)),
        Table("particles", "What happened to the particles",
              "Effective sample size as a share of N, distinct starting particles left, and the "
              "spread of values between particles, means over samples.", particles(rows)),
        Table("insight", "Error of the estimator, and gain of steering with it",
              "At latents on the way of unsteered samples, where the window ends for the "
              "truth under the prompt's posterior; the gain is of the window alone.",
              insight.listed(rows)),
        Table("foretold", "Does the first foretell the second?",
              "Spearman's correlation over estimators, with 95 % intervals.", insight.ranks(rows)),
        Table("saving", "Seconds saved at equal target reward",
              "Share of the seconds that adding particles needs for the same target reward, "
              "interpolated between the measured points; 95 % bootstrap intervals over prompts. "
              "Outside the measured range there is no number.", saving.listed(rows)),
        *paper(facet),
    ]  # fmt: skip
    return floor.under((held.noted(table) for table in made if len(table.frame)), TIMED, rows)


def methods(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method."""
    out = []
    for _, row in judged(rows).iterrows():
        base = unsteered_of(rows, row)
        if row["phase"] == "unsteered":
            base = None
        out.append({
            "cell": row["cell"],
            "method": str(row["method"]),
            "strength": numbers.plain(row["strength"]),
            "target reward": numbers.of(row, "target"),
            "gain": _gain(row, base, "target"),
            "shows the prompt": _percent(row, "correct"),
            "its gain": _gain(row, base, "correct", 100),
            **{title: numbers.of(row, name) for name, title in _others(rows).items()
               if _known(row, name)},
            **({"over the tilted target": numbers.of(row, "excess")}
               if _known(row, "excess") else {}),
            "diversity": numbers.of(row, "diversity"),
            "energy": _energy(row),
            "time per sample": numbers.seconds(row.get("seconds_all")),
            "over unsteered": numbers.times(_times(row, base)),
            "not finite": f"{row['nonfinite']:g}",
        })  # fmt: skip
    return by_cell(out).fillna(numbers.MISSING)


def _others(rows: pd.DataFrame) -> dict[str, str]:
    """Further scores, those of judges that were asked later included: column to title."""
    later = [str(n).removesuffix("_by_prompt") for n in rows if str(n).startswith("judge ")
             and str(n).endswith("_by_prompt")]  # fmt: skip
    return OTHERS | {name: name.removeprefix("judge ") for name in later}


def _known(row: pd.Series, metric: str) -> bool:
    return isinstance(row.get(f"{metric}_by_prompt"), np.ndarray)


def _percent(row: pd.Series, metric: str) -> str:
    return f"{numbers.scaled(row, metric, 100)} %" if _known(row, metric) else numbers.MISSING


def _gain(row: pd.Series, base: pd.Series | None, metric: str, scale: float = 1.0) -> str:
    if base is None or not (_known(row, metric) and _known(base, metric)):
        return numbers.MISSING
    x = scale * (row[f"{metric}_by_prompt"] - base[f"{metric}_by_prompt"])
    return numbers.interval(*mean_interval(x)[:3])


def _energy(row: pd.Series) -> str:
    if not _known(row, "energy"):
        return numbers.MISSING
    return f"{numbers.of(row, 'energy')} ({numbers.of(row, 'energy_floor')})"


def _times(row: pd.Series, base: pd.Series | None) -> float:
    return float("nan") if base is None else row["seconds_all"] / base["seconds_all"]


def comparisons(rows: pd.DataFrame) -> Iterator[tuple[str, str, Paired]]:
    """Every method minus the reference: method, metric, comparison."""
    found, against = judged(rows), reference(judged(rows))
    ours = found[found["method"] == against]
    for _, row in found[found["method"] != against].iterrows():
        for metric in COMPARED if len(ours) else ():
            one, other = (x.get(f"{metric}_by_prompt") for x in (row, ours.iloc[0]))
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                yield str(row["method"]), metric, paired(one, other)


def against(rows: pd.DataFrame) -> pd.DataFrame:
    """Those comparisons as text."""
    found = list(comparisons(rows))
    adjusted = holm([x.p for _, _, x in found])
    lines: dict[str, dict[str, Any]] = {}
    cells = dict(zip(rows["method"], rows["cell"], strict=True))
    for (name, metric, x), p in zip(found, adjusted, strict=True):
        line = lines.setdefault(name, {"cell": cells[name], "method": name})
        scale = 100 if metric == "correct" else 1
        mean, lo, hi, _ = x.difference
        shown = numbers.interval(scale * mean, scale * lo, scale * hi)
        clear = p < ALPHA
        word = ("better" if x.difference.mean > 0 else "worse") if clear else "not clear"
        line[COMPARED[metric]] = f"{shown}, {word}"
        line[f"detectable ({COMPARED[metric]})"] = numbers.plain(scale * x.detectable, 2)
    return by_cell(lines.values()).fillna(numbers.MISSING)


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and batch."""
    out = []
    costs, classic = rows[rows["phase"] == "cost"], _classic(rows)
    for row in costs.to_dict("records"):
        whole = held.shown(row, costs)
        over = numbers.plain(row["over_classic_allocated"])
        spent = (row["step"], row["step_lo"], row["step_hi"])
        out.append({
            "cell": row["cell"],
            "method": row["method"],
            "batch": f"{row['batch']:g}",
            "time": numbers.seconds_interval(*spent),
            "over unsteered": numbers.of(row, "over_unsteered"),
            "FLOPs over unsteered": numbers.plain(row["over_unsteered_flops"]),
            **({"over classic": numbers.of(row, "over_classic"),
                "FLOPs over classic": numbers.plain(row["over_classic_flops"])}
               if classic else {}),
            "memory": numbers.size(row["memory"]),
            **({"memory over classic": numbers.plain(row["over_classic_memory"])}
               if classic else {}),
            **whole,
            **({f"{held.WITH_WEIGHTS} over classic": over} if classic and whole else {}),
            "blocks": numbers.plain(row["calls_blocks"]),
        })  # fmt: skip
    return by_cell(out)


def _classic(rows: pd.DataFrame) -> bool:
    """Whether any step was timed beside classic DPS."""
    return "over_classic" in rows and bool(rows["over_classic"].notna().any())


def stages(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and batch, and one for an unsteered step."""
    out = []
    for _, row in staged(rows).iterrows():
        for name, prefix in (("unsteered", PLAIN_STAGE), (row["method"], STAGE)):
            spent = {stage: row[f"{prefix}{stage}"] for stage in STAGES}
            shown = {stage: numbers.fixed(x) for stage, x in spent.items()}
            line = {"cell": row["cell"], "method": name, "batch": f"{row['batch']:g}"} | shown
            out.append(line | {"all": numbers.fixed(sum(spent.values()))})
    return by_cell(out).drop_duplicates(["method", "batch"]) if out else pd.DataFrame()


def walks(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method."""
    out = []
    asked = rows[rows["phase"] == "walk"]
    for row in asked.to_dict("records"):
        each = {
            title: f"{row[f'count_{kind}']:g} x {numbers.seconds(row[f'kind_{kind}'])}"
            for kind, title in KINDS.items()
            if row.get(f"count_{kind}", 0) > 0
        }
        out.append({
            "cell": row["cell"],
            "method": row["method"],
            "unsteered": f"{row['steps']:g} x {numbers.seconds(row['kind_unsteered'])}",
            **each,
            "sample": numbers.seconds_interval(
                *(row[f"walk_seconds{end}"] for end in ("", "_lo", "_hi"))),
            "over unsteered": numbers.of(row, "over_unsteered"),
            "FLOPs over unsteered": numbers.plain(row["over_unsteered_flops"]),
            "memory": numbers.size(row["memory"]),
            **held.shown(row, asked),
        })  # fmt: skip
    return by_cell(out).fillna(numbers.MISSING)


def kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares by kind."""
    out = []
    for _, row in judged(rows).iterrows():
        if not _known(row, "correct") or not row["kinds"]:
            continue
        x = pd.Series(row["correct_by_prompt"]).groupby(row["kinds"], sort=False)
        shares = {str(kind): f"{100 * mean:.0f} %" for kind, mean in x.mean().items()}
        out.append({"cell": row["cell"], "method": str(row["method"])} | shares)
    return by_cell(out)


def tuning(rows: pd.DataFrame) -> pd.DataFrame:
    """Trials, by method and strength."""
    out = []
    mine = rows[rows["phase"] == "tune"]
    for name, part in mine.groupby("method", sort=False):
        for _, row in part.sort_values("strength").iterrows():
            shown = isinstance(row.get("target_by_prompt"), np.ndarray)
            out.append({
                "cell": row["cell"],
                "method": name,
                "strength": numbers.plain(row["strength"]),
                "target reward": numbers.of(row, "target") if shown else numbers.MISSING,
                "shows the prompt": _percent(row, "correct"),
                "": "" if row["feasible"] else "not allowed" if shown else "diverged",
                " ": ("chosen" + ("" if row["interior"] else ", at an end"))
                if row["chosen"] else "",
            })  # fmt: skip
    return by_cell(out)


def particles(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method that resamples or proposes, its first, middle and last logged step."""
    out = []
    for _, row in judged(rows).iterrows():
        log = row["log"] if isinstance(row["log"], list) else []
        picked = [log[k] for k in sorted({0, len(log) // 2, len(log) - 1})] if log else []
        for entry in picked:
            n = row["algorithm.particles"]
            out.append({
                "cell": row["cell"],
                "method": str(row["method"]),
                "step": f"{entry['step']}",
                "effective share": numbers.fixed(float(np.mean(entry["ess"])) / n),
                "ancestors": numbers.fixed(float(np.mean(entry["ancestors"])), 1),
                "spread of values": numbers.plain(float(np.mean(entry["spread"]))),
            })  # fmt: skip
    return by_cell(out)


def paper(facet: Facet) -> list[Table]:
    """The paper's table beside ours."""
    reward = str(facet.frame["reward"].iloc[0])
    out = []
    for suite in sorted(set(facet.frame["suite"])):
        known = printed("align").get(suite, {})
        if "models" not in known:
            continue
        lines = [
            {"model": model, "method": method}
            | dict(zip(known["columns"], (numbers.plain(x, 4) for x in values), strict=True))
            for model, rewards in known["models"].items()
            for method, values in (rewards.get("all", {}) | rewards.get(reward, {})).items()
        ]
        title = f"The paper's table, {REWARDS.get(reward, reward)} reward"
        out.append(Table("paper", title, known["about"], pd.DataFrame(lines)))
    return out
