"""A report as Markdown with GitHub's tables; pictures are links to files."""

from __future__ import annotations

import re
from urllib.parse import quote

from runner.report import document as doc


def as_markdown(document: doc.Document) -> str:
    """The text, with every special character of Markdown and HTML escaped."""
    blocks = [f"# {_text(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(blocks) + "\n"


def _block(block: doc.Block) -> str:
    match block:
        case doc.Heading(text):
            return f"## {_text(text)}"
        case doc.Paragraph(text, _):
            return _text(text)
        case doc.Facts(rows):
            return "\n".join(f"- {_text(label)}: {_cell(cell)}" for label, cell in rows)
        case doc.Table():
            return _table(block)
        case doc.Picture():
            return _picture(block)
        case doc.Gallery(pictures):
            return "\n\n".join(_picture(picture) for picture in pictures)


def _table(table: doc.Table) -> str:
    head = [_text(column) for column in table.columns]
    rule = ["---:" if column in table.numeric else "---" for column in range(len(table.columns))]
    rows = [[_table_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join([*lines, "", _text(table.caption)] if table.caption else lines)


def _picture(picture: doc.Picture) -> str:
    image = f"![{_text(picture.alt)}]({quote(picture.path)})"
    return f"{image}\n\n{_text(picture.caption)}" if picture.caption else image


def _table_cell(cell: doc.Cell) -> str:
    """A cell; in a table a bar within a code span needs a backslash."""
    return _cell(cell).replace("|", "\\|") if isinstance(cell, doc.Code) else _cell(cell)


def _cell(cell: doc.Cell) -> str:
    match cell:
        case doc.Link(text, path):
            return f"[{_text(text)}]({quote(path)})"
        case doc.Code(text):
            return _code(text)
        case doc.Mark(sign, word, _):
            return f"**{_text(f'{sign} {word}')}**"
        case doc.Remark(text, remark):
            return f"{_text(text)}<br>{_text(remark)}"
        case doc.Unfolding(text, rest):
            return _text(f"{text} {rest}")
    return _text(cell)


def _text(text: str) -> str:
    """`text` on one line, with a backslash before each special character."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+]|\d+[.)])(?=\s|$)", lambda match: f"{match[1][:-1]}\\{match[1][-1]}", escaped)


def _code(text: str) -> str:
    """A code span; its fence is longer than any run of backticks in the text."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
