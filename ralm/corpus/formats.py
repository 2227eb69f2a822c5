"""From the name of a corpus to its documents: which format it is in, and batches of work in that format's order."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ralm.artifacts.files import is_folder
from ralm.corpus.build import Batch, DocumentBatch
from ralm.corpus.cleaned import CleanedPage, CleanedPages
from ralm.corpus.compressed import read_chunks
from ralm.corpus.dump import RawPage, WikiPages, read_dump
from ralm.corpus.folder import TEXT_SUFFIXES, read_folder, read_text_file, text_files
from ralm.corpus.passages import Document
from ralm.corpus.records import READERS, find_delimiter
from ralm.corpus.wikimedia import PREFIX, Dump, resolve_dump
from ralm.errors import ConfigError, DataError
from ralm.fetch import atlas
from ralm.sources import fetch_file, fetch_tree, source_digest

logger = logging.getLogger(__name__)
Format = Literal["auto", "wikimedia", "atlas", "dpr", "csv", "jsonl", "parquet", "folder"]
BATCH_CHARS = 1 << 19
BATCH_DOCUMENTS = 500
_COMPRESSIONS = (".bz2", ".gz", ".zst")
_DUMP_NAME = re.compile(r"([a-z][a-z0-9_]*wiki)-(\d{8})-")


@dataclass
class Corpus:
    """A corpus that is found but not read yet."""

    source: str
    format: Format
    inputs: dict[str, str]
    """Content identity by name."""
    details: dict[str, str] = field(default_factory=dict)
    """Which dump it is: `wiki` and `date`; once it is read, `site`: the identity of its namespaces."""
    dump: Dump | None = None
    urls: tuple[str, ...] = ()
    """Of an Atlas corpus: its files."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was read and what was left out; grows while batches are taken."""
    before: CleanedPages | None = None
    """Pages of an earlier dump that need no cleaning."""

    def batches(self, *, with_infoboxes: bool = True) -> Iterator[Batch]:
        """All work, cut the same way every time.

        Raises:
            DataError: see the readers.
        """
        if self.dump is not None:
            for path in self.dump.files():
                yield from self._dump_batches(path, with_infoboxes)
            return
        paths = [fetch_file(url) for url in self.urls] or _local_paths(self.source)
        for path in paths:
            if path.is_dir():
                yield from _document_batches(read_folder(path, self.counts))
                continue
            found = detect_format(path) if self.format == "auto" else self.format
            if found == "wikimedia":
                yield from self._dump_batches(path, with_infoboxes)
            elif found == "folder":
                yield from _document_batches(iter([read_text_file(path, path.name)]))
            else:
                yield from _document_batches(_counted(READERS[found](path), self.counts))

    def _dump_batches(self, path: Path, with_infoboxes: bool) -> Iterator[Batch]:
        pages: list[RawPage | CleanedPage] = []
        chars = 0
        site = None
        for site, page in read_dump(path, self.counts, self.before):
            pages.append(page)
            chars += len(page.wikitext) if isinstance(page, RawPage) else 0
            if chars >= BATCH_CHARS or len(pages) >= BATCH_DOCUMENTS:
                yield WikiPages(site, pages, with_infoboxes)
                pages, chars = [], 0
        if site is not None:
            self.details["site"] = site.digest if self.details.get("site", site.digest) == site.digest else "several"
        if pages and site is not None:
            yield WikiPages(site, pages, with_infoboxes)


def open_corpus(
    source: str,
    *,
    format: Format,  # noqa: A002 - the name of the setting
    base_url: str,
    atlas_url: str = "",
    with_infoboxes: bool = True,
) -> Corpus:
    """Find a corpus and the identity of its content; reads no documents.

    Args:
        source: `wiki:NAME/DATE`, `atlas:KEY`, a file, a folder of texts or of files of one format, `asset:` or any URL.
        format: how to read it; `auto` tells by name and content.
        base_url: of the dump site; several with commas between are mirrors.
        atlas_url: of the site of `atlas:` keys; empty: as the environment says.
        with_infoboxes: of an Atlas corpus, which keeps them in a file of their own.

    Raises:
        ConfigError: the source is malformed.
        DataError: nothing is there.
        UnreachableError: no mirror of the dump site answers, and this source was not found there before.
    """
    if source.startswith(PREFIX):
        if format not in ("auto", "wikimedia"):
            raise ConfigError(f"format: {source} is in the format wikimedia, not {format!r}")
        dump = resolve_dump(source, base_url)
        logger.info("%s is %s of %s in %d files", source, dump.wiki, dump.date, len(dump.parts))
        return Corpus(source, "wikimedia", dump.inputs, {"wiki": dump.wiki, "date": dump.date}, dump)
    if source.startswith(atlas.PREFIX):
        return _open_atlas(source, format, atlas_url, with_infoboxes)
    name = source.rstrip("/").rpartition("/")[2]  # part of the identity: titles, kinds and formats may come from it
    dated = _DUMP_NAME.search(name)
    details = {"wiki": dated[1], "date": dated[2]} if dated else {}
    return Corpus(source, format, {name: source_digest(source)}, details)


def _open_atlas(source: str, format: Format, base_url: str, with_infoboxes: bool) -> Corpus:  # noqa: A002
    if format not in ("auto", "atlas"):
        raise ConfigError(f"format: {source} is in the format atlas, not {format!r}")
    urls = atlas.folder_files(source, base_url)
    if atlas.TEXTS not in urls:
        raise ConfigError(f"{source}: expected a corpus such as atlas:corpora/wiki/enwiki-dec2018, found another key")
    wanted = {name: url for name, url in urls.items() if with_infoboxes or name != atlas.INFOBOXES}
    inputs = {name: source_digest(url) for name, url in wanted.items()}
    wiki, _, date = source.rpartition("/")[2].partition("-")
    return Corpus(source, "atlas", inputs, {"wiki": wiki, "date": date}, urls=tuple(wanted.values()))


def _local_paths(source: str) -> list[Path]:
    """The files of a source; a folder stands for its texts, or for its files if it holds no texts."""
    if not (is_folder(source) if "://" not in source and ":" not in source else source.endswith("/")):
        return [fetch_file(source)]
    folder = fetch_tree(source)
    if text_files(folder):
        return [folder]
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    if not files:
        raise DataError(f"{source}: the corpus is empty: an empty folder")
    return files


def detect_format(path: Path) -> Format:
    """The format of a file, by its name and then by its beginning.

    Raises:
        ConfigError: none fits.
    """
    name = path.name.lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    if name.endswith(".parquet"):
        return "parquet"
    if any(name.endswith(suffix) for suffix in TEXT_SUFFIXES):
        return "folder"
    if name.endswith(".xml"):
        return "wikimedia"
    head = next(read_chunks(path), b"")[: 1 << 16]
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"<mediawiki", b"<?xml")):
        return "wikimedia"
    if head.startswith(b"PAR1"):
        return "parquet"
    line = start.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if name.endswith((".jsonl", ".ndjson", ".json")) or line.startswith("{"):
        return _detect_json(name, line)
    columns = [column.strip().strip('"').lower() for column in line.split(find_delimiter(line))]
    if columns == ["id", "text", "title"] and "\t" in line:
        return "dpr"
    if name.endswith((".csv", ".tsv")) or {"title", "text"} <= set(columns):
        return "csv"
    if not start:
        raise DataError(f"{path}: the corpus is empty: an empty file")
    raise ConfigError(
        f"{path}: cannot tell its format; set format to one of wikimedia, atlas, dpr, csv, jsonl, parquet, folder"
    )


def _detect_json(name: str, line: str) -> Format:
    """Atlas passages have exactly `id`, `title`, `section`, `text`, or its file names."""
    if re.match(r"(text-list-100-sec|infobox)\b", name):
        return "atlas"
    try:
        row = json.loads(line)
    except ValueError:
        return "jsonl"  # the reader names the line
    return "atlas" if isinstance(row, dict) and set(row) == {"id", "title", "section", "text"} else "jsonl"


def _counted(documents: Iterator[Document], counts: Counter[str]) -> Iterator[Document]:
    for document in documents:
        counts["documents"] += 1
        if not document.pieces or not any(piece.text.strip() for piece in document.pieces):
            counts["skipped_empty_documents"] += 1
        yield document


def _document_batches(documents: Iterator[Document]) -> Iterator[Batch]:
    items: list[Document] = []
    chars = 0
    for document in documents:
        items.append(document)
        chars += sum(len(piece.text) for piece in document.pieces)
        if chars >= BATCH_CHARS or len(items) >= BATCH_DOCUMENTS:
            yield DocumentBatch(items)
            items, chars = [], 0
    if items:
        yield DocumentBatch(items)
