"""Wikitext -> plain text by sections, and infoboxes as `field: value` lines.

Our own scanner, because cleaning is on the hot path of a whole dump: one pass over the tags (`tags.py`), one over the
tokens of templates, tables and links with a stack of what is open, and a few over the lines. Every pass is linear, and
nothing unclosed swallows more than its own section: a heading closes whatever is open.
Templates are not expanded; a few that only dress up their arguments are replaced by them (`templates.py`).
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from ralm.corpus.site import DROPPED_LINKS, Site
from ralm.corpus.tags import LINE_BREAK, PROTECTED, name_set, strip_tags
from ralm.corpus.templates import infobox_fields, is_infobox, template_text

MAX_LINK_CHARS = 10_000
"""A link longer than this was never closed."""
MAX_DEPTH = 6
"""Templates with content inside templates with content; deeper ones are dropped."""


@dataclass(frozen=True)
class Section:
    """The text under one heading."""

    heading: str
    """Headings from the second level down to this one, joined by `: `; empty for the lead."""
    text: str
    """Plain text: paragraphs and list items one to a line."""


@dataclass(frozen=True)
class Article:
    """What is kept of one page."""

    sections: list[Section]
    infoboxes: list[str]
    """`field: value` lines of each infobox."""


_TOKEN = re.compile(  # every branch begins with a literal, so that the engine skips to it at full speed
    r"\[\[([^\[\]{}|\n]+)(?:\|([^\[\]{}|\n]*))?\]\]"  # 1, 2: link without nesting
    r"|\{\{([^\[\]{}\n]*)\}\}(?!\})"  # 3: template without nesting, on one line
    r"|\[\[()"  # 4
    r"|\]\]()"  # 5
    r"|\n[ \t]*(\|\}+)"  # 6: end of a table, or `|}}`: end of a template
    r"|\{\{+()"  # 7
    r"|\}\}+()"  # 8
    r"|\n[ \t:*#]*(\{\|)"  # 9: start of a table
    r"|\n==()"  # 10: a heading
    r"|\[(?:(?:https?|ftps?|news|irc|gopher|mailto|telnet|nntp)://?|//|mailto:|news:)[^\s\[\]]*[ \t]*"
    r"(?:([^\[\]\n]*)\])?"  # 11: external link
)
_LINK, _LABEL, _TEMPLATE, _OPEN_LINK, _CLOSE_LINK, _CLOSE_TABLE = 1, 2, 3, 4, 5, 6
_OPEN, _CLOSE, _OPEN_TABLE, _HEADING_START, _URL = 7, 8, 9, 10, 11
_INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple|be-x-old|roa-[a-z]+|zh-[a-z-]+")
_SISTERS = name_set(
    "w wikt wiktionary b wikibooks s wikisource q wikiquote n wikinews v wikiversity voy wikivoyage commons c m meta d "
    "wikidata species wikispecies"
)
_MEDIA_FILE = re.compile(
    r"\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gva]|webm|pdf|djvu|midi?|flac|wav|mp3|xcf|stl)\s*$", re.IGNORECASE
)
_VARIANT = re.compile(r"-\{(?!\{)([^{}]*)\}-")
_MAGIC = re.compile(r"__([^\W\d_]{3,})__")
_LINE_MARKUP = re.compile(r"\n[ \t]*(?:-{4,}|(?:[*#:;]+[ \t]*)?(?:\{\||\|).*|![^\n]*(?:\||!!).*|[*#:;]+[ \t]*)")
"""Rules, list marks, and table rows that are left; the text begins with a line end."""
_SPACES = (
    "\x0b\f\x85\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_INVISIBLE = "\xad\u200b\u200e\u200f\u2060\ufeff"
_PROSE = {**PROTECTED, **dict.fromkeys(_SPACES, " "), **dict.fromkeys(_INVISIBLE, ""), LINE_BREAK: " "}
_VALUE = {**_PROSE, LINE_BREAK: "\n"}
_REPLACED = re.compile(f"[{''.join(_PROSE)}]")
"""Characters that the tag pass protected, and white space other than the plain kind."""
_QUOTES = re.compile(r"''(?:'(?:'')?)?")  # italic, bold, both; of four the last is an apostrophe
_SPACE_RUN = re.compile("   *")
_EMPTY_LINES = re.compile(r"\n[ \n]+")
_ENTITY = re.compile(r"&(?:amp;)*(?:#[xX]?[0-9a-fA-F]{1,7}|[a-zA-Z][a-zA-Z0-9]{1,30});")  # `&amp;lt;`: escaped twice
_BRACKETS = re.compile(r"\((?:\s*[,;:](?=[\s,;:)]))*\s*(\)?)")
"""What is left of brackets whose templates are gone: `( )`, `(; from`."""
_SPACE_BEFORE = re.compile(r" ([,.;:)])(?=\s|$)")
_HEADING = re.compile(r"\n(={1,6})[ \t]*(.*?)[ \t]*(={1,6})[ \t]*(?=\n|$)")
_STRAY_HEADING = re.compile(r"^={2,6}[ \t]*([^=\n]*?)[ \t]*={0,6}(?=[^=\n]*$)", re.MULTILINE)
_BROKEN_MARKUP = re.compile(r"\[\[|\]\]|\{\{+|\}\}+|\{\||\|\}|\[(?=https?:)")


_NEXT_FIELD = "\n==\x00\n"
_LINE_ENDS = re.compile(r"\s*,?\s*\n\s*")


class _Open:
    """A construct that has begun: its kind, where it starts in the text and in the output, braces not yet closed."""

    __slots__ = ("braces", "kind", "out", "start")

    def __init__(self, kind: int, start: int, out: int, braces: int = 0) -> None:
        self.kind, self.start, self.out, self.braces = kind, start, out, braces


class _Scanner:
    """One run over the tokens of one page; `out` collects the pieces that stay."""

    def __init__(self, text: str, site: Site, depth: int = 0) -> None:
        self.text, self.site, self.depth = text, site, depth
        self.out: list[str] = []
        self.stack: list[_Open] = []
        self.infoboxes: list[str] = []
        self.in_lead = True

    def run(self) -> str:
        text, out, position = self.text, self.out, 0
        append = out.append
        for match in _TOKEN.finditer(text):
            kind = match.lastindex or _URL
            start, end = match.span()
            append(text[position:start])
            position = end
            if kind <= _LABEL:
                target, label = match.group(1, 2)
                append(label if label and ":" not in target else link_text(target, label, self.site))
            elif kind == _TEMPLATE:
                append(template_text(match[_TEMPLATE]))
            elif kind == _URL:
                append(match[_URL] or "")
            elif kind == _HEADING_START:
                self.stack.clear()  # an unclosed construct ends here
                self.in_lead = False
                append("\n==")
            else:
                self._bracket(kind, match, start, end)
        append(text[position:])
        return "".join(out)

    def _bracket(self, kind: int, match: re.Match[str], start: int, end: int) -> None:
        if kind in (_OPEN_LINK, _OPEN, _OPEN_TABLE):
            self.stack.append(_Open(kind, start, len(self.out), end - start if kind == _OPEN else 0))
            if kind == _OPEN_TABLE:
                self.out.append("\n{|")  # if nothing closes it, its line is dropped as table markup
        elif kind == _CLOSE_LINK:
            self._close_link(start)
        elif kind == _CLOSE:
            self._close_template(end - start, end)
        else:
            braces = match[_CLOSE_TABLE].count("}")
            self.out.append("\n")
            if braces != 2 and self._close_table() and braces > 2:
                braces -= 1
            if braces >= 2:
                self._close_template(braces, end)

    def _find(self, kind: int, barrier: int) -> int:
        """Where in the stack the innermost open construct of a kind is, not looking beyond a barrier; -1 if none."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place].kind == kind:
                return place
            if self.stack[place].kind == barrier:
                return -1
        return -1

    def _close_link(self, start: int) -> None:
        place = self._find(_OPEN_LINK, _OPEN_TABLE)
        if place < 0:
            return
        opened = self.stack[place]
        del self.stack[place:]
        if start - opened.start > MAX_LINK_CHARS:
            return
        target, _, _ = self.text[opened.start + 2 : opened.start + 300].partition("|")
        if not link_text(target.split("]]")[0], "x", self.site):
            del self.out[opened.out :]
        elif opened.out < len(self.out):
            first = self.out[opened.out]
            self.out[opened.out] = first[first.find("|") + 1 :]

    def _close_table(self) -> bool:
        place = self._find(_OPEN_TABLE, _OPEN)
        if place < 0:
            return False
        del self.out[self.stack[place].out :]
        del self.stack[place:]
        self.out.append("\n")
        return True

    def _close_template(self, braces: int, end: int) -> None:
        while braces >= 2:
            place = self._find(_OPEN, 0)
            if place < 0:
                return
            opened = self.stack[place]
            closed = min(3 if opened.braces == 3 else 2, braces, opened.braces)
            braces -= closed
            opened.braces -= closed
            if opened.braces >= 2:
                del self.stack[place + 1 :]
                continue
            del self.stack[place:]
            del self.out[opened.out :]
            if not any(other.kind == _OPEN for other in self.stack):
                self._outermost_template(self.text[opened.start + 2 : end - 2])

    def _outermost_template(self, raw: str) -> None:
        if self.depth > MAX_DEPTH:
            return
        if is_infobox(raw, in_lead=self.in_lead):
            lines = [
                f"{name}: {value}"
                for name, value in clean_fields(list(infobox_fields(raw)), self.site, self.depth + 1)
                if value and not _MEDIA_FILE.search(value)
            ]
            if lines:
                self.infoboxes.append("\n".join(lines))
        else:
            self.out.append(template_text(raw, clean=lambda value: clean_value(value, self.site, self.depth + 1)))


def link_text(target: str, label: str | None, site: Site) -> str:
    """The text that a link `[[target|label]]` shows; empty for files, categories and links to other languages.

    >>> [link_text(*link, Site()) for link in [("Plant", "plants"), ("File:A.jpg", "thumb"), ("Mercury (planet)", "")]]
    ['plants', '', 'Mercury']
    """
    if ":" in target:
        if target.startswith(("http://", "https://")):
            return label if label is not None else target.partition(" ")[2]
        prefix, _, rest = target.partition(":")
        prefix = prefix.strip()
        if prefix:
            number = site.namespace(target)
            if number in DROPPED_LINKS or _MEDIA_FILE.search(target):
                return ""
            if number == 0 and _INTERWIKI.fullmatch(prefix):
                return ""
            if label is None and prefix.lower() in _SISTERS:
                return rest.rpartition(":")[2].strip()
        elif label is None:
            return rest.lstrip(":")
    if label:
        return label
    if label is None:
        return target
    return re.sub(r"\s*\([^()]*\)$", "", target.rpartition(":")[2])


def parse_article(wikitext: str, site: Site) -> Article:
    """Read one page.

    Args:
        wikitext: the page's source, as decoded from the XML.
        site: namespace names of the wiki.

    Returns:
        Sections with text (empty ones are left out) in page order, and infoboxes in page order.
    """
    scanner = _Scanner("\n" + _prepare(wikitext), site)
    text = _clean_lines(scanner.run())
    return Article(_split_sections(text), scanner.infoboxes)


def clean_value(wikitext: str, site: Site, depth: int) -> str:
    """The argument of a template in a sentence, on one line."""
    scanner = _Scanner("\n" + wikitext, site, depth)
    return " ".join(_clean_lines(scanner.run()).split())


def clean_fields(fields: list[tuple[str, str]], site: Site, depth: int) -> list[tuple[str, str]]:
    """Infobox values as text on one line each; their lines and list items are joined by `, `.

    One run cleans all values: between two of them stands a heading, which also ends what is unclosed.
    """
    if not fields:
        return []
    scanner = _Scanner("\n" + _NEXT_FIELD.join(value for _, value in fields), site, depth)
    values = _clean_lines(scanner.run(), line_break="\n").split(_NEXT_FIELD.strip())
    lines = (_LINE_ENDS.sub(", ", _HEADING.sub(r"\n\2", value).strip()) for value in values)
    return [(name, value) for (name, _), value in zip(fields, lines, strict=True)]


def _prepare(wikitext: str) -> str:
    text = strip_tags(wikitext.replace("\r", ""))
    if "-{" in text:
        text = _VARIANT.sub(lambda match: _variant_text(match[1]), text)
    return text


def _variant_text(content: str) -> str:
    """What `-{flags|zh-hans:a;zh-hant:b}-` shows: the first variant; nothing for hidden rules and titles.

    >>> _variant_text("zh-hans:电脑;zh-hant:電腦"), _variant_text("A|word"), _variant_text("H|zh-cn:a;")
    ('电脑', 'word', '')
    """
    flags, bar, body = content.rpartition("|")
    if bar and re.search(r"[HT-]", flags):
        return ""
    variant = re.match(r"\s*[a-z][a-z-]*\s*:\s*([^;]*)", body)
    return variant[1] if variant else body


def _clean_lines(text: str, line_break: str = " ") -> str:
    """Markup that belongs to lines and characters, entities, white space."""
    if "__" in text:
        text = _MAGIC.sub(lambda match: match[0] if match[1] != match[1].upper() else "", text)
    if "''" in text:
        text = _QUOTES.sub("", text)
    text = _LINE_MARKUP.sub("\n", text)
    if "[[" in text or "]]" in text or "{" in text or "}" in text or "[http" in text:
        text = _BROKEN_MARKUP.sub("", text)
    if "&" in text:
        text = _ENTITY.sub(_character, text)
    text = text.replace("\xa0", " ").replace("\t", " ")
    if not text.isascii():
        text = _REPLACED.sub(_restore_value if line_break == "\n" else _restore_prose, text)
    if "(" in text:
        text = _BRACKETS.sub(_bracket_start, text)
    text = _SPACE_RUN.sub(" ", text)
    text = _EMPTY_LINES.sub("\n", text.replace(" \n", "\n"))
    return _SPACE_BEFORE.sub(r"\1", text)


def _bracket_start(match: re.Match[str]) -> str:
    return "" if match[1] else "("


def _restore_prose(match: re.Match[str]) -> str:
    return _PROSE[match[0]]


def _restore_value(match: re.Match[str]) -> str:
    return _VALUE[match[0]]


def _character(match: re.Match[str]) -> str:
    return html.unescape("&" + match[0].replace("amp;", "")[1:] if match[0] != "&amp;" else "&amp;")


def _split_sections(text: str) -> list[Section]:
    """Cut clean text at its headings."""
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    start = 0

    def add(end: int) -> None:
        body = text[start:end].strip()
        if body:
            if "==" in body:
                body = _STRAY_HEADING.sub(r"\1", body)
            sections.append(Section(": ".join(title for _, title in path), body))

    for match in _HEADING.finditer(text):
        add(match.start())
        start = match.end()
        level = min(len(match[1]), len(match[3]))
        path = [(above, title) for above, title in path if above < level]
        if title := match[2].strip("= "):
            path.append((level, title))
    add(len(text))
    return sections
