"""Which estimator to trust, at what cost: the answer a report exists for.

At each noise level of a facet, over the candidates (all but the truth and those that draw from the
exact posterior, which only worlds with a known truth can offer; the constant is one of them):

    best         the lowest mean MSE
    as good      not clearly worse than the best (the difference in MSE, paired by prompt, has an
                 interval that includes 0, or a p that Holm's adjustment over all noise levels and
                 candidates of the facet lifts above 0.05), and with an RMSE at most a quarter
                 above the best's: what a small run cannot tell apart is not thereby as good
    recommended  the cheapest as-good one, by seconds per value

The best is selected on the data it is then compared on, which favours it a little.
"""

import numpy as np
import pandas as pd

from bench.stats import holm, paired

ALPHA = 0.05
MARGIN = 1.25  # of RMSE over the best's
COLUMNS = (  # of `trust`
    "sigma", "recommended", "rmse", "rmse_lo", "rmse_hi", "skill", "skill_lo", "skill_hi",
    "seconds", "seconds_lo", "seconds_hi", "cost", "best", "best_rmse", "as_good", "candidates",
    "detectable",
)  # fmt: skip


def candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of estimators one could use where the truth is unknown, with a measured MSE."""
    usable = (frame["estimator_build"] != "truth") & frame["mse"].notna()
    if "estimator.kernel" in frame:
        usable &= frame["estimator.kernel"].ne("exact")
    return frame[usable]


def against(frame: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The paired differences in MSE of rows to the reference row at their noise level.

    Args:
        frame: Rows of one facet.
        reference: At most one row per sigma.

    Returns:
        Columns sigma, estimator, difference, lo, hi, p (Holm-adjusted over all rows), detectable,
        clear: -1 clearly better than the reference, 1 clearly worse, else 0.  The reference itself
        is no row.
    """
    judges = {row["sigma"]: row for _, row in reference.iterrows()}
    out = []
    for _, row in frame.iterrows():
        judge = judges.get(row["sigma"])
        if judge is None or judge["estimator"] == row["estimator"]:
            continue
        test = paired(row["mse_by_prompt"], judge["mse_by_prompt"])
        out.append((row["sigma"], row["estimator"], *test.difference[:3], test.p, test.detectable))
    columns = ["sigma", "estimator", "difference", "lo", "hi", "p", "detectable"]
    table = pd.DataFrame(out, columns=columns)
    table["p"] = holm(table["p"].to_numpy(dtype=float))
    excluded = (table["lo"] > 0) | (table["hi"] < 0)
    clear = excluded & (table["p"] < ALPHA)
    table["clear"] = np.where(clear, np.sign(table["difference"]), 0).astype(int)
    return table


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """The candidate of lowest mean MSE at each noise level."""
    usable = candidates(frame)
    return usable.loc[usable.groupby("sigma")["mse"].idxmin()]


def constants(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the constant, one per noise level."""
    return frame[frame["estimator_build"] == "constant"].drop_duplicates("sigma")


def plain_tweedie(frame: pd.DataFrame) -> pd.DataFrame:
    """Tweedie's rows with the world's own decoder and a velocity of its own."""
    rows = frame[frame["estimator_build"] == "tweedie"]
    for setting, other in (("estimator.decoder", "tiny"), ("estimator.reuse", True)):
        rows = rows[rows[setting] != other] if setting in rows else rows
    return rows


def tweedie_seconds(frame: pd.DataFrame) -> pd.Series:
    """Seconds per value of plain Tweedie at each noise level, of several the first by name."""
    rows = plain_tweedie(frame).sort_values("estimator")
    return rows.groupby("sigma")["seconds"].first()


def trust(frame: pd.DataFrame) -> pd.DataFrame:
    """The recommended estimator of a facet, one row per noise level, with what it costs.

    Returns:
        sigma, recommended, its rmse, skill and seconds (each with _lo and _hi), cost (seconds over
        Tweedie's), best and best_rmse, as_good (labels, cheapest first), candidates (how many),
        detectable: the smallest difference in MSE, in units of the constant's MSE and hence of
        skill, that a test of the recommended one against the best (or, where it is the best,
        against the runner-up) would find 80 % of the time.
    """
    usable, judges, reference = candidates(frame), best(frame), tweedie_seconds(frame)
    tests = against(usable, judges)
    out = []
    for sigma, rows in usable.groupby("sigma"):
        top = judges[judges["sigma"] == sigma].iloc[0]
        here = tests[tests["sigma"] == sigma].set_index("estimator")
        worse = here.index[here["clear"] > 0]
        near = rows["rmse"] <= MARGIN * top["rmse"]
        good = rows[near & ~rows["estimator"].isin(worse)].sort_values(["seconds", "mse"])
        pick = good.iloc[0]
        out.append({
            **{name: pick.get(name, np.nan) for name in COLUMNS},
            "sigma": sigma,
            "recommended": pick["estimator"],
            "cost": pick["seconds"] / reference.get(sigma, np.nan),
            "best": top["estimator"],
            "best_rmse": top["rmse"],
            "as_good": tuple(good["estimator"]),
            "candidates": len(rows),
            "detectable": _detectable(rows, here, pick, top) / _constant_mse(rows),
        })  # fmt: skip
    return pd.DataFrame(out, columns=list(COLUMNS))


def _detectable(rows: pd.DataFrame, tests: pd.DataFrame, pick: pd.Series, top: pd.Series) -> float:
    if tests.empty:
        return float("nan")
    if pick["estimator"] != top["estimator"]:
        return float(tests.loc[pick["estimator"], "detectable"])
    rest = rows[rows["estimator"] != top["estimator"]]
    return float(tests.loc[rest.loc[rest["mse"].idxmin(), "estimator"], "detectable"])


def _constant_mse(rows: pd.DataFrame) -> float:
    constant = constants(rows)["mse"]
    return float(constant.iloc[0]) if len(constant) and constant.iloc[0] > 0 else float("nan")
