"""Tables of the train task."""

from typing import Any

import numpy as np
import pandas as pd

from bench.report import floor, numbers
from bench.report.facets import Facet
from bench.report.paper import printed
from bench.report.places import by_cell
from bench.report.sheet import Table
from bench.report.train.frame import PHASES, ends, published_of, together
from bench.report.train.reach import level, reached
from bench.stats import Paired, holm, mean_interval, paired

ALPHA = 0.05
TIMED = ("methods", "reach", "steps")  # tables that hold times
SHOWN = {"target": ("target reward", 1.0), "correct": ("shows the prompt, points", 100.0),
         "pick": ("held-out judge", 1.0)}  # fmt: skip
OTHERS = {"clip": "CLIP", "hps": "HPS", "aesthetic": "aesthetic"}


def tables(facet: Facet) -> list[Table]:
    """All tables of a facet, those that have rows."""
    rows = facet.frame
    made = [
        Table("methods", "What training gained",
              "Samples of averaged weights at the last evaluation, on the judged prompts, minus "
              "those of the generator before training, from the same noise: means over runs, 95 % "
              "intervals over prompts. From the reference: mean squared distance of velocities "
              "where a trainer learns, which differs between trainers.", methods(rows)),
        Table("against", "Against the published method, prompt by prompt",
              "Method minus published; clear where the Holm-adjusted p over this table is below "
              "0.05: of these very runs, on other prompts. What another seed would do is not in "
              "it. Detectable: what these prompts would show four times in five.",
              against(rows)),
        Table("reach", "Time to target",
              "Seconds of training to 80 % of what the published method's pilot gained, run by "
              "run; the pilot is not used again. Over published: run by run, the same seed. "
              "Steps over published times a step's cost over published is what the ratio is "
              "made of.", reach(rows)),
        Table("steps", "What a training step costs",
              "Timed in turns with a step of the published method in one process; where rollouts "
              "stop within a window, the mean over its stops. Memory: live tensors above weights, "
              "at the last stop.", steps(rows)),
        Table("tuning", "Every learning rate that was tried",
              "Short runs, judged at their end on tune prompts.", tuning(rows)),
        *paper(facet),
    ]  # fmt: skip
    return floor.under((table for table in made if len(table.frame)), TIMED, rows)


def start(rows: pd.DataFrame, of: pd.Series) -> pd.DataFrame:
    """The evaluations before training of a row's cell."""
    return rows[(rows["cell"] == of["cell"]) & (rows["phase"] == "run") & (rows["step"] == 0)]


def methods(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method."""
    out = []
    for name, part in ends(rows).groupby("method", sort=False):
        before = start(rows, part.iloc[0])
        line: dict[str, Any] = {
            "cell": part["cell"].iloc[0],
            "method": name,
            "runs": f"{len(part)}",
            "learning rate": f"{part['rate'].iloc[0]:g}",
        }
        for metric, (title, scale) in (SHOWN | {k: (v, 1.0) for k, v in OTHERS.items()}).items():
            now, then = together(part, metric), together(before, metric)
            if now is not None and then is not None:
                gain = numbers.interval(*mean_interval(scale * (now - then))[:3])
                if metric in SHOWN:
                    line[title] = numbers.plain(scale * float(now.mean()))
                line[f"gain: {title}"] = gain
        line["seconds of training"] = numbers.seconds(part["seconds"].mean())
        line["from the reference"] = numbers.plain(part["train_kl"].mean(), 2)
        line["skipped"] = f"{part['train_skipped'].sum():g}"
        out.append(line)
    return by_cell(out)


def comparisons(rows: pd.DataFrame) -> list[tuple[str, str, Paired]]:
    """Every method minus its published one: method, metric, comparison."""
    found, last = [], ends(rows)
    for name, part in last.groupby("method", sort=False):
        other = published_of(last, part.iloc[0])
        for metric in SHOWN if other is not None else ():
            one, two = (together(x, metric) for x in (part, last[last["method"] == other]))
            if one is not None and two is not None:
                found.append((str(name), metric, paired(one, two)))
    return found


def against(rows: pd.DataFrame) -> pd.DataFrame:
    """Those comparisons as text."""
    found = comparisons(rows)
    lines: dict[str, dict[str, Any]] = {}
    cells = dict(zip(rows["method"], rows["cell"], strict=True))
    for (name, metric, x), p in zip(found, holm([x.p for _, _, x in found]), strict=True):
        title, scale = SHOWN[metric]
        line = lines.setdefault(name, {"cell": cells[name], "method": name})
        word = ("better" if x.difference.mean > 0 else "worse") if p < ALPHA else "not clear"
        mean, lo, hi, _ = x.difference
        shown = numbers.interval(scale * mean, scale * lo, scale * hi)
        line[title] = f"{shown}, {word}"
        line[f"detectable: {title}"] = numbers.plain(scale * x.detectable, 2)
    return by_cell(lines.values())


def reach(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method whose algorithm has a level."""
    out = []
    costs = {str(row["method"]): row for _, row in rows[rows["phase"] == "cost"].iterrows()}
    for algorithm in rows["algorithm"].unique():
        goal = level(rows, algorithm)
        found = pd.DataFrame(reached(rows, algorithm))
        for name, part in found.groupby("method", sort=False) if len(found) else ():
            row = rows[rows["method"] == name].iloc[0]
            other = found[found["method"] == published_of(rows, row)].set_index("run")
            line = {
                "cell": row["cell"],
                "method": name,
                "level": numbers.plain(goal, 4),
                "seconds": _each(part["seconds"], numbers.seconds),
                "steps": _each(part["steps"], numbers.plain),
            }
            if len(other):
                mine = part.set_index("run")
                kin = mine.index.intersection(other.index)
                for key, title in (("seconds", "seconds"), ("steps", "steps")):
                    with np.errstate(invalid="ignore"):
                        ratio = mine.loc[kin, key] / other.loc[kin, key]
                    line[f"{title} over published"] = _each(ratio, numbers.plain)
            if name in costs:
                line["a step over published"] = numbers.of(costs[str(name)], "over_published")
            out.append(line)
    return by_cell(out).fillna(numbers.MISSING)


def _each(x: pd.Series, shown: Any) -> str:
    return ", ".join("never" if np.isinf(v) else shown(v) for v in x)


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method."""
    out = []
    for _, row in rows[rows["phase"] == "cost"].iterrows():
        spent, others = ({phase: row[f"{of}{phase}_seconds"] for phase in PHASES}
                         for of in ("", "published_"))  # fmt: skip
        out.append({
            "cell": row["cell"],
            "method": row["method"],
            **{phase: numbers.seconds(x) for phase, x in spent.items()},
            "all": numbers.seconds(sum(spent.values())),
            **{f"published {phase}": numbers.seconds(x) for phase, x in others.items()},
            "published, all": numbers.seconds(sum(others.values())),
            "over published": numbers.of(row, "over_published"),
            "memory": numbers.size(row["memory"]),
            "memory over published": numbers.plain(row["over_published_memory"]),
        })  # fmt: skip
    return by_cell(out)


def tuning(rows: pd.DataFrame) -> pd.DataFrame:
    """Rates by method."""
    trials = rows[(rows["phase"] == "trial")]
    trials = trials[trials["last"] == True] if len(trials) else trials  # noqa: E712 - or missing
    return by_cell(
        {
            "cell": row["cell"],
            "method": row["method"],
            "learning rate": f"{row['rate']:g}",
            "target reward": numbers.of(row, "target"),
            "steps": f"{row['step']:g}",
            "": "chosen" if row["chosen"] else "",
        }
        for _, row in trials.iterrows()
    )


def paper(facet: Facet) -> list[Table]:
    """The paper's table beside ours."""
    if "table3" not in set(facet.frame["suite"]):
        return []
    known = printed("train")["table3"]
    lines = [
        {"method": method}
        | dict(zip(known["columns"], (numbers.plain(x, 4) for x in values), strict=True))
        for method, values in known["methods"].items()
    ]
    return [Table("paper", "The paper's table", known["about"], pd.DataFrame(lines))]
