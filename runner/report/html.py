"""A report as a single HTML file without network or scripts, for screens of any width, light and dark."""

from __future__ import annotations

import base64
import struct
from html import escape
from urllib.parse import quote

from runner.report import document as doc

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --faint: #57606a; --line: #d0d7de; --ground: #ffffff;
  --stripe: #f6f8fa; --link: #0550ae; --good: #116329; --bad: #a40e26; --open: #7d4e00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9198a1; --line: #3d444d; --ground: #0d1117;
  --stripe: #161b22; --link: #79c0ff; --good: #56d364; --bad: #ff9492; --open: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
p.note, figcaption { color: var(--faint); font-size: .875rem; }
a { color: var(--link); }
summary { cursor: pointer; }
pre { overflow-x: auto; padding: .75rem; background: var(--stripe); font-size: .8rem; }
td summary { color: var(--faint); font-size: .875rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; font-size: .9rem; }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.text { max-width: 24rem; overflow-wrap: break-word; }
td.long { min-width: 11rem; }
td.path { min-width: 16rem; max-width: 24rem; overflow-wrap: anywhere; }
small { color: var(--faint); }
td.one-line { white-space: nowrap; }
.mark { font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
figure { margin: 1.25rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); gap: 1rem; }
.gallery figure { margin: 0; }
main > figure img { min-width: var(--least); }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; } }
@media print { a { color: inherit; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
LEAST_SHARE = 0.39  # of a figure's width; below it the figure scrolls, since its letters would be too small
LONG_CELL = 40  # characters; longer cells get more room


def as_html(document: doc.Document) -> str:
    """The page. All text is escaped, and paths of links are quoted."""
    title = escape(document.title)
    body = "\n".join(_block(block) for block in document.blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _block(block: doc.Block) -> str:
    match block:
        case doc.Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case doc.Paragraph(text, is_note):
            return f'<p class="note">{escape(text)}</p>' if is_note else f"<p>{escape(text)}</p>"
        case doc.Facts(rows):
            return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{_cell(cell)}</dd>' for label, cell in rows)}</dl>"
        case doc.Table():
            return _table(block)
        case doc.Listing(title, text):
            return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
        case doc.Picture():
            return _picture(block)
        case doc.Gallery(pictures):
            return f'<div class="gallery">{"".join(_picture(picture) for picture in pictures)}</div>'


def _table(table: doc.Table) -> str:
    head = "".join(
        f'<th scope="col" class="{"number" if column in table.numeric else "text"}"'
        f"{_tooltip(table.full_names.get(column, text), text)}>{escape(text)}</th>"
        for column, text in enumerate(table.columns)
    )
    rows = "\n".join(
        f"<tr>{''.join(_table_cell(cell, column in table.numeric) for column, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    # a region that scrolls must be reachable with the keyboard
    region = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption or "table")}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        + (f'<p class="note">{escape(table.caption)}</p>' if table.caption else "")
    )
    return f"<details><summary>{escape(table.folded)}</summary>{region}</details>" if table.folded else region


def _tooltip(full: str, short: str) -> str:
    return "" if full == short else f' title="{escape(full)}"'


def _table_cell(cell: doc.Cell, is_number: bool) -> str:
    if is_number:
        kind = "number"
    elif isinstance(cell, doc.Code | doc.Mark):
        kind = "one-line"
    elif isinstance(cell, doc.Link):
        kind = "path" if len(cell.text) > LONG_CELL else "text"
    else:
        kind = "text long" if len(cell if isinstance(cell, str) else cell.text) > LONG_CELL else "text"
    return f'<td class="{kind}">{_cell(cell)}</td>'


def _cell(cell: doc.Cell) -> str:
    match cell:
        case doc.Link(text, path):
            return f'<a href="{escape(quote(path))}">{escape(text)}</a>'
        case doc.Code(text):
            return f"<code>{escape(text)}</code>"
        case doc.Mark(sign, word, kind):
            return f'<span class="mark {escape(kind)}">{escape(sign)} {escape(word)}</span>'
        case doc.Remark(text, remark):
            return f"{escape(text)}<br><small>{escape(remark)}</small>"
        case doc.Unfolding(text, rest):
            return f"{escape(text)}<details><summary>more</summary>{escape(rest)}</details>"
    return escape(cell)


def _picture(picture: doc.Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    width, height = struct.unpack(">II", picture.png[16:24])  # of a PNG's first chunk
    size = f'width="{width}" height="{height}" style="--least: {LEAST_SHARE * width:.0f}px"'
    return f'<figure><img alt="{escape(picture.alt)}" {size} src="data:image/png;base64,{data}">{caption}</figure>'
