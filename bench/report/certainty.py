"""How well the truth is known: exactly, or as an average over a bank of clean latents.

An average scatters round the value of the world itself.  It does so for every estimator alike:
signed biases of mean values and differences of squared errors keep their expectation, while every
mean squared error, squared bias and skill contains one and the same variance.  Its root is the
floor of the truth.  Its estimate comes from the bank's halves, and an average of hardly more than
one member has no halves: there it is a lower bound.  Nor has it a gradient: one member stays the
nearest when the noisy latent moves.
"""

import math

import pandas as pd

from bench.report import numbers

FLOOR = "floor of the truth"
FEW = 2.0  # effective members; with fewer the floor is a lower bound
BANKS = {  # a posterior's to the setting with its size, and whom it serves
    "| prompt": ("world.prompt_members", "for each prompt"),
    "| data": ("world.members", "for all prompts"),
}
NOTHING = 1e-9  # in units of the reward, which are of order 1
UNKNOWN = "unknown"
NEAREST = "hardly more than the reward of the clean latent that was noised"


def exact(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows judged by a truth that is exact."""
    return rows[rows["truth_members"].isna()]


def is_exact(rows: pd.DataFrame) -> bool:
    """Whether no row is judged by an average."""
    return bool(rows["truth_members"].isna().all())


def is_realised(rows: pd.DataFrame) -> bool:
    """Whether realised rewards stand for the truth."""
    return bool(len(rows) and (rows["truth_members"].notna() & rows["truth_floor"].isna()).all())


def has_gradient(rows: pd.DataFrame) -> pd.Series:
    """Which rows are judged by a truth whose gradient says something."""
    return ~(rows["truth_members"] < FEW)


def gradient(row: numbers.Row, metric: str) -> float:
    """A metric of gradients, NaN where the truth has none."""
    return float("nan") if row["truth_members"] < FEW else float(row[metric])


def floors(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns sigma, truth_members and truth_floor, one row a noise level whose truth is none."""
    known = rows[rows["truth_members"].notna()].drop_duplicates("sigma")
    return known[["sigma", "truth_members", "truth_floor"]].sort_values("sigma")


def shown(rows: pd.DataFrame) -> dict[float, dict[str, str]]:
    """Noise level to what a table says of a truth that is an average."""
    return {
        row["sigma"]: {
            "target": f"truth averages {numbers.plain(row['truth_members'], 2)} members",
            "RMSE": _floor(row["truth_members"], row["truth_floor"]),
        }
        for row in floors(rows).to_dict("records")
    }


def sentence(rows: pd.DataFrame) -> str:
    """How well the truth of a facet is known; empty where it is exact."""
    found = floors(rows)
    if found.empty:
        return ""
    if is_realised(rows):
        return (
            "Nobody knows its true values: errors are those against realised rewards, whose "
            "spread round the value is in every RMSE alike, and which hides skill. Biases, and "
            "differences of squared errors, are those against the truth."
        )
    text = (
        f"The truth averages {_span(found['truth_members'])} effective members (median over the "
        f"latents) and adds {_span(found['truth_floor'])} to every RMSE, in quadrature."
    )
    few = found.loc[found["truth_members"] < FEW, "sigma"]
    if few.empty:
        return text
    at = ", ".join(f"{sigma:g}" for sigma in few)
    return f"{text} At sigma {at} that is {NEAREST}, and what it adds is a lower bound."


def of_world(rows: pd.DataFrame) -> str:
    """What the truth of a world is, in a sentence."""
    if rows["mse"].isna().all() or is_realised(rows):
        return "Its true values are not known: errors are those against realised rewards."
    if is_exact(rows):
        return "Its truth is exact."
    sizes = [
        f"{size:g} {of}"
        for posterior, (name, of) in BANKS.items()
        if name in rows
        for size in sorted(rows.loc[rows["estimand"].str.endswith(posterior), name].unique())
    ]
    members = f"{', '.join(sizes)}; " if sizes else ""
    return (
        f"Its truth is taken under the posterior over a bank of clean latents ({members}the "
        f"noised one among them): an average, without bias for mean values but not exact."
    )


def _floor(members: float, floor: float) -> str:
    if math.isnan(floor):
        return UNKNOWN
    if members >= FEW:
        return _small(floor)
    return UNKNOWN if floor < NOTHING else f"\u2265 {_small(floor)}"


def _span(found: pd.Series) -> str:
    least, most = _small(found.min()), _small(found.max())
    return least if least == most else f"{least} to {most}"


def _small(x: float) -> str:
    """Two digits; what is nothing beside any reward is 0."""
    return numbers.plain(x if x > NOTHING else 0.0, 2)
