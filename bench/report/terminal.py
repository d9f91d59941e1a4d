"""Tables on a terminal: what is wider than it goes on below, every block with its rows' names."""

import pandas as pd

NAMES = 0.5  # of a line: what names its row takes no more


def wrapped(table: pd.DataFrame, width: int) -> str:
    """A table of text in blocks of some width, one where it fits; columns are never cut.

    Args:
        table: Its leading columns name its rows: as many as tell them apart.
        width: Characters of a line.
    """
    wide = [_width(table.iloc[:, k]) for k in range(table.shape[1])]
    if sum(wide) + len(wide) - 1 <= width or not len(table):
        return table.to_string(index=False)
    named = _named(table, wide, width)
    first = sum(wide[:named]) + named - 1
    blocks: list[list[int]] = []
    free = 0
    for k in range(named, len(wide)):
        if free <= wide[k]:
            blocks.append(list(range(named)))
            free = width - first
        blocks[-1].append(k)
        free -= wide[k] + 1
    return "\n\n".join(table.iloc[:, columns].to_string(index=False) for columns in blocks)


def _width(column: pd.Series) -> int:
    """Characters of a column, its heading included."""
    return max(len(str(text)) for text in (column.name, *column))


def _named(table: pd.DataFrame, wide: list[int], width: int) -> int:
    """How many leading columns name a row: the first, and more while rows are alike in them."""
    named = 1
    while (
        named < len(wide) - 1
        and table.iloc[:, :named].duplicated().any()
        and sum(wide[: named + 1]) + named <= NAMES * width
    ):
        named += 1
    return named
