"""A later dump made of a real one: a sentence inserted, changed or deleted in some articles, pages renamed and so on.

Usage: python -m benchmarks.edit_dump SOURCE TARGET [--percent P] [--rename N] [--delete N] [--add N] [--move N]

SOURCE is a MediaWiki export with one revision a page, plain or compressed; TARGET is written as bz2. Pages that are not
edited keep their bytes. Prints what was done as JSON. An inserted sentence, and the one that takes the place of a
changed sentence, are real ones of other articles. Every edit is checked on the cleaned text: exactly one sentence of it
differs. The text of the dump is held in memory.
"""

from __future__ import annotations

import argparse
import bz2
import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, unescape

from ralm.corpus.compressed import read_chunks
from ralm.corpus.dump import RawPage, read_dump
from ralm.corpus.sentences import count_words, sentence_ends
from ralm.corpus.site import Site
from ralm.corpus.wikitext import parse_article
from ralm.errors import DataError

EDIT_KINDS: Final = ("insert", "change", "delete")
MIN_WORDS = 5
"""A shorter sentence is left alone: it may be a caption or a list."""
_PAGE = re.compile(r"[ \t]*<page>.*?</page>\n?", re.DOTALL)
_PAGE_ID = re.compile(r"(<id>)(\d+)(</id>)")
_REVISION_ID = re.compile(r"(<revision>\s*<id>)(\d+)(</id>)")
_TITLE = re.compile(r"(<title>)(.*?)(</title>)", re.DOTALL)
_TEXT = re.compile(r"(<text[^>]*>)(.*)(</text>)", re.DOTALL)
_PROSE = re.compile(r"(?![*#:;=\s])(?:[^\[\]{}<>|]|\[\[[^\[\]{}<>]*\]\])*")
"""No list, heading, table or template, and no link that ends elsewhere."""
_PLAIN = re.compile(r"[A-Z][\w ,;:()-]*\.")


@dataclasses.dataclass(frozen=True)
class SentenceEdit:
    """One sentence of one page, as it is in the wikitext."""

    page_id: int
    kind: str
    before: str
    """Empty where a sentence was inserted."""
    after: str
    """Empty where it was deleted."""


@dataclasses.dataclass(frozen=True)
class DumpEdits:
    """What was done to a dump; no page is in two of the lists."""

    num_articles: int
    """Of the source."""
    sentences: list[SentenceEdit]
    """Edited pages; these have a new revision."""
    renamed: dict[int, str]
    """New titles by page id; the revision stays."""
    deleted: list[int]
    added: list[int]
    """New pages, at the end of the dump."""
    moved: dict[int, int]
    """Pages that were deleted and made again with the same title and text: the old and the new id."""


def edit_dump(
    source: Path,
    target: Path,
    *,
    percent: float = 0.0,
    rename: int = 0,
    delete: int = 0,
    add: int = 0,
    move: int = 0,
    seed: int = 0,
) -> DumpEdits:
    """Write an edited copy of a dump; equal calls write equal bytes.

    Args:
        source: a dump with one revision a page.
        target: the bz2 file that is written.
        percent: of the articles get one edit each, of a drawn kind.
        rename: articles that get another title.
        delete: articles that are left out.
        add: new articles.
        move: articles that get another page id.
        seed: of the choice of pages, sentences and kinds.

    Raises:
        DataError: the source is no dump, has several revisions of a page, or too few articles for all of this.
    """
    generator = random.Random(seed)
    articles = [(site, page) for site, page in read_dump(source, Counter()) if isinstance(page, RawPage)]
    num_edits = round(len(articles) * percent / 100)
    generator.shuffle(articles)
    donors = [text for _, page in articles for text in _sentences(page.wikitext) if _PLAIN.fullmatch(text)]
    if num_edits + rename + delete + add + move > len(articles) or not donors:
        raise DataError(f"{source}: {len(articles)} articles are too few for so many edits")
    left = {page.page_id: (site, page) for site, page in articles}
    renamed, deleted, moved = ([left.popitem()[0] for _ in range(number)] for number in (rename, delete, move))
    texts: dict[int, str] = {}
    sentences: list[SentenceEdit] = []
    for site, page in left.values():
        edited = _edit_page(site, page, donors, generator) if len(sentences) < num_edits else None
        if edited is not None:
            texts[page.page_id] = edited[0]
            sentences.append(edited[1])
    if len(sentences) < num_edits:
        raise DataError(f"{source}: {num_edits} articles to edit, but only {len(sentences)} have a sentence for it")
    writer = _Writer(source)
    titles = writer.change_pages(texts, renamed, deleted)
    new_ids = writer.move_pages(moved)
    added = [writer.add_page(page.wikitext) for _, page in articles[:add]]
    writer.write(target)
    return DumpEdits(len(articles), sentences, titles, deleted, added, new_ids)


def _sentences(wikitext: str) -> list[str]:
    """Sentences of the lines that look like prose, as they are in the wikitext."""
    return [wikitext[start:end].strip() for start, end in _spans(wikitext)]


def _spans(wikitext: str) -> Iterator[tuple[int, int]]:
    """Where these sentences start and end; a space before one belongs to it."""
    at = 0
    for line in wikitext.split("\n"):
        start = 0
        for end in sentence_ends(line):
            text = line[start:end].strip()
            if text.endswith(".") and count_words(text) >= MIN_WORDS and _PROSE.fullmatch(text):
                yield at + start, at + end
            start = end
        at += len(line) + 1


def _edit_page(
    site: Site, page: RawPage, donors: Sequence[str], generator: random.Random
) -> tuple[str, SentenceEdit] | None:
    """The page's text with one edit, and the edit; None if no sentence can be edited by itself."""
    text = page.wikitext
    spans = list(_spans(text))
    generator.shuffle(spans)
    kind, donor = generator.choice(EDIT_KINDS), generator.choice(donors)
    cleaned = _cleaned_sentences(text, site)
    for start, end in spans:
        is_line_start = start == 0 or text[start - 1] == "\n"
        gap = "" if is_line_start else " "
        if kind == "insert":
            edited = f"{text[:end]} {donor}{text[end:]}"
        elif kind == "change":
            edited = f"{text[:start]}{gap}{donor}{text[end:]}"
        else:  # a line that begins with a space would be set as code
            edited = text[:start] + (text[end:].lstrip(" ") if is_line_start else text[end:])
        after = _cleaned_sentences(edited, site)
        gone, new = (cleaned - after).total(), (after - cleaned).total()
        if (gone, new) == (int(kind != "insert"), int(kind != "delete")):
            before = "" if kind == "insert" else text[start:end].strip()
            return edited, SentenceEdit(page.page_id, kind, before, "" if kind == "delete" else donor)
    return None


def _cleaned_sentences(wikitext: str, site: Site) -> Counter[str]:
    found: Counter[str] = Counter()
    for section in parse_article(wikitext, site).sections:
        start = 0
        for end in sentence_ends(section.text):
            found[section.text[start:end].strip()] += 1
            start = end
    return found


class _Writer:
    """The pages of a dump as they stand in the file, and what is done to them."""

    def __init__(self, source: Path) -> None:
        raw = b"".join(read_chunks(source)).decode("utf-8")
        blocks = [match[0] for match in _PAGE.finditer(raw)]
        self.blocks = {int(_value(_PAGE_ID, block)): block for block in blocks}
        if len(self.blocks) < len(blocks) or any(block.count("<revision>") != 1 for block in blocks):
            raise DataError(f"{source}: expected each page once with one revision")
        self.head, self.tail = raw[: raw.index(blocks[0])], raw[raw.index(blocks[-1]) + len(blocks[-1]) :]
        self.last_page = max(self.blocks)
        self.last_revision = max(int(_value(_REVISION_ID, block)) for block in blocks)

    def change_pages(self, texts: Mapping[int, str], renamed: Sequence[int], deleted: Sequence[int]) -> dict[int, str]:
        """New texts with new revisions, new titles (which are given back), pages left out."""
        for page_id, text in texts.items():
            self.blocks[page_id] = _put(_TEXT, self._with_new_revision(self.blocks[page_id]), escape(text))
        titles = {page_id: f"{_value(_TITLE, self.blocks[page_id])} (renamed)" for page_id in renamed}
        for page_id, title in titles.items():
            self.blocks[page_id] = _put(_TITLE, self.blocks[page_id], title)
        for page_id in deleted:
            del self.blocks[page_id]
        return {page_id: unescape(title, {"&quot;": '"'}) for page_id, title in titles.items()}

    def move_pages(self, page_ids: Sequence[int]) -> dict[int, int]:
        """Pages under a new id at the end of the dump; gives the new ids."""
        return {page_id: self._append(self.blocks.pop(page_id)) for page_id in page_ids}

    def add_page(self, wikitext: str) -> int:
        """A page with this text and a title of its own; gives its id."""
        title = f"New article {len(self.blocks)}"
        return self._append(
            f"  <page>\n    <title>{title}</title>\n    <id>0</id>\n    <revision>\n      <id>0</id>\n"
            f"      <text>{escape(wikitext)}</text>\n    </revision>\n  </page>\n"
        )

    def write(self, target: Path) -> None:
        """Write the dump."""
        with bz2.open(target, "wt", encoding="utf-8", newline="") as file:
            file.write(self.head + "".join(self.blocks.values()) + self.tail)

    def _append(self, block: str) -> int:
        page_id = self.last_page = self.last_page + 1
        self.blocks[page_id] = self._with_new_revision(_put(_PAGE_ID, block, str(page_id)))
        return page_id

    def _with_new_revision(self, block: str) -> str:
        self.last_revision += 1
        return _put(_REVISION_ID, block, str(self.last_revision))


def _value(pattern: re.Pattern[str], block: str) -> str:
    match = pattern.search(block)
    if match is None:
        raise DataError(f"a page without {pattern.pattern}: {block[:200]!r}")
    return match[2]


def _put(pattern: re.Pattern[str], block: str, value: str) -> str:
    return pattern.sub(lambda match: match[1] + value + match[3], block, count=1)


def main(argv: list[str] | None = None) -> None:
    """Edit and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--percent", type=float, default=0.0, help="of the articles get one edited sentence")
    for name in ("rename", "delete", "add", "move"):
        parser.add_argument(f"--{name}", type=int, default=0, help="articles")
    parser.add_argument("--seed", type=int, default=0)
    edits = edit_dump(**vars(parser.parse_args(argv)))
    print(json.dumps(dataclasses.asdict(edits), ensure_ascii=False))


if __name__ == "__main__":
    main()
