"""Pages: HTML that needs nothing beside it, no scripts, nothing fetched, figures inside."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent


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
    )
    return environment.get_template(template).render(**shown)


def source(kind: str, data: bytes) -> str:
    """A picture of a kind, `png` or `svg+xml`, as the source of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
