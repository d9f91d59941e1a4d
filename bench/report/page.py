"""One self-contained HTML page: nothing fetched, figures inside, a panel for every cell.

Nothing is computed here that tables, trust, claims and figures don't give.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import (
    answer,
    certainty,
    claims,
    floor,
    glossary,
    html,
    pictures,
    plots,
    scores,
    tables,
)
from bench.report.cells import ALONE, Behind
from bench.report.facets import Facet
from bench.report.measured import measured, warnings
from bench.report.pictures import Pictures

CAPTIONS = {
    "rmse": "Error against the noise level. Below the dashed line an estimator beats the prompt's "
    "mean.",
    "cost": "Error against time, a panel per noise level. Below the grey front lies nothing one "
    "could use (exact posterior draws need the truth); the dashed line is the prompt's mean.",
    "skill": "Share of the prompt's mean's squared error that an estimator removes.",
    "bias": "Bias against the noise level: what no number of replicates averages away.",
    "variance": "Variance between replicates at one latent: what more rollouts average away.",
    "ranking": "How well an estimator ranks the latents an algorithm would choose among.",
    "gradient": "Whether the estimator's gradient points where the true one does.",
    "particles": "Monte Carlo error against the number of rollouts.",
    "steps": "Monte Carlo bias per latent against solver steps: what stays is the kernel's own. "
    "Below, the part of the mean bias that more steps would remove.",
    "realised": "Bias measured without knowing the truth, against the bias to the truth. On the "
    "diagonal both agree.",
}
FLOOR = "Dotted: the floor of the truth, which is an average itself and adds this to every RMSE."
OF_AVERAGES = {  # what to add where the truth is an average
    "rmse": FLOOR,
    "cost": FLOOR,
    "particles": FLOOR,
    "gradient": "Not shown where the truth averages fewer than two members: it has no gradient "
    "there.",
}
SHORT = {
    "ranking": "ranking",
    "particles": "number of rollouts",
    "steps": "solver steps",
    "realised": "realised rewards",
}
KEY = ("cost", "rmse", "skill", "bias", "variance", "gradient")


def write(
    frame: pd.DataFrame,
    drawn: plots.Figures,
    failures: Iterable[Mapping[str, Any]],
    problems: Iterable[str],
    out: Path,
    seen: Iterable[Pictures] = (),
    *,
    behind: Behind = ALONE,
    made: list[tables.Shown] | None = None,
) -> Path:
    """Write the page.

    Args:
        frame: Rows of results; may be empty.
        drawn: Their figures, `plots.figures`.
        failures: Cells without a result: their coordinates, status and reason.
        problems: Records that could not be read.
        out: The file.
        seen: What worlds look like, `pictures.collect`.
        behind: What the page says beside its numbers.
        made: `tables.shown` of the frame, where that is known.
    """
    failures = list(failures)
    found = tables.shown(frame, failures) if made is None else made
    verdicts = claims.judge(frame) if behind.verdicts is None else behind.verdicts
    page = html.rendered(
        "page.html",
        worlds=_worlds(found, drawn, list(seen)),
        verdicts=verdicts,
        scores=scores.scores(verdicts),
        cells=behind.cells,
        measured=measured(frame) if len(frame) else {},
        suites=_suites(frame),
        indicative=bool(len(frame)) and bool((frame["isolation"] == "inline").any()),
        undrawn=len(found) - len(drawn),
        failures=failures,
        problems=[*problems, *warnings(frame)],
        ideas=glossary.IDEAS,
        floor=None if frame.empty or certainty.is_exact(frame) else certainty.FLOOR,
        references=glossary.REFERENCES,
        columns=glossary.columns(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _worlds(
    found: list[tables.Shown], drawn: plots.Figures, seen: list[Pictures]
) -> list[dict[str, Any]]:
    """Each world with its facets."""
    out = []
    for world in dict.fromkeys(one.facet.world for one in found):
        mine = [one for one in found if one.facet.world == world]
        rows = pd.concat([one.facet.frame for one in mine])
        out.append({
            "name": world,
            "about": glossary.WORLDS.get(world, ""),
            "truth": certainty.of_world(rows),
            "glance": answer.glance([one.facet for one in mine], [one.trusted for one in mine]),
            "facets": [_facet(one, drawn.get(one.facet.slug, {})) for one in mine],
            "pictures": [_grid(shown) for shown in seen if shown.world == world],
        })  # fmt: skip
    return out


def _grid(shown: Pictures) -> dict[str, Any]:
    """Pictures by prompt, each with its place in words."""
    heads = pictures.headings(shown)
    rows = [
        (prompt, [(html.source("png", pictures.png(picture)), f"{prompt}, {head}")
                  for head, picture in zip(heads, pictures.row(shown, k), strict=True)])
        for k, prompt in enumerate(shown.prompts)
    ]  # fmt: skip
    return {"headings": heads, "rows": rows}


def _facet(one: tables.Shown, drawn: Mapping[str, Any]) -> dict[str, Any]:
    facet = one.facet
    images = [_image(name, facet, figure) for name, figure in drawn.items()]
    return {
        "heading": facet.heading,
        "title": facet.title,
        "about": facet.about,
        "slug": facet.slug,
        "sentence": answer.of_facet(facet, one.trusted),
        "trust": one.trust,
        "values": one.values,
        "floor": floor.note(facet.frame),
        "key": sorted((i for i in images if i["name"] in KEY), key=lambda i: KEY.index(i["name"])),
        "more": [image for image in images if image["name"] not in KEY],
    }


def _image(name: str, facet: Facet, figure: Any) -> dict[str, Any]:  # noqa: ANN401
    caption = CAPTIONS[name]
    if name in OF_AVERAGES and not certainty.is_exact(facet.frame):
        caption = f"{caption} {OF_AVERAGES[name]}"
    return {
        "name": name,
        "short": SHORT.get(name, name),
        "source": html.source("svg+xml", plots.rendered(figure, "svg")),
        "caption": caption,
        "alt": f"{facet.title}: {caption} The numbers are in the full table.",
        "wide": figure.get_figwidth() > 6,  # noqa: PLR2004 - inches
    }


def _suites(frame: pd.DataFrame) -> list[str]:
    """What `stitchbench run` was given."""
    if frame.empty:
        return []
    pairs = frame[["suite", "quick"]].drop_duplicates().itertuples(index=False)
    return [f"{suite} --quick" if quick else str(suite) for suite, quick in pairs]
