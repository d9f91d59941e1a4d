"""Estimators in a fixed order, in families, each with one colour and one marker in every plot.

A family is a method with its kernel (`monte_carlo` with the reversal kernel): it has a hue, and
its members, which differ in N or k, are shades of it from light to dark.
"""

import re
from collections import Counter
from collections.abc import Iterable
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
SPARE = (
    "#6699cc", "#888888", "#a0522d", "#5f9ea0", "#d4a6c8", "#4b6f44", "#c08457",
    "#e6007e", "#7a00e6", "#7cd600", "#00d0d0",
)  # fmt: skip
PLACE = ("world", "reward")  # what stands in one panel has these in common
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
    """Every estimator's style; one nobody foresaw takes a marker that is free beside it."""
    members = families(frame)
    colours = _colours(members, hues_of(frame))
    out = {
        name: Style(colours[name], MARKERS[k % len(MARKERS)], LINES.get(members[name], "-"))
        for k, name in enumerate(colours)
    }
    for name in [name for name in out if members[name] not in HUES][: len(MARKERS)]:
        beside = [out[other] for other in _beside(frame, name)]
        out[name] = out[name]._replace(marker=_free_marker(out[name], beside))
    return out


def hues_of(frame: pd.DataFrame) -> dict[str, str]:
    """Family to hue; families nobody foresaw take the spare hues, the most unlike others first."""
    members = families(frame)
    found = dict.fromkeys(members)
    known = members[members.isin(list(HUES))]
    used = list(_colours(known, HUES).values())
    unknown = [name for name in found if name not in HUES]
    spare: list[str] = []
    left = list(SPARE)
    while left and len(spare) < len(unknown):
        spare.append(max(left, key=lambda hue: _apart(hue, [*used, *spare])))
        left.remove(spare[-1])
    fresh = {name: spare[k % len(spare)] for k, name in enumerate(unknown)}
    return {name: HUES.get(name) or fresh[name] for name in found}


def _colours(members: pd.Series, hues: dict[str, str]) -> dict[str, str]:
    """Every estimator's colour, a shade of its family's hue."""
    out = {}
    for group, names in members.groupby(members, sort=False):
        kin = [str(name) for name in names.index]
        for k, name in enumerate(kin):
            share = k / max(len(kin) - 1, 1)
            if len(kin) == 1 or group in REFERENCES:
                share = 0.5
            elif " " not in str(group):  # no kernel: the first keeps the family's own hue
                share = (1 + share) / 2
            out[name] = shade(hues[str(group)], share)
    return {str(name): out[str(name)] for name in members.index}


def _beside(frame: pd.DataFrame, name: str) -> list[str]:
    """Other estimators of the panels that one stands in."""
    place = [column for column in PLACE if column in frame]
    rows = frame[["estimator", *place]].drop_duplicates()
    if place:
        rows = rows.merge(rows.loc[rows["estimator"] == name, place])
    return [str(other) for other in rows["estimator"].unique() if other != name]


def _free_marker(style: Style, beside: list[Style]) -> str:
    """The marker that fewest beside it have, of these one whose colour there is another."""
    taken = Counter(other.marker for other in beside)

    def fitness(marker: str) -> tuple[int, float, bool]:
        colours = [other.colour for other in beside if other.marker == marker]
        return -taken[marker], _apart(style.colour, colours), marker == style.marker

    return max(MARKERS, key=fitness)


def _apart(colour: str, others: Iterable[str]) -> float:
    """How far a colour is from the nearest of others."""
    return min((_distance(colour, other) for other in others), default=float("inf"))


def _distance(one: str, other: str) -> float:
    """Between colours, channels weighed as eyes do: https://www.compuphase.com/cmetric.htm."""
    (r, g, b), (x, y, z) = _channels(one), _channels(other)
    red = (r + x) / 512
    return float((2 + red) * (r - x) ** 2 + 4 * (g - y) ** 2 + (3 - red) * (b - z) ** 2) ** 0.5


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def shade(hue: str, share: float) -> str:
    """A hue from light (share 0) over itself (1/2) to dark (1)."""
    white, black = LIGHTEST * max(0.0, 1 - 2 * share), DARKEST * max(0.0, 2 * share - 1)
    mixed = [round((c + (255 - c) * white) * (1 - black)) for c in _channels(hue)]
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
