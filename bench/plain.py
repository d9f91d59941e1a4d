"""Plain data for JSON, which knows neither NaN nor infinity: they become null."""

import math
from typing import Any


def plain(data: Any) -> Any:
    """The same data, nested as it is, with null for numbers that JSON cannot say."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
