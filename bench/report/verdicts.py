"""Each row against the constant and against the best of its table, in words."""

import pandas as pd

from bench.report import trust
from bench.report.numbers import MISSING

AGAINST = {-1: "better", 0: "unclear", 1: "worse"}


def verdicts(
    frame: pd.DataFrame, trusted: pd.DataFrame
) -> dict[tuple[float, str], dict[str, str]]:
    """Noise level and estimator to both verdicts on the MSE.

    Args:
        frame: Rows of one facet.
        trusted: Their `trust.trust`.

    Returns:
        "against constant": better, unclear, worse; "against best": best, as good
        (`trust.as_good`), unclear, worse; each a dash where a row is not compared.  A difference
        counts when it is clear (`trust.against`).
    """
    measured, judges = frame[frame["mse"].notna()], trust.best(frame)
    places = zip(frame["sigma"].tolist(), frame["estimator"].tolist(), strict=True)
    out = {place: {"against constant": MISSING, "against best": MISSING} for place in places}
    tests = {
        "against constant": trust.against(measured, trust.constants(measured)),
        "against best": trust.against(trust.candidates(frame), judges),
    }
    for heading, table in tests.items():
        for row in table.to_dict("records"):
            out[row["sigma"], row["estimator"]][heading] = AGAINST[row["clear"]]
    for row in judges.to_dict("records"):
        out[row["sigma"], row["estimator"]]["against best"] = "best"
    for row in trusted.to_dict("records"):
        for name in set(row["as_good"]) - {row["best"]}:
            out[row["sigma"], name]["against best"] = "as good"
    return out
