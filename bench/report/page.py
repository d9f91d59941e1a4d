"""One self-contained HTML page: no scripts, nothing fetched, figures inside.

Nothing is computed here that tables, trust, claims and figures don't give.
"""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.report import answer, claims, facets, glossary, plots, tables, trust
from bench.report.facets import Facet
from bench.report.measured import measured, warnings

HERE = Path(__file__).parent
CAPTIONS = {
    "rmse": "Error against the noise level. Below the dashed line an estimator beats the prompt's "
    "mean.",
    "cost": "Error against time, a panel per noise level. Below the grey front lies nothing one "
    "could use (exact posterior draws need the truth); the dashed line is the prompt's mean.",
    "skill": "Share of the prompt's mean's squared error that an estimator removes.",
    "bias": "Bias against the noise level: what no number of replicates averages away.",
    "ranking": "How well an estimator ranks the latents an algorithm would choose among.",
    "gradient": "Whether the estimator's gradient points where the true one does.",
    "particles": "Monte Carlo error against the number of rollouts.",
    "steps": "Monte Carlo bias per latent against solver steps: what stays is the kernel's own. "
    "Below, the part of the mean bias that more steps would remove.",
    "realised": "Bias measured without knowing the truth, against the bias to the truth. On the "
    "diagonal both agree.",
}
SHORT = {
    "ranking": "ranking",
    "particles": "number of rollouts",
    "steps": "solver steps",
    "realised": "realised rewards",
}
KEY = ("cost", "rmse", "skill", "bias", "gradient")


def write(
    frame: pd.DataFrame,
    drawn: plots.Figures,
    failures: Iterable[Mapping[str, Any]],
    problems: Iterable[str],
    out: Path,
) -> Path:
    """Write the page.

    Args:
        frame: Rows of results; may be empty.
        drawn: Their figures, `plots.figures`.
        failures: Cells without a result: their coordinates, status and reason.
        problems: Records that could not be read.
        out: The file.
    """
    failures = list(failures)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        facets=[_facet(facet, drawn[facet.slug]) for facet in facets.split(frame, failures)],
        verdicts=claims.judge(frame),
        measured=measured(frame) if len(frame) else {},
        suites=_suites(frame),
        indicative=bool(len(frame)) and bool((frame["isolation"] == "inline").any()),
        failures=failures,
        problems=[*problems, *warnings(frame)],
        ideas=glossary.IDEAS,
        references=glossary.REFERENCES,
        columns=glossary.columns(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def _facet(facet: Facet, drawn: Mapping[str, Any]) -> dict[str, Any]:
    constants = set(trust.constants(facet.frame)["estimator"])
    images = [_image(name, facet.title, figure) for name, figure in drawn.items()]
    return {
        "title": facet.title,
        "about": facet.about,
        "slug": facet.slug,
        "sentence": answer.sentence(trust.trust(facet.frame), constants),
        "trust": tables.trust_table(facet.frame),
        "values": tables.value_table(facet.frame, facet.failures),
        "key": sorted((i for i in images if i["name"] in KEY), key=lambda i: KEY.index(i["name"])),
        "more": [image for image in images if image["name"] not in KEY],
    }


def _image(name: str, title: str, figure: Any) -> dict[str, Any]:  # noqa: ANN401
    svg = base64.b64encode(plots.rendered(figure, "svg")).decode()
    return {
        "name": name,
        "short": SHORT.get(name, name),
        "source": f"data:image/svg+xml;base64,{svg}",
        "caption": CAPTIONS[name],
        "alt": f"{title}: {CAPTIONS[name]} The numbers are in the full table.",
        "wide": figure.get_figwidth() > 6,  # noqa: PLR2004 - inches
    }


def _suites(frame: pd.DataFrame) -> list[str]:
    """What `stitchbench run` was given."""
    if frame.empty:
        return []
    pairs = frame[["suite", "quick"]].drop_duplicates().itertuples(index=False)
    return [f"{suite} --quick" if quick else str(suite) for suite, quick in pairs]
