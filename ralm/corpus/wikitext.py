"""Wikitext -> plain text by sections, and infoboxes as `field: value` lines.

Our own scanner, because cleaning is on the hot path of a whole dump: a pass over the tags (`tags.py`), one over links,
templates and tables with a stack of what is open (`scanner.py`), and a few over the lines (`lines.py`). Every pass is
linear, and nothing unclosed swallows more than its own section: a heading closes whatever is open.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from ralm.corpus.lines import clean_lines
from ralm.corpus.scanner import MEDIA_FILE, Scanner
from ralm.corpus.site import Site
from ralm.corpus.tags import strip_tags
from ralm.corpus.templates import infobox_fields

MAX_DEPTH = 6
"""Templates with content inside templates with content; deeper ones are dropped."""


class Section(NamedTuple):
    """The text under one heading."""

    heading: str
    """Headings from the second level down to this one, joined by `: `; empty for the lead."""
    text: str
    """Plain text: paragraphs and list items one to a line."""


class Article(NamedTuple):
    """What is kept of one page."""

    sections: list[Section]
    infoboxes: list[str]
    """`field: value` lines of each infobox."""


_HEADING = re.compile(r"\n(={1,6})[ \t]*(.*?)[ \t]*(={1,6})[ \t]*(?=\n|$)")
_STRAY_HEADING = re.compile(r"^={2,6}[ \t]*([^=\n]*?)[ \t]*={0,6}(?=[^=\n]*$)", re.MULTILINE)
_NEXT_FIELD = "\n==\x00\n"
_LINE_ENDS = re.compile(r"\s*,?\s*\n\s*")


def parse_article(wikitext: str, site: Site) -> Article:
    """Read one page.

    Args:
        wikitext: the page's source, as decoded from the XML.
        site: namespace names of the wiki.

    Returns:
        Sections with text (empty ones are left out) in page order, and infoboxes in page order.
    """
    text, infoboxes = _scan(strip_tags(wikitext.replace("\r", "")), site, 0)
    return Article(_split_sections(clean_lines(text)), infoboxes)


def _scan(wikitext: str, site: Site, depth: int) -> tuple[str, list[str]]:
    """The text without links, templates and tables, and the infoboxes in it."""
    infoboxes: list[str] = []

    def read_infobox(raw: str) -> None:
        fields = _clean_fields(list(infobox_fields(raw)), site, depth + 1)
        lines = [f"{name}: {value}" for name, value in fields if value and not MEDIA_FILE.search(value)]
        if lines:
            infoboxes.append("\n".join(lines))

    def clean_value(value: str) -> str:
        text, _ = _scan(value, site, depth + 1)
        return " ".join(clean_lines(text).split())

    text = Scanner("\n" + wikitext, site, read_infobox, clean_value if depth <= MAX_DEPTH else None).run()
    return text, infoboxes


def _clean_fields(fields: list[tuple[str, str]], site: Site, depth: int) -> list[tuple[str, str]]:
    """Infobox values as text on one line each; their lines and list items are joined by `, `.

    One run cleans all values: between two of them stands a heading, which also ends what is unclosed.
    """
    if not fields:
        return []
    text, _ = _scan(_NEXT_FIELD.join(value for _, value in fields), site, depth)
    values = clean_lines(text, line_break="\n").split(_NEXT_FIELD.strip())
    return [(name, _on_one_line(value)) for (name, _), value in zip(fields, values, strict=True)]


def _on_one_line(value: str) -> str:
    if "\n" not in value:
        return value.strip()
    return _LINE_ENDS.sub(", ", _HEADING.sub(r"\n\2", value).strip())


def _split_sections(text: str) -> list[Section]:
    """Cut clean text at its headings."""
    pieces = _HEADING.split(text)
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    heading = ""
    titles = zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
    for body, following in itertools.zip_longest(pieces[::4], titles):
        if body := body.strip():
            if "=" in body and "==" in body:
                body = _STRAY_HEADING.sub(r"\1", body)
            sections.append(Section(heading, body))
        if following:
            opening, title, closing = following
            level = min(len(opening), len(closing))
            path = [above for above in path if above[0] < level]
            if title := title.strip("= "):
                path.append((level, title))
            heading = ": ".join([title for _, title in path])
    return sections
