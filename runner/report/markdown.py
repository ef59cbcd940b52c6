"""A report as Markdown with GitHub's tables; pictures are links to files."""

from __future__ import annotations

import re
from urllib.parse import quote

from runner.report import document as doc


def as_markdown(document: doc.Document) -> str:
    """The text, with every special character of Markdown and HTML escaped."""
    blocks = [
        f"# {escaped(document.title)}",
        *(_block(block) for block in document.blocks if not isinstance(block, doc.Listing)),
    ]
    return "\n\n".join(blocks) + "\n"


def _block(block: doc.Block) -> str:
    match block:
        case doc.Heading(text):
            return f"## {escaped(text)}"
        case doc.Paragraph(text, _):
            return escaped(text)
        case doc.Facts(rows):
            return "\n".join(f"- {escaped(label)}: {_cell(cell)}" for label, cell in rows)
        case doc.Table():
            return _table(block)
        case doc.Picture():
            return _picture(block)
        case doc.Gallery(pictures):
            return "\n\n".join(_picture(picture) for picture in pictures)


def _table(table: doc.Table) -> str:
    head = [escaped(table.full_names.get(number, column)) for number, column in enumerate(table.columns)]
    rule = ["---:" if column in table.numeric else "---" for column in range(len(table.columns))]
    rows = [[_table_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join([*lines, "", escaped(table.caption)] if table.caption else lines)


def _picture(picture: doc.Picture) -> str:
    image = f"![{escaped(picture.alt)}]({quote(picture.path)})"
    return f"{image}\n\n{escaped(picture.caption)}" if picture.caption else image


def _table_cell(cell: doc.Cell) -> str:
    """A cell; in a table a bar within a code span needs a backslash."""
    return _cell(cell).replace("|", "\\|") if isinstance(cell, doc.Code) else _cell(cell)


def _cell(cell: doc.Cell) -> str:
    match cell:
        case doc.Link(text, path):
            return f"[{escaped(text)}]({quote(path)})"
        case doc.Code(text):
            return _code(text)
        case doc.Mark(sign, word, _):
            return f"**{escaped(f'{sign} {word}')}**"
        case doc.Remark(text, remark):
            return f"{escaped(text)}<br>{escaped(remark)}"
        case doc.Unfolding(text, rest):
            return escaped(f"{text} {rest}")
    return escaped(cell)


def escaped(text: str) -> str:
    """`text` on one line, with a backslash before each special character."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+]|\d+[.)])(?=\s|$)", lambda match: f"{match[1][:-1]}\\{match[1][-1]}", escaped)


def _code(text: str) -> str:
    """A code span; its fence is longer than any run of backticks in the text."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
