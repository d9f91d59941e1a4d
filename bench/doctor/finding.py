"""What a check found: how it stands, a figure, and what to do."""

from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]
GB = 1e9


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        state: How it stands.
        name: What was looked at.
        figure: What was found.
        advice: What to do; empty where nothing is to be done.
    """

    state: State
    name: str
    figure: str
    advice: str = ""


def enough(have: float, little: float, none: float) -> State:
    """How something stands of which there should be more than a little."""
    return "problem" if have < none else "warning" if have < little else "ok"
