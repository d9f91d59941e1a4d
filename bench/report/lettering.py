r"""Names as plots can write them: no formulas, only letters that the font has, not too long.

A `$` in a name would begin a formula, and a legend of whole sentences leaves no room for a plot.
"""

import hashlib
from functools import cache

import pandas as pd
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from pandas.api.types import is_numeric_dtype

LONGEST = 44  # characters
MISSING = "\ufffd"  # in place of what the font has not


def lettered(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts can be written in a plot; different ones stay different."""
    texts = {
        name: frame[name].map(letters, na_action="ignore")
        for name in map(str, frame.columns)
        if not is_numeric_dtype(frame[name]) and any(isinstance(x, str) for x in frame[name])
    }
    return frame.assign(**texts) if texts else frame


def capital(text: object) -> str:
    """A text that begins with a capital; the rest, such as a model's name, as it is."""
    return f"{text}"[:1].upper() + f"{text}"[1:]


def letters(text: object, longest: int = LONGEST) -> object:
    """A text that can be written in a plot; what is no text is left as it is."""
    if not isinstance(text, str):
        return text
    shown = "".join(c if ord(c) in _charmap() else MISSING for c in text)
    if len(shown) > longest or shown != text:
        mark = f" #{hashlib.sha256(text.encode()).hexdigest()[:4]}"
        shown = f"{shown[: longest - len(mark)].rstrip()}{mark}"
    return shown.replace("$", r"\$")


@cache
def _charmap() -> frozenset[int]:
    """Every character of the project's font."""
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())
