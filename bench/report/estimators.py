"""Estimators in a fixed order, in families, each with one colour and one marker in every plot.

A family is a method with its kernel (`monte_carlo` with the reversal kernel): it has a hue, and
its members, which differ in N or k, are shades of it from light to dark.
"""

import re
from typing import NamedTuple

import pandas as pd

HUES = {  # first Okabe & Ito (2008), then Tol's muted scheme; told apart by any colour vision
    "truth": "#000000",
    "constant": "#7f7f7f",
    "terminal": "#cc79a7",
    "tweedie": "#d55e00",
    "stitched": "#117733",
    "linear_stitch": "#009e73",
    "calibrated": "#661100",
    "vae_stitch": "#aa4499",
    "noisy_student": "#b8a100",
    "feature_head": "#56b4e9",
    "monte_carlo reversal": "#0072b2",
    "monte_carlo ode": "#e69f00",
    "monte_carlo square": "#882255",
    "monte_carlo sigma": "#999933",
    "monte_carlo flow_grpo": "#44aa99",
    "monte_carlo exact": "#332288",
}
SPARE = ("#6699cc", "#888888", "#a0522d", "#5f9ea0", "#d4a6c8", "#4b6f44", "#c08457")
REFERENCES = ("truth", "constant")  # not shaded
LINES = {"constant": "--", "monte_carlo exact": ":"}
MARKERS = "os^DvPX<>hpd*8H"
LIGHTEST, DARKEST = 0.45, 0.35  # shares of white and of black in a family's end members
SHORT = {"estimator.particles": "N", "estimator.steps": "k"}
MOST = 14  # lines a plot can carry


class Style(NamedTuple):
    """How an estimator is drawn."""

    colour: str
    marker: str
    line: str


class Palette(NamedTuple):
    """One look for all plots of a frame: style by estimator, hue by family."""

    styles: dict[str, Style]
    hues: dict[str, str]


def palette(frame: pd.DataFrame) -> Palette:
    """The look of a frame; take it from all its rows, so that all its plots agree."""
    return Palette(styles(frame), hues_of(frame))


def family(row: pd.Series) -> str:
    """The method of a row, with its kernel where it has one."""
    kernel = row.get("estimator.kernel")
    build = str(row["estimator_build"])
    return f"{build} {kernel}" if isinstance(kernel, str) else build


def families(frame: pd.DataFrame) -> pd.Series:
    """Estimator to family, in the order of every table and legend: by family, then by label."""
    rows = frame.drop_duplicates("estimator")
    named = {str(row["estimator"]): family(row) for _, row in rows.iterrows()}
    known = list(HUES)
    ranked = sorted(
        named.items(),
        key=lambda item: (
            known.index(item[1]) if item[1] in known else len(known),
            item[1],
            natural(item[0]),
        ),
    )
    return pd.Series(dict(ranked), dtype=object)


def order(frame: pd.DataFrame) -> list[str]:
    """Every estimator of a frame, once, in order."""
    return [str(name) for name in families(frame).index]


def styles(frame: pd.DataFrame) -> dict[str, Style]:
    """Every estimator's style."""
    members = families(frame)
    hues = hues_of(frame)
    out = {}
    for k, (name, group) in enumerate(members.items()):
        kin = [str(name) for name in members.index[members == group]]
        share = kin.index(str(name)) / max(len(kin) - 1, 1)
        if len(kin) == 1 or group in REFERENCES:
            share = 0.5
        elif " " not in str(group):  # no kernel: the first keeps the family's own hue
            share = (1 + share) / 2
        line = LINES.get(group, "-")
        out[str(name)] = Style(shade(hues[group], share), MARKERS[k % len(MARKERS)], line)
    return out


def hues_of(frame: pd.DataFrame) -> dict[str, str]:
    """Family to hue; families nobody foresaw take the spare hues in order."""
    found = dict.fromkeys(families(frame))
    unknown = [name for name in found if name not in HUES]
    spare = {name: SPARE[k % len(SPARE)] for k, name in enumerate(unknown)}
    return {name: HUES.get(name) or spare[name] for name in found}


def shade(hue: str, share: float) -> str:
    """A hue from light (share 0) over itself (1/2) to dark (1)."""
    white, black = LIGHTEST * max(0.0, 1 - 2 * share), DARKEST * max(0.0, 2 * share - 1)
    channels = [int(hue[k : k + 2], 16) for k in (1, 3, 5)]
    mixed = [round((c + (255 - c) * white) * (1 - black)) for c in channels]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def headline(frame: pd.DataFrame, most: int = MOST) -> list[str]:
    """The estimators a plot shows: all, or where they are too many some of every family.

    Of Monte Carlo the ends of each kernel's members, or only the dearest; of others the first.
    """
    members = families(frame)
    kin = [members.index[members == group].astype(str).tolist() for group in members.unique()]
    choices = (
        lambda names, kernel: names,
        lambda names, kernel: list(dict.fromkeys([names[0], names[-1]])) if kernel else names[:1],
        lambda names, kernel: names[-1:] if kernel else names[:1],
    )
    kept: list[str] = []
    for choose in choices:
        kept = [name for names in kin for name in choose(names, " " in members[names[0]])]
        if len(kept) <= most:
            break
    return kept


def swept(frame: pd.DataFrame, setting: str) -> dict[str, pd.DataFrame]:
    """Rows that differ in one setting alone, by a name for what they share.

    Exact draws take no steps, so they are no sweep over them.
    """
    over = f"estimator.{setting}"
    if over not in frame or "estimator.kernel" not in frame:
        return {}
    rows = frame[frame[over].notna() & frame["estimator.kernel"].notna()]
    if setting == "steps":
        rows = rows[rows["estimator.kernel"] != "exact"]
    shared = [c for c in map(str, rows) if c.startswith("estimator.") and c != over]
    groups = rows.groupby(["estimator_build", *shared], sort=False, dropna=False)
    found = [group for _, group in groups if group[over].nunique() > 1]
    firsts = pd.DataFrame([group.iloc[0] for group in found])
    named = [c for c in shared if c in SHORT or (len(found) > 1 and firsts[c].nunique() > 1)]
    return {_shared_name(group.iloc[0], named): group for group in found}


def _shared_name(row: pd.Series, named: list[str]) -> str:
    """`reversal k=32`: the kernel, and settings by their short names."""
    kernel = family(row).removeprefix("monte_carlo ")
    settings = [c for c in named if c != "estimator.kernel" and pd.notna(row[c])]
    shown = [
        f"{SHORT[c]}={row[c]:g}" if c in SHORT else f"{c.removeprefix('estimator.')}={row[c]}"
        for c in settings
    ]
    return " ".join([kernel, *shown])


def natural(text: str) -> tuple[tuple[float, str], ...]:
    """A sort key under which N=4 stands before N=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((float(p), "") if p[:1].isdigit() else (-1.0, p) for p in parts)
