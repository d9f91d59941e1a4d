"""Each row against the constant and against the best of its table, in words."""

import pandas as pd

from bench.report import trust
from bench.report.numbers import MISSING

AGAINST = {-1: "better", 0: "same", 1: "worse"}


def verdicts(frame: pd.DataFrame) -> dict[tuple[float, str], dict[str, str]]:
    """Noise level and estimator to both verdicts on the MSE.

    Returns:
        "against constant": better, same, worse; "against best": best, same, worse; each a dash
        where a row is not compared.  A difference counts when it is clear (`trust.against`); else
        the two are the same as far as this run can tell.
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
    return out
