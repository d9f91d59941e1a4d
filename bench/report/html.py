"""Pages: HTML that needs nothing beside it: figures, style and the one script inside.

What others named or said is escaped, and the page's own policy lets no other script run and
nothing be fetched: neither text nor a picture can do more than be seen.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report.grid import grid
from bench.report.lettering import capital

HERE = Path(__file__).parent
SCRIPT = "page.js"
RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+")
ISOLATED = "\u2068{}\u2069"  # first-strong isolate, and its end


def rendered(template: str, **shown: Any) -> str:
    """A template of this folder, or of the folders in it, filled in.

    Raises:
        jinja2.UndefinedError: if it asks for something that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader([HERE, HERE / "robustness"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=isolated,
    )
    environment.globals["laid_out"] = grid
    environment.filters["capital"] = capital
    script = (HERE / SCRIPT).read_text(encoding="utf-8")
    return environment.get_template(template).render(
        script=Markup(script),
        policy=policy(script),
        **shown,
    )


def policy(script: str) -> str:
    """What a page may do: show its own pictures and style, and run this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def isolated(value: Any) -> Any:
    """Text with words that run from right to left kept from reordering what stands beside them."""
    if isinstance(value, Markup) or not isinstance(value, str) or value.isascii():
        return value
    return RIGHT_TO_LEFT.sub(lambda found: ISOLATED.format(found.group()), value)


def source(kind: str, data: bytes) -> str:
    """A picture of a kind, `png` or `svg+xml`, as the source of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
