"""A folder of .txt and .md files as a corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ralm.corpus.compressed import read_chunks
from ralm.corpus.passages import Document, Piece
from ralm.errors import DataError

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown"})
MAX_FILE_BYTES = 1 << 27
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_MARKS = re.compile(r"(?<!\w)(\*\*\*|\*\*|\*|___|__|_|~~)(?=\S)(.+?)(?<=\S)\1(?!\w)|`([^`]+)`")
_LINE = re.compile(r"^[ \t]*(?:>[ \t]?|[-*+][ \t]+|(?:[-*_][ \t]*){3,}$)", re.MULTILINE)


def text_files(folder: Path) -> list[Path]:
    """The .txt and .md files below a folder, sorted by path; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TEXT_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_folder(folder: Path, counts: Counter[str]) -> Iterator[Document]:
    """One document for each file; its title is its first level-one heading, or its name.

    Raises:
        DataError: no such files, a file too large, or not UTF-8.
    """
    files = text_files(folder)
    if not files:
        raise DataError(f"{folder}: the corpus is empty: no .txt or .md files in it")
    for path in files:
        counts["files"] += 1
        yield read_text_file(path, path.relative_to(folder).as_posix())


def read_text_file(path: Path, source_id: str) -> Document:
    """A text or Markdown file as a document."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes; use JSON lines for large corpora")
    try:
        text = b"".join(read_chunks(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error
    text = text.replace("\r\n", "\n")
    name = path.name.removesuffix(path.suffix).replace("_", " ")
    if path.suffix.lower() == ".txt":
        return Document(source_id, name, [Piece("", text)])
    title, pieces = split_markdown(text)
    return Document(source_id, title or name, pieces)


def split_markdown(text: str) -> tuple[str, list[Piece]]:
    """Title (the first level-one heading, or empty) and the text under each heading, with plain words for markup."""
    title = ""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    pieces: list[Piece] = []
    fence = ""

    def finish() -> None:
        body = _plain("\n".join(lines)).strip()
        lines.clear()
        if body:
            pieces.append(Piece(": ".join(name for _, name in path), body))

    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
            continue
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        finish()
        level, name = len(heading[1]), _plain(heading[2])
        if level == 1 and not title:
            title, path = name, []
        else:
            path = [(above, other) for above, other in path if above < level] + [(level, name)]
    finish()
    return title, pieces


def _plain(text: str) -> str:
    text = _LINE.sub("", _LINK.sub(r"\1", text))
    return _MARKS.sub(lambda match: match[2] or match[3] or "", text)
