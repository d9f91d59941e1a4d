"""A table of text as Markdown or LaTeX (booktabs), whatever the text is.

LaTeX knows few characters by default: what it does not know is written by its number, as U+05D0.
Text is put on one line, and cut where it would not fit a table; the page and the csv have it all.
"""

import re

import pandas as pd

from bench.report.marks import DAGGER, STALE, line

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\u2013": "--", "\u2014": "---", "\u2018": "`", "\u2019": "'", "\u2026": r"\ldots{}",
    "\u00b1": r"$\pm$", "\u00d7": r"$\times$", "\u00b5": r"\textmu{}", "\u03c3": r"$\sigma$",
    "\u03bb": r"$\lambda$", "\u03c4": r"$\tau$", "\u00b0": r"\textdegree{}",
    "\u2265": r"$\geq$", "\u2264": r"$\leq$", "\u2212": "$-$", DAGGER: r"\textdagger{}",
    "\u2192": r"$\to$", "\0": "{}",
}  # fmt: skip
LETTERS = "\u00c0-\u00cf\u00d1-\u00d6\u00d8-\u00dd\u00df-\u00ef\u00f1-\u00f6\u00f8-\u00fd\u00ff"
KNOWN = rf"\x20-\x7e{LETTERS}"  # what LaTeX sets without a package
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
LONGEST = 200  # characters of a cell of a table
MARKUP = {"&": "&amp;", "<": "&lt;", "|": r"\|", "`": r"\`", "](": r"]\("}
IS_MARKUP = re.compile(r"&(?=#?\w+;)|<(?=[a-zA-Z/!?])|\||`|\]\(")


def markdown(table: pd.DataFrame) -> str:
    """A pipe table; repeated noise levels are shown once."""
    lines = [list(table.columns), ["---"] * len(table.columns), *_once(table)]
    body = "".join(f"| {' | '.join(_pipe_safe(text) for text in line)} |\n" for line in lines)
    return f"{body}\n{STALE}\n" if stale(table) else body


def latex(table: pd.DataFrame, caption: str, note: str = "") -> str:
    """A booktabs table, no wider than a line, with a rule where several rows belong together.

    It needs `booktabs`, `graphicx` and `textcomp`.

    Args:
        table: Its cells, as text.
        caption: Above it.
        note: A line below it, where there is one.
    """
    rows, body = _once(table), list[str]()
    together = any(not cells[0] for cells in rows)
    for cells in rows:
        rule = r"\midrule" + "\n" if together and cells[0] and body else ""
        body.append(f"{rule}{_tex_line(cells)}")
    told = f"{caption}. {STALE}" if stale(table) else caption
    return "\n".join([
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{tex_safe(told)}}}",
        rf"{FIT}\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        _tex_line(list(table.columns)).replace("sigma", r"$\sigma$"),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip{{\footnotesize {tex_safe(note)}\par}}"] if note else []),
        r"\end{table}",
        "",
    ])  # fmt: skip


def stale(table: pd.DataFrame) -> bool:
    """Whether some row of a table is marked as measured with other code."""
    return any(DAGGER in str(text) for text in table.to_numpy().ravel())


def tex_safe(text: str) -> str:
    """Text with everything LaTeX would interpret escaped, and minus signs as such."""
    pattern = "|".join(re.escape(key) for key in ESCAPES)
    apart = re.sub(r"-(?=-)", "-\0", line(text))  # two hyphens are no dash
    escaped = re.sub(rf"{pattern}|[^{KNOWN}]", _escaped, apart)
    return re.sub(r"(?<![\w}-])-(?=\d)", "$-$", escaped)


def _escaped(found: re.Match[str]) -> str:
    text = found.group()
    return ESCAPES.get(text, rf"\texttt{{U+{ord(text[0]):04X}}}")


def _once(table: pd.DataFrame) -> list[list[str]]:
    """The rows, a value of the first column only where it changes."""
    out, before = [], None
    for values in table.astype(str).to_numpy().tolist():
        out.append([values[0] if values[0] != before else "", *values[1:]])
        before = values[0]
    return out


def _tex_line(cells: list[str]) -> str:
    r"""Cells of a row; a `[` or `*` at its start would belong to the `\\` before."""
    shown = [tex_safe(line(cell, LONGEST)) for cell in cells]
    guard = "{}" if shown[0][:1] in {"[", "*"} else ""
    return guard + " & ".join(shown) + r" \\"


def _pipe_safe(text: str) -> str:
    """Text on one line that is no markup; brackets and stars of numbers stay as they are."""
    return IS_MARKUP.sub(lambda found: MARKUP[found.group()], line(text, LONGEST))
