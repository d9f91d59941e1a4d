"""Text that others wrote, in plots and in LaTeX: it is set as it is, and compiles."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import HOSTILE

from bench.report import drawing, plots, typeset
from bench.report.lettering import lettered, letters

ENGINES = ("tectonic", "lualatex", "xelatex", "pdflatex")
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx,textcomp}
\begin{document}
"""


def plainly(tex):
    """What LaTeX would see of a text once every escape is taken away."""
    return re.sub(
        r"\\texttt\{U\+[0-9A-F]+\}|\\(?:[&%$#_{}]|[a-zA-Z]+(?:\{\})?)|\$[^$]*\$", "", tex
    )


def check_table(tex, columns):
    """Braces and formulas close, and every row has as many cells as the table has columns."""
    depth = 0
    for k, c in enumerate(tex):
        if c in "{}" and tex[k - 1] != "\\":
            depth += 1 if c == "{" else -1
            assert depth >= 0
    assert depth == 0
    assert re.sub(r"\\.", "", tex).count("$") % 2 == 0
    body = tex[tex.index(r"\toprule") : tex.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, row
        assert not re.match(r"(\\midrule\s*)?[\[*]", row), "an argument of the line break before"
    assert re.fullmatch(rf"[\n{typeset.KNOWN}]*", tex), "characters that need a package"


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_of_hostile_text_closes_what_it_opens(text):
    table = pd.DataFrame({"estimator": ["a", text], text: [text, "0.1 [-0.2, 0.4]"]})
    check_table(typeset.latex(table, text), 2)
    seen = plainly(typeset.tex_safe(text))
    assert not set(seen) & set("&%#_$\\{}^~"), seen


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.text(max_size=30), min_size=3, max_size=3), min_size=1, max_size=4))
def test_latex_and_markdown_of_any_text_are_tables(rows):
    table = pd.DataFrame(rows, columns=["estimator", "b", "c"])
    check_table(typeset.latex(table, rows[0][0]), 3)
    lines = typeset.markdown(table).split("\n")
    pipes = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert pipes == {4}
    assert len([line for line in lines if line.startswith("|")]) == len(rows) + 2


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("--quick", "-{}-quick"),
        ("a-b, -1 and [-0.5, 2]", "a-b, $-$1 and [$-$0.5, 2]"),
        ("\u05d0 \u00e9 \u2603", "\\texttt{U+05D0} \u00e9 \\texttt{U+2603}"),
        ("tweedie \u2020", r"tweedie \textdagger{}"),
        ("one\n two\t\x00three", "one two three"),
    ],
)
def test_latex_by_hand(text, tex):
    assert typeset.tex_safe(text) == tex


def test_long_text_is_cut_in_tables():
    table = pd.DataFrame({"estimator": ["w " * 5000]})
    assert len(typeset.latex(table, "-")) < 600
    assert len(typeset.markdown(table)) < 300


def engine():
    return next(filter(None, map(shutil.which, ENGINES)), None)


@pytest.mark.skipif(engine() is None, reason="needs a LaTeX engine")
def test_latex_compiles(tmp_path):
    """Hostile text in every place of a table, in a document of its own."""
    tables = [
        typeset.latex(pd.DataFrame({"sigma": ["0.5", "0.9"], "estimator": [text, "[x"]}), text)
        for text in (*HOSTILE, "tweedie \u2020", "[1", "*", "\u2265 -0.1 \u00b1 3 \u00b5s \u00d7")
    ]
    document = tmp_path / "tables.tex"
    document.write_text(PREAMBLE + r"\clearpage".join(tables) + r"\end{document}")
    options = [] if "tectonic" in engine() else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([engine(), *options, document.name], cwd=tmp_path, check=False,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000


# plots


def test_names_in_plots_are_no_formulas_and_stay_different():
    shown = [letters(text) for text in HOSTILE]
    assert len(set(shown)) == len(HOSTILE)
    assert all(len(name) <= 60 for name in shown)
    assert letters("StitchVM (4, 1)") == "StitchVM (4, 1)"
    assert letters("$x$").startswith(r"\$x\$")
    assert letters(3.0) == 3.0


def test_a_plot_of_hostile_names_can_be_drawn(tmp_path):
    frame = pd.DataFrame({"estimator": HOSTILE, "x": np.arange(len(HOSTILE)), "n": 1})
    frame = lettered(frame)
    with drawing.styled():
        out, (axis,) = drawing.figure(str(letters(HOSTILE[5])))
        for name, x in zip(frame["estimator"], frame["x"], strict=True):
            axis.plot([0, 1], [x, x], label=name)
        drawing.legend(out, [axis])
        (path, _) = plots.save(drawing.settled(out), tmp_path, "hostile")  # warnings are errors
    assert path.stat().st_size > 1000
