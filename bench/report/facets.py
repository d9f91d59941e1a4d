"""A facet is what may stand in one table: the same world, reward, latents and judge for every row.

Rows of different facets answer different questions and are never compared.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bench.frame import FACET
from bench.report import certainty

COORDINATES = tuple(FACET)
RUN = ("quick", "seed", "dtype", "device", "threads")  # one store may hold several; they don't mix
CELL = tuple(name for name in FACET if name != "estimand")  # known of failures too

PLAINEST = {
    "latents": "data",
    "pairing": "own",
    "group": "independent",
    "grid": "plain",
    "variant": "",
    "estimand": "mean | prompt",
}
WORDS = {
    ("latents", "data"): "noised clean latents",
    ("latents", "sampler"): "latents from the sampler on its way",
    ("pairing", "own"): "each with its own prompt",
    ("pairing", "mismatched"): "made without regard to the prompt they are judged under",
    ("group", "independent"): "ranked among independent latents of a prompt",
    ("group", "siblings"): "ranked among siblings of one sampler step",
    ("grid", "plain"): "",
    ("variant", ""): "",
    ("grid", "snr"): "noise levels matched by signal-to-noise ratio to a 128 x 128 latent",
    ("quick", True): "shortened run",
}
REWARDS = {"clip": "CLIP", "hps": "HPS", "pick": "Pick"}  # as people write them
POSTERIORS = {"prompt": "given the prompt", "data": "whatever the prompt"}


class Facet(NamedTuple):
    """One comparison.

    Attributes:
        world: Where.
        heading: What is valued, short enough for a heading under the world's.
        title: The same with the world, where the frame has several.
        about: The rest of the coordinates in words, and how well the truth is known.
        slug: For file names and anchors; unique within a frame.
        frame: Its rows.
        failures: Its cells without rows.
    """

    world: str
    heading: str
    title: str
    about: str
    slug: str
    frame: pd.DataFrame
    failures: list[Mapping[str, Any]]


def split(frame: pd.DataFrame, failures: Iterable[Mapping[str, Any]] = ()) -> list[Facet]:
    """The facets of a frame by world, the plainest first, then in alphabetical order.

    Args:
        frame: Rows of results.
        failures: Cells without a result: cell, suite, the coordinates of a cell, status, reason.
            One whose coordinates match no row belongs to no facet.
    """
    if frame.empty:
        return []
    failures = list(failures)
    keys = [*COORDINATES, *(name for name in RUN if frame[name].nunique() > 1)]
    several = [name for name in keys if frame[name].nunique() > 1]
    facets: list[Facet] = []
    groups = [(dict(zip(keys, values, strict=True)), rows)
              for values, rows in frame.groupby(keys, dropna=False)]  # fmt: skip
    for at, rows in sorted(groups, key=lambda group: (group[0]["world"], _unusual(group[0]))):
        mine = [f for f in failures if all(f[name] == at[name] for name in CELL)]
        slug = _slug(at, several, {facet.slug for facet in facets})
        heading, shown = _heading(at, several), comparable(rows)
        place = f"{at['world']} world, " if "world" in several else ""
        about = " ".join(filter(None, [_about(at), certainty.sentence(shown)]))
        title = capital(place + heading)
        facets.append(Facet(str(at["world"]), capital(heading), title, about, slug, shown, mine))
    return facets


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows measured on the same latents, by noise level; others are dropped.

    Of several sets of latents the one most rows share stays.
    """
    return rows[_shares_latents(rows)].reset_index(drop=True)


def strangers(frame: pd.DataFrame) -> list[str]:
    """One line for every row that `comparable` leaves out of its facet."""
    if frame.empty:
        return []
    keys = [*COORDINATES, *RUN]
    lines = []
    for _, rows in frame.groupby(keys, sort=False, dropna=False):
        lines += [
            f"{row['estimator']} at sigma {row['sigma']:g} (cell {row['cell']}) was measured on "
            f"other latents than the rest of its table and is left out"
            for row in rows[~_shares_latents(rows)].to_dict("records")
        ]
    return lines


def estimand(text: str) -> str:
    """`mean | prompt` in words: mean value given the prompt."""
    value, _, posterior = (part.strip() for part in text.partition("|"))
    if value.startswith("soft"):
        value = f"soft value (lambda {value.removeprefix('soft(').rstrip(')')})"
    else:
        value = f"{value} value"
    return f"{value} {POSTERIORS.get(posterior, f'under {posterior}')}"


def _unusual(at: Mapping[str, Any]) -> int:
    """How many coordinates differ from the plainest case."""
    return sum(at[name] != usual for name, usual in PLAINEST.items())


def _shares_latents(rows: pd.DataFrame) -> pd.Series:
    commonest = rows.groupby("sigma")["z_digest"].transform(lambda d: d.mode().iloc[0])
    return rows["z_digest"] == commonest


def _slug(at: Mapping[str, Any], several: list[str], taken: set[str]) -> str:
    """What tells a facet apart, as a file name."""
    parts = [at[name] for name in dict.fromkeys(["reward", "estimand", *several])]
    plain = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower()).strip("-")
    names = itertools.chain([plain], (f"{plain}-{k}" for k in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _heading(at: Mapping[str, Any], several: list[str]) -> str:
    """Reward and estimand, and whatever else tells this facet from the frame's others."""
    apart = {"world", "reward", "estimand", "quick"}  # in the title, or marked another way
    marks = [f"{name} {at[name]}" for name in several if name not in apart]
    if "quick" in several and at["quick"]:
        marks.append("quick")
    heading = f"{REWARDS.get(at['reward'], at['reward'])} reward, {estimand(at['estimand'])}"
    return heading + (f" ({', '.join(marks)})" if marks else "")


def capital(text: str) -> str:
    """With a large first letter."""
    return text[:1].upper() + text[1:]


def _about(at: Mapping[str, Any]) -> str:
    names = ("latents", "pairing", "group", "grid", "variant")
    parts = [WORDS.get((name, at[name]), f"{name} {at[name]}") for name in names]
    latents = ", ".join(filter(None, parts))
    return f"{capital(at['world'])} world. Judged against {at['estimand']}, on {latents}."
