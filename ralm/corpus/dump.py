"""MediaWiki XML export (schemas 0.3 to 0.11) -> raw pages, streaming, in bounded memory."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ralm.corpus.cleaned import CleanedPage, CleanedPages
from ralm.corpus.compressed import read_chunks
from ralm.corpus.passages import INFOBOX, Document, Piece
from ralm.corpus.site import ARTICLES, Site
from ralm.corpus.wikitext import parse_article
from ralm.errors import DataError

MAX_PAGE_CHARS = 16 << 20
"""Eight times MediaWiki's own limit; a larger page is skipped and counted."""
_SCHEMA = re.compile(r"http://www\.mediawiki\.org/xml/export-0\.(\d+)/$")
_OLDEST, _NEWEST = 3, 11
_REDIRECT = re.compile(r"\s*#(?:redirect\b|[^\W\d_]+(?:[ -][^\W\d_]+)?\s*:?\s*\[\[[^\[\]\n]+\]\])", re.IGNORECASE)
"""`#REDIRECT [[X]]`, in any language: a page that begins with `#WORD [[X]]`."""


@dataclass(frozen=True)
class RawPage:
    """An article's source."""

    page_id: int
    revision_id: int | None
    title: str
    wikitext: str


@dataclass(frozen=True)
class WikiPages:
    """Pages for a worker process, with the namespace names of their wiki."""

    site: Site
    pages: list[RawPage | CleanedPage]
    with_infoboxes: bool = True

    def documents(self) -> Iterator[Document | list[CleanedPage]]:
        """The pages as plain text, infoboxes last, as pieces of their own; pages that are clean already as they are."""
        for is_clean, pages in itertools.groupby(self.pages, lambda page: isinstance(page, CleanedPage)):
            if is_clean:
                yield [page for page in pages if isinstance(page, CleanedPage)]
            else:
                yield from (self._clean(page) for page in pages if isinstance(page, RawPage))

    def _clean(self, page: RawPage) -> Document:
        article = parse_article(page.wikitext, self.site)
        boxes = [Piece("", text, INFOBOX) for text in article.infoboxes] if self.with_infoboxes else []
        texts = [Piece(section.heading, section.text) for section in article.sections]
        return Document(str(page.page_id), page.title, [*texts, *boxes], page.page_id, page.revision_id)


@dataclass
class _PageInProgress:
    fields: dict[str, str] = field(default_factory=dict)
    is_redirect: bool = False
    text: list[str] = field(default_factory=list)
    text_chars: int = 0
    is_oversized: bool = False
    cleaned: CleanedPage | None = None


class _Reader:
    """Handlers of the XML parser; finished pages gather in `pages`."""

    _PAGE_FIELDS = (("page", "title"), ("page", "ns"), ("page", "id"), ("revision", "id"), ("revision", "model"))
    _TAGS = frozenset(("page", "revision", "redirect", "text", "namespace", "title", "ns", "id", "model"))
    """Those that something is done for; the others only count as parents."""

    def __init__(self, path: Path, counts: Counter[str], before: CleanedPages | None) -> None:
        self.path, self.counts = path, counts
        self.before = before
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.buffer_size = 1 << 16
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.EntityDeclHandler = self._entity
        self.tags: list[str] = []
        self.site = Site()
        self.namespace_names: dict[int, str] = {}
        self.namespace_key = 0
        self.page = _PageInProgress()
        self.characters: list[str] | None = None
        self.pages: list[RawPage | CleanedPage] = []

    def feed(self, data: bytes, *, is_final: bool = False) -> None:
        try:
            self.parser.Parse(data, is_final)
        except expat.ExpatError as error:
            what = expat.errors.messages[error.code]
            raise DataError(
                f"{self.path}: malformed XML at line {error.lineno}, column {error.offset + 1} "
                f"(byte {self.parser.ErrorByteIndex} of the text): {what}"
            ) from error

    def _entity(self, *declaration: Any) -> None:
        raise DataError(f"{self.path}: line {self.parser.CurrentLineNumber}: an export declares no XML entities")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        tags = self.tags
        parent = tags[-1] if tags else ""
        tags.append(tag)
        if not parent:
            self._check_schema(tag, attributes)
        elif tag not in self._TAGS:
            return
        elif tag == "page":
            self.page = _PageInProgress()
        elif tag == "revision":  # a history dump: the last revision stays
            self.page.fields.pop("revision id", None)
            self.page.text, self.page.text_chars, self.page.is_oversized = [], 0, False
            self.page.cleaned = None
        elif tag == "redirect" and parent == "page":
            self.page.is_redirect = True
        elif tag == "text" and parent == "revision":
            self.page.cleaned = self._find_cleaned()
            if self.page.cleaned is None:
                self._collect(self.page.text)
        elif tag == "namespace":
            self.namespace_key = int(attributes.get("key", "0"))
            self._collect([])
        elif (parent, tag) in self._PAGE_FIELDS:
            self._collect([])

    def _collect(self, characters: list[str] | None) -> None:
        """Take the text that follows; None: pass it over without a call for each piece."""
        self.characters = characters
        self.parser.CharacterDataHandler = None if characters is None else self._characters

    def _check_schema(self, tag: str, attributes: dict[str, str]) -> None:
        schema = _SCHEMA.match(attributes.get("xmlns", ""))
        if tag != "mediawiki" or not schema or not _OLDEST <= int(schema[1]) <= _NEWEST:
            raise DataError(
                f"{self.path}: line {self.parser.CurrentLineNumber}: expected <mediawiki> of export schema "
                f"0.{_OLDEST} to 0.{_NEWEST}, found <{tag}> of {attributes.get('xmlns', 'no schema')!r}"
            )

    def _characters(self, text: str) -> None:
        if self.characters is None:
            return
        if self.characters is self.page.text:
            self.page.text_chars += len(text)
            if self.page.text_chars > MAX_PAGE_CHARS:
                self.page.is_oversized = True
                self.page.text.clear()
                return
        self.characters.append(text)

    def _end(self, tag: str) -> None:
        self.tags.pop()
        if tag == "page":
            self._finish_page()
        elif tag == "siteinfo":
            self.site = Site.from_names(self.namespace_names)
            if self.before is not None and not self.before.is_of(self.site):
                self.before = None
        if self.characters is None:
            return
        if self.characters is not self.page.text:
            parent = self.tags[-1] if self.tags else ""
            value = "".join(self.characters)
            if tag == "namespace":
                self.namespace_names[self.namespace_key] = value
            elif (parent, tag) in self._PAGE_FIELDS:
                self.page.fields["revision id" if (parent, tag) == ("revision", "id") else tag] = value
        self._collect(None)

    def _find_cleaned(self) -> CleanedPage | None:
        """The page as it was cleaned before; the ids come before the text in an export."""
        fields = self.page.fields
        if self.before is None or "id" not in fields or "revision id" not in fields:
            return None
        ids = self._number("id", fields["id"]), self._number("revision id", fields["revision id"])
        return self.before.find(*ids, fields.get("title", "").strip())

    def _finish_page(self) -> None:
        self.counts["pages"] += 1
        if self.page.cleaned is not None:
            self.counts["articles"] += 1
            self.pages.append(self.page.cleaned)
            return
        fields = self.page.fields
        title = fields.get("title", "").strip()
        namespace = self._number("ns", fields["ns"]) if "ns" in fields else self.site.namespace(title)
        if namespace != ARTICLES:
            self.counts["pages_of_other_namespaces"] += 1
            return
        text = "".join(self.page.text)
        if self.page.is_redirect or _REDIRECT.match(text[:500]):
            self.counts["redirects"] += 1
        elif fields.get("model", "wikitext") != "wikitext":
            self.counts["skipped_other_models"] += 1
        elif self.page.is_oversized:
            self.counts["skipped_oversized_pages"] += 1
        elif not title or "id" not in fields:
            raise DataError(
                f"{self.path}: line {self.parser.CurrentLineNumber}: page {title!r} has no "
                f"{'<id>' if title else '<title>'}"
            )
        else:
            revision = self._number("revision id", fields["revision id"]) if "revision id" in fields else None
            self.counts["articles"] += 1
            self.pages.append(RawPage(self._number("id", fields["id"]), revision, title, text))

    def _number(self, name: str, value: str) -> int:
        try:
            return int(value)
        except ValueError as error:
            place = f"{self.path}: line {self.parser.CurrentLineNumber}"
            raise DataError(f"{place}: expected a number as page {name}, found {value!r}") from error


def read_dump(
    path: Path, counts: Counter[str], before: CleanedPages | None = None
) -> Iterator[tuple[Site, RawPage | CleanedPage]]:
    """Articles of a dump file with the namespaces of their wiki, in file order.

    Redirects, other namespaces, other content models and oversized pages are left out and counted.

    Args:
        path: XML file, plain or compressed.
        counts: receives the number of pages and of what was left out.
        before: pages of an earlier dump, cleaned with the settings of this run; a page that did not change is given as
            it is there.

    Raises:
        DataError: truncated or damaged compression, malformed XML or another schema; the message names the place.
    """
    reader = _Reader(path, counts, before)
    for chunk in read_chunks(path):
        reader.feed(chunk)
        for page in reader.pages:
            yield reader.site, page
        reader.pages.clear()
    reader.feed(b"", is_final=True)
