"""Tables of what is predicted, for a terminal."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bench.asked import GUIDED, SAMPLE, UNSTEERED
from bench.numberless import Answers
from bench.predict import Predicted
from bench.report import numbers
from bench.tasks.steps import CLASSIC

UNITS = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}  # of FLOPs
STAGES = ("trunk", "denoiser", "decode", "reward", "tail", "backward")
YARDSTICKS = (UNSTEERED, CLASSIC)


def rows(one: Predicted) -> Iterator[dict[str, Any]]:
    """All numbers of a cell, a row for each call of its own."""
    where, costs = one.cell.coordinates, one.costs
    for call, cost in one.own.items():
        over: dict[str, Any] = {
            f"over {name}": cost.flops / costs[name].flops for name in YARDSTICKS if name in costs
        }
        if call in one.beside:
            other = one.beside[call]
            over["beside"] = other.removeprefix(f"{call}, ")
            over["over it"] = cost.flops / costs[other].flops
        live = {"of classic": cost.live / costs[CLASSIC].live} if CLASSIC in costs else {}
        yield {
            "world": where["world"],
            "reward": where["reward"],
            "method": where["estimator"] + (f" ({where['variant']})" if where["variant"] else ""),
            "algorithm": where.get("algorithm", ""),
            "call": call,
            "flops": cost.flops,
            **over,
            **{f"{stage} flops": of_it for stage, of_it in cost.stages.items()},
            "live_bytes": cost.live,
            **live,
            "weights_bytes": cost.weights,
            "waiting_bytes": cost.waiting,
            "copied_bytes": cost.copied,
        }


def table(found: Any, room: int | None) -> str:
    """Rows of one world and reward: FLOPs, by stage in per cent, and bytes."""
    needed = found["live_bytes"] + found["weights_bytes"]
    calls = set(found["call"])
    shown = {"method": found["method"]}
    if calls != {GUIDED}:
        shown["algorithm" if calls == {SAMPLE} else "call"] = found[
            "algorithm" if calls == {SAMPLE} else "call"
        ]
    shown["FLOPs"] = found["flops"].map(flops)
    for name in YARDSTICKS:
        if f"over {name}" in found:
            shown[f"over {name.split()[0]}"] = _known(found[f"over {name}"], "{:.2f}")
    if "beside" in found:
        shown["beside"] = found["beside"].fillna("")
        shown["over it"] = _known(found["over it"], "{:.3f}")
    for stage in STAGES:
        shown[f"{stage} %"] = _known(100 * found[f"{stage} flops"] / found["flops"], "{:.0f}")
    rest = 100 * found["rest flops"] / found["flops"]
    if (rest >= 1).any():
        shown["rest %"] = _known(rest, "{:.0f}")
    shown["live"] = found["live_bytes"].map(numbers.size)
    if "of classic" in found:
        shown["of classic"] = _known(found["of classic"], "{:.3f}")
    shown["weights"] = found["weights_bytes"].map(numbers.size)
    shown["together"] = needed.map(numbers.size)
    if (found["waiting_bytes"] > 0).any():
        shown["in main memory"] = found["waiting_bytes"].map(numbers.size)
        shown["copied"] = found["copied_bytes"].map(numbers.size)
    if room is not None:
        shown[f"fits in {numbers.size(room)}"] = (needed <= room).map({True: "yes", False: "no"})
    return pd.DataFrame(shown).to_string(index=False)


def _known(numbers_of: Any, form: str) -> Any:  # noqa: ANN401 - a column of a frame
    """A column as text, empty where it knows nothing."""
    return numbers_of.map(lambda x: "" if pd.isna(x) else form.format(x))


def paper_table(model: str, *, encoders: bool) -> str:
    """A model's rows of the paper's Table 1 beside what is stated there; "" without any."""
    from bench import resident  # noqa: PLC0415 - slow

    if model not in resident.MODELS:
        return ""
    found = []
    for row in resident.rows(model, Answers(), encoders=encoders):
        ours = row.flops_over
        found.append(
            {
                "reward": row.reward,
                **_beside("DPS", row.bytes_of(row.dps), row.paper_dps[0]),
                **_beside("StitchVM", row.bytes_of(row.stitched), row.paper_stitched[0]),
                "FLOPs, DPS / StitchVM": f"{ours[0]:.2f} to {ours[1]:.2f}",
                "time, paper": f"{row.paper_dps[1] / row.paper_stitched[1]:.2f}",
            }
        )
    where = "resident" if encoders else "off the device"
    return (
        f"\nthe paper's Table 1, {model}, in GB of 10^9 bytes: DPS with weights that ask for "
        f"gradients,\nnothing recomputed, rewards in float32, StitchVM with a finetuned copy; "
        f"text encoders {where}\n{pd.DataFrame(found).to_string(index=False)}\n"
        f"FLOPs: nothing recomputed, to recomputed by block; StitchVM without a shared trunk"
    )


def _beside(name: str, found: int, printed: float) -> dict[str, str]:
    """Bytes beside the paper's GB."""
    ours = found / 1e9
    return {
        name: f"{ours:.1f}",
        f"{name}, paper": f"{printed:.1f}",
        f"{name} off": f"{100 * (ours / printed - 1):+.1f} %",
    }


def flops(count: float) -> str:
    """A number of FLOPs, with a unit."""
    unit = next((unit for unit, size in UNITS.items() if count >= size), "M")
    return f"{count / UNITS[unit]:.2f} {unit}"
