"""What the paper prints, beside what is measured here."""

from pathlib import Path
from typing import Any

import yaml


def printed(name: str) -> dict[Any, Any]:
    """One of the paper's tables or figures, as `paper.yaml` has it."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text())[name]
