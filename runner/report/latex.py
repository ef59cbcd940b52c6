"""A table of a report in LaTeX with booktabs, as papers have it."""

from __future__ import annotations

import re

from runner.report.document import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"\textpm{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def as_latex(table: Table, *, best: str) -> str:
    """The table without its first column, where `best` marks the row that is to be bold; the status is left out."""
    kept = [number for number, name in enumerate(table.columns) if number and name != "status"]
    head = " & ".join(_text(table.columns[number]) for number in kept)
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{''.join('r' if number in table.numeric else 'l' for number in kept)}}}",
        "\\toprule",
        f"{head} \\\\",
        "\\midrule",
    ]
    for row in table.rows:
        cells = [_text(str(row[number])) for number in kept]
        if row[0] == best:
            cells = [f"\\textbf{{{cell}}}" for cell in cells]
        lines.append(f"{' & '.join(cells)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _text(text: str) -> str:
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda match: SPECIAL[match[0]], text)
