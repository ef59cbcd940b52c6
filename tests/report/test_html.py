from __future__ import annotations

import base64
import struct
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from runner.report.document import (
    Code,
    Document,
    Facts,
    Gallery,
    Heading,
    Link,
    Mark,
    Paragraph,
    Picture,
    Remark,
    Table,
    Unfolding,
)
from runner.report.html import as_html
from runner.report.markdown import as_markdown

EVIL = "<script>alert('x')</script> & \"b\" | `c` *d* _e_ [f](http://g) ${h} \\ # i ~j~"
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + struct.pack(">II", 600, 300) + b"rest"


class Page(HTMLParser):
    """The elements, the text and the attributes of a page; fails where elements are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    handle_startendtag = handle_starttag  # <img />

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def document(text):
    picture = Picture("figures/a b.png", PNG, text, text)
    cells = (
        text,
        Link(text, "a b/c#d=1?.x"),
        Code(text),
        Mark("?", text, "open"),
        Remark(text, text),
        Unfolding(text, text),
    )
    return Document(
        text,
        (
            Heading(text),
            Paragraph(text, is_note=True),
            Facts(((text, Code(text)),)),
            Table((text, "2", "3", "4", "5", "6"), (cells, cells), frozenset({1}), text, folded=text),
            picture,
            Gallery((picture, picture)),
        ),
    )


def test_every_text_is_escaped_in_html():
    page = Page(as_html(document(EVIL)))
    assert page.all("script") == []
    assert page.all("b") == []
    # title and heading, h2, p, dt, dd, summary, caption, column, 2 rows of 8, captions of 3 pictures
    assert "".join(page.text).count(EVIL) == 28
    assert len(page.all("details")) == 3  # the table's and one a row
    assert {image["alt"] for image in page.all("img")} == {EVIL}
    assert {link["href"] for link in page.all("a")} == {"a%20b/c%23d%3D1%3F.x"}


def test_the_page_needs_nothing_from_elsewhere():
    text = as_html(document("plain"))
    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag in ("link", "script", "iframe", "object")]
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text
    images = page.all("img")
    assert len(images) == 3
    for image in images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == PNG
        assert (image["width"], image["height"]) == ("600", "300")


def test_the_page_fits_a_phone_and_dark_screens():
    text = as_html(document("plain"))
    page = Page(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text
    [table] = [number for number, (tag, _) in enumerate(page.elements) if tag == "table"]
    assert page.elements[table - 1][1]["class"] == "scroll"
    assert ".scroll { overflow-x: auto" in text
    assert "img { display: block; max-width: 100%; height: auto; background: #ffffff" in text


def test_markdown_escapes_every_text_too():
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .enable("strikethrough")
        .render(as_markdown(document(EVIL)))
    )
    page = Page(html)
    assert {tag for tag, _ in page.elements} >= {"h1", "h2", "p", "ul", "table", "img", "code", "strong", "a"}
    assert not {tag for tag, _ in page.elements} & {"script", "b", "em", "s"}
    assert len(page.all("tr")) == 3
    assert len(page.all("td")) == 12
    assert {image["src"] for image in page.all("img")} == {"figures/a%20b.png"}
    assert {image["alt"] for image in page.all("img")} == {EVIL}
    assert {link["href"] for link in page.all("a")} == {"a%20b/c%23d%3D1%3F.x"}
    assert "".join(page.text).count(EVIL) == 26  # neither title nor summary


@pytest.mark.parametrize("text", ["- a", "1. a", "+ a", "# a", "> a", "a\nb", "1) a", "    a"])
def test_markdown_takes_no_text_for_a_list_or_a_heading(text):
    page = Page(MarkdownIt("commonmark").render(as_markdown(Document("t", (Paragraph(text),)))))
    assert [tag for tag, _ in page.elements] == ["h1", "p"]
    assert " ".join(text.split()) in page.text
