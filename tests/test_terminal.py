"""Tables on a terminal: blocks that fit, each with the names of its rows."""

import pandas as pd
import pytest

from bench.report.terminal import wrapped

TABLE = pd.DataFrame({
    "method": ["stitched", "stitched", "my_estimator"],
    "batch": ["1", "16", "1"],
    **{f"figure {k}": [f"{k}.{row} [0, 1]" for row in range(3)] for k in range(6)},
})  # fmt: skip


def test_what_fits_is_one_block():
    wide = TABLE.to_string(index=False)
    assert wrapped(TABLE, max(map(len, wide.splitlines()))) == wide


@pytest.mark.parametrize("width", [40, 60, 80])
def test_blocks_fit_and_name_their_rows(width):
    blocks = wrapped(TABLE, width).split("\n\n")
    assert len(blocks) > 1
    headings = []
    for block in blocks:
        head, *rows = block.splitlines()
        assert max(map(len, block.splitlines())) <= width
        assert not any(line.endswith(("\\", " ")) for line in block.splitlines())
        assert [row.split()[:2] for row in rows] == TABLE[["method", "batch"]].to_numpy().tolist()
        headings += head.split()[2:]
    assert headings == " ".join(TABLE.columns[2:]).split()
    assert all(text in "".join(blocks) for text in TABLE.iloc[:, 2:].to_numpy().ravel())


def test_a_name_that_tells_rows_apart_is_repeated_alone():
    block = wrapped(TABLE.drop(index=0), 40).split("\n\n")[1]
    assert "my_estimator" in block
    assert "batch" not in block


def test_columns_wider_than_a_line_stand_alone():
    table = pd.DataFrame({"name": ["a" * 30], "one": ["b" * 30], "two": ["c" * 30]})
    assert [len(block.splitlines()) for block in wrapped(table, 20).split("\n\n")] == [2, 2]
