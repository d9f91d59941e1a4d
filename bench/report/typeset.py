"""A table of text as Markdown or LaTeX (booktabs)."""

import re

import pandas as pd

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\u2013": "--",
    "\u00b1": r"$\pm$", "\u00d7": r"$\times$", "\u00b5": r"\textmu{}",
    "\u2265": r"$\geq$",
}  # fmt: skip


def markdown(table: pd.DataFrame) -> str:
    """A pipe table; repeated noise levels are shown once."""
    lines = [list(table.columns), ["---"] * len(table.columns), *_once(table)]
    return "".join(f"| {' | '.join(_pipe_safe(text) for text in line)} |\n" for line in lines)


def latex(table: pd.DataFrame, caption: str, note: str = "") -> str:
    """A booktabs table, a rule between noise levels; `booktabs` and `textcomp` are needed.

    Args:
        table: Its cells, as text.
        caption: Above it.
        note: A line below it, where there is one.
    """
    body: list[str] = []
    for line in _once(table):
        rule = r"\midrule" + "\n" if line[0] and body else ""
        body.append(f"{rule}{_tex_line(line)}")
    return "\n".join([
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{tex_safe(caption)}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        _tex_line(list(table.columns)).replace("sigma", r"$\sigma$"),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip{{\footnotesize {tex_safe(note)}\par}}"] if note else []),
        r"\end{table}",
        "",
    ])  # fmt: skip


def tex_safe(text: str) -> str:
    """Text with everything LaTeX would interpret escaped, and minus signs as such."""
    pattern = "|".join(re.escape(key) for key in ESCAPES)
    escaped = re.sub(pattern, lambda match: ESCAPES[match.group()], text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def _once(table: pd.DataFrame) -> list[list[str]]:
    """The rows, a value of the first column only where it changes."""
    out, before = [], None
    for values in table.astype(str).to_numpy().tolist():
        out.append([values[0] if values[0] != before else "", *values[1:]])
        before = values[0]
    return out


def _tex_line(cells: list[str]) -> str:
    return " & ".join(tex_safe(cell) for cell in cells) + r" \\"


def _pipe_safe(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
