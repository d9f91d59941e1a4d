"""What a cell may use: seconds and bytes, as a command line says them."""

import re
from dataclasses import dataclass

SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
BYTES = {  # a number without a unit is meant as gigabytes, and would be bytes
    "B": 1,
    **{f"{p}B": 1000**k for k, p in enumerate("kMGT", 1)},
    **{f"{p}iB": 1024**k for k, p in enumerate("KMGT", 1)},
}


@dataclass(frozen=True)
class Limits:
    """What a cell may use before it is ended.

    Attributes:
        seconds: Of wall time; None: any.
        memory: Bytes of private memory on the host; None: any.
    """

    seconds: float | None = None
    memory: int | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.seconds is not None or self.memory is not None


def seconds(text: str) -> float:
    """`90`, `90s`, `15min` or `2h` in seconds.

    Raises:
        ValueError: for anything else.
    """
    return _read(text, SECONDS, "a time such as 90s, 15min or 2h")


def memory(text: str) -> int:
    """`24GiB` or `500MB` in bytes.

    Raises:
        ValueError: for anything else.
    """
    return int(_read(text, BYTES, "a size such as 24GiB or 500MB"))


def _read(text: str, units: dict[str, int], expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise ValueError(f"expected {expected}, got {text!r}")
    return float(match[1]) * units[match[2]]
