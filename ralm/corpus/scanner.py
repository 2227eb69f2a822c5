"""Second pass of the wikitext scanner: links, templates and tables, with a stack of what is open.

Two thirds of all tokens are links such as `[[plant]]` and `[[Plant|plants]]`. They are replaced first, by one regex
split that keeps their text, without any Python for each. The text is then split at the tokens that are left.
Templates are not expanded; a few that only dress up their arguments are replaced by them (`templates.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from ralm.corpus.site import Site
from ralm.corpus.tags import name_set, show_variants
from ralm.corpus.templates import is_infobox, template_text

MAX_LINK_CHARS = 10_000
"""A link longer than this was never closed."""
MEDIA_FILE = re.compile(
    r"\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gva]|webm|pdf|djvu|midi?|flac|wav|mp3|xcf|stl)\s*$", re.IGNORECASE
)
_PLAIN_LINK = re.compile(
    r"\[\[(?:(?=[^\[\]{}|\n:=]++\]\])|[^\[\]{}|\n:=]++\|)"  # a target without colon, left out where a label follows
    r"([^\[\]{}|\n=]++)\]\](?![ \t]*=)"  # what it shows; names of fields stay links
)
_TOKEN = re.compile(  # every branch begins with a literal, so that the engine skips to it at full speed
    r"(\[\[(?:[^\[\]{}\n]*+\]\])?"  # a link without nesting, or the beginning of one
    r"|\{\{[^\[\]{}\n]*+\}\}(?!\})"  # a template without nesting, on one line
    r"|\]\]"
    r"|\n(?:==|[ \t]*+\|\}+|[ \t:*#]*+\{\|)"  # a heading; the end of a table, or `|}}` of a template; its start
    r"|\{\{+"
    r"|-\{(?!\{)"  # variants in scripts; they are looked for only where there is one
    r"|\}\}+"
    r"|\[(?:(?:https?|ftps?|news|irc|gopher|mailto|telnet|nntp)://?|//|mailto:|news:)[^\s\[\]]*+[ \t]*+"
    r"(?:[^\[\]\n]*\])?)"
)
_URL = re.compile(r"\[[^\s\[\]]*+[ \t]*+")
_SISTERS = name_set(
    "w wikt wiktionary b wikibooks s wikisource q wikiquote n wikinews v wikiversity voy wikivoyage commons c m meta d "
    "wikidata species wikispecies"
)
_TRAILING_BRACKETS = re.compile(r"\s*\([^()]*\)$")
_LINK, _TEMPLATE, _TABLE = 1, 2, 3


class _Open:
    """A construct that has begun: its kind, its place among the parts and in the output, braces not yet closed."""

    __slots__ = ("braces", "kind", "out", "part")

    def __init__(self, kind: int, part: int, out: int, braces: int = 0) -> None:
        self.kind, self.part, self.out, self.braces = kind, part, out, braces


class Scanner:
    """One run over the tokens of one page; `out` collects the pieces that stay.

    Args:
        text: wikitext that begins with a line end.
        site: namespace names of the wiki.
        read_infobox: takes an infobox's source.
        clean: turns an argument's wikitext into text; None drops templates with markup in their arguments.
    """

    def __init__(
        self, text: str, site: Site, read_infobox: Callable[[str], None], clean: Callable[[str], str] | None
    ) -> None:
        self.text = "".join(_PLAIN_LINK.split(text))
        self.parts = _TOKEN.split(self.text)
        if "-{" in self.parts:
            self.text = "".join(_PLAIN_LINK.split(show_variants(text)))
            self.parts = _TOKEN.split(self.text)
        self.starts: list[int] = []
        self.site, self.read_infobox, self.clean = site, read_infobox, clean
        self.out: list[str] = []
        self.stack: list[_Open] = []
        self.in_lead = True

    def run(self) -> str:
        """The text without links, templates and tables; heads of sections and list marks are still there."""
        parts, append = self.parts, self.out.append
        for place in range(1, len(parts), 2):
            append(parts[place - 1])
            token = parts[place]
            sign = token[0]
            if sign == "{":
                if token[-1] == "}":
                    append(template_text(token[2:-2]))
                else:
                    self.stack.append(_Open(_TEMPLATE, place, len(self.out), len(token)))
            elif sign == "[":
                if token == "[[":
                    self.stack.append(_Open(_LINK, place, len(self.out)))
                elif token[1] == "[":
                    append(self._whole_link(token[2:-2]))
                elif token[-1] == "]":
                    label = token[_URL.match(token).end() : -1]  # type: ignore[union-attr]
                    append(show_variants(label) if "{" in label else label)
            elif token == "\n==":
                self.stack.clear()  # an unclosed construct ends here
                self.in_lead = False
                append(token)
            elif sign == "]":
                self._close_link(place)
            elif sign == "}":
                self._close_template(len(token), place)
            elif sign == "-":
                append(token)
            elif token[-1] == "|":
                self.stack.append(_Open(_TABLE, place, len(self.out)))
                append("\n{|")  # if nothing closes it, its line is dropped as table markup
            else:
                self._close_rows(token.count("}"), place)
        append(parts[-1])
        return "".join(self.out)

    def _whole_link(self, body: str) -> str:
        target, bar, label = body.partition("|")
        if "|" not in label:
            return link_text(target, label if bar else None, self.site) if target else label
        return label if link_text(target, "x", self.site) else ""

    def _close_rows(self, braces: int, place: int) -> None:
        self.out.append("\n")
        if braces != 2 and self._close_table() and braces > 2:
            braces -= 1
        if braces >= 2:
            self._close_template(braces, place)

    def _start(self, part: int) -> int:
        """Where a part begins in the text."""
        if not self.starts:
            self.starts = list(itertools.accumulate(map(len, self.parts), initial=0))
        return self.starts[part]

    def _find(self, kind: int, barrier: int) -> int:
        """Where in the stack the innermost open construct of a kind is, not looking beyond a barrier; -1 if none."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place].kind == kind:
                return place
            if self.stack[place].kind == barrier:
                return -1
        return -1

    def _close_link(self, end: int) -> None:
        place = self._find(_LINK, _TABLE)
        if place < 0:
            return
        opened = self.stack[place]
        del self.stack[place:]
        start = self._start(opened.part)
        if self._start(end) - start > MAX_LINK_CHARS:
            return
        target = self.text[start + 2 : start + 300].partition("|")[0]
        if not link_text(target.split("]]")[0], "x", self.site):
            del self.out[opened.out :]
        elif opened.out < len(self.out):
            first = self.out[opened.out]
            self.out[opened.out] = first[first.find("|") + 1 :]

    def _close_table(self) -> bool:
        place = self._find(_TABLE, _TEMPLATE)
        if place < 0:
            return False
        del self.out[self.stack[place].out :]
        del self.stack[place:]
        self.out.append("\n")
        return True

    def _close_template(self, braces: int, end: int) -> None:
        while braces >= 2:
            place = self._find(_TEMPLATE, 0)
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
            if not any(other.kind == _TEMPLATE for other in self.stack):
                self._outermost_template(self.text[self._start(opened.part) + 2 : self._start(end + 1) - 2])

    def _outermost_template(self, raw: str) -> None:
        if self.clean is None:
            return
        if is_infobox(raw, in_lead=self.in_lead):
            self.read_infobox(raw)
        else:
            self.out.append(template_text(raw, clean=self.clean))


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
            if site.leaves_no_text(prefix) or ("." in target and MEDIA_FILE.search(target)):
                return ""
            if label is None and prefix.lower() in _SISTERS:
                return rest.rpartition(":")[2].strip()
        elif label is None:
            return rest.lstrip(":")
    if label:
        return label
    if label is None:
        return target
    return _TRAILING_BRACKETS.sub("", target.rpartition(":")[2])
