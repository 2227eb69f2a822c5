"""Sections -> passages of about 100 words, cut where the content says so.

Boundaries are stable: whether a passage ends after a sentence depends only on the sentences near it, so an edit changes
the passages around it and no other, and a passage keeps its id from dump to dump; the reasons are in
`docs/decisions/0004-passage-splitter.md`.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ralm.artifacts.schemas import PASSAGES
from ralm.corpus.sentences import count_words, plain_sentences, sentence_ends, split_words
from ralm.errors import ConfigError, DataError

TEXT, INFOBOX = "text", "infobox"


@dataclass(frozen=True)
class Piece:
    """A stretch of text under one heading, to be cut into passages unless it is one already."""

    section: str
    text: str
    kind: str = TEXT
    is_passage: bool = False
    """Kept as it is: the source came cut into passages."""


@dataclass(frozen=True)
class Document:
    """One page or file."""

    source_id: str
    """Page id, or the id in the file it came from."""
    title: str
    pieces: Sequence[Piece]
    page_id: int | None = None
    revision_id: int | None = None
    first_position: int = 0
    """Position of its first passage within the page, where a page comes in several documents."""


@dataclass
class PassageColumns:
    """Columns of `passages/1` under construction."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in PASSAGES.names})

    def add_page(self, document: Document, size: int) -> None:
        """Fill the columns that are the same for all `size` new passages of a document, and number them."""
        for name in ("source_id", "page_id", "revision_id", "title"):
            self.columns[name] += [getattr(document, name)] * size
        self.columns["position"] += range(document.first_position, document.first_position + size)

    def table(self) -> pa.Table:
        """The columns as rows of `passages/1`."""
        arrays = [_array(self.columns[field.name], field.type) for field in PASSAGES]
        return pa.Table.from_arrays(arrays, schema=PASSAGES)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column, from its buffers: to let pyarrow look at each value takes five times as long, and it imports pandas."""
    if kind == pa.string():
        text = "".join(values)
        encoded = text.encode()
        sizes = (len(value) if value.isascii() else len(value.encode()) for value in values)
        ends = np.cumsum(np.fromiter(sizes, np.int64, len(values)))
        if len(encoded) > np.iinfo(np.int32).max:
            raise DataError(f"{len(encoded)} bytes of text in one batch")
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(encoded))
    if None in values:
        return pa.array(values, kind)
    numbers = np.array(values, f"i{kind.bit_width // 8}")
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])


@dataclass(frozen=True)
class SplitLimits:
    """Words in a passage.

    A boundary keeps `min_words` of distance to the next; passages of long sections then have `target_words` on average.
    """

    target_words: int = 100

    def __post_init__(self) -> None:
        if self.target_words < 8:
            raise ConfigError(f"passage_words: expected at least 8, found {self.target_words}")

    @property
    def min_words(self) -> int:
        """Between two boundaries inside a section; only a whole section may be shorter."""
        return self.target_words * 3 // 5

    @property
    def max_words(self) -> int:
        """No passage is longer."""
        return self.target_words * 3 // 2


def split_text(text: str, limits: SplitLimits) -> list[str]:
    """Cut the text of one section into passages.

    1. Units are sentences; one longer than the maximum is cut at words.
    2. The end of a unit gets a rank: a hash of the unit's text. It is a boundary if its rank is the highest within
       `min_words` to either side, and if it is that far from the section's ends.
    3. A stretch between two boundaries that is longer than the maximum is cut again at its highest rank that leaves
       `min_words` on both sides (else nearest to its middle), until every part fits.

    Steps 2 and 3 look at no more than the neighbouring boundaries, so an edit cannot reach further. In text that
    repeats one sentence many times no boundary is special; there only the limits hold.
    """
    text = text.strip()
    if len(text) <= limits.max_words or (text.isascii() and _fits(text, limits.max_words)):
        return [text] if text else []
    ends, words, units = _plain_units(text, limits) or _units(text, limits)
    if words[-1] <= limits.max_words:
        return [text]
    ranks = [b"", *map(_rank, units)]
    cuts = [0, *_local_maxima(words, ranks, limits.min_words), len(ends)]
    passages = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        for begin, end in _fit(words, ranks, first, last, limits):
            passages.append(text[(ends[begin - 1] if begin else 0) : ends[end - 1]].strip())
    return passages


def _fits(text: str, max_words: int) -> bool:
    """Whether an ASCII text has at most so many words, as far as that is cheap to see; a word takes two characters."""
    return len(text) <= 2 * max_words or (len(text) <= 8 * max_words and len(text.split()) <= max_words)


def _plain_units(text: str, limits: SplitLimits) -> tuple[list[int], list[int], list[str]] | None:
    """As `_units`; None if it is not as simple."""
    found = plain_sentences(text)
    if found is None:
        return None
    ends, units = found
    sizes = [unit.count(" ") + 1 for unit in units]
    if max(sizes) > limits.max_words:
        return None
    return ends, [0, *itertools.accumulate(sizes)], units


def _units(text: str, limits: SplitLimits) -> tuple[list[int], list[int], list[str]]:
    """Where each unit ends, the number of words up to there (one value more, starting with 0), and the units.

    In a unit one space separates words.
    """
    ends: list[int] = []
    words = [0]
    start = 0
    for end in sentence_ends(text):
        size = count_words(text[start:end])
        if size <= limits.max_words:
            ends.append(end)
            words.append(words[-1] + size)
        else:
            for cut in split_words(text[start:end], limits.target_words):
                words.append(words[-1] + count_words(text[ends[-1] if ends else 0 : start + cut]))
                ends.append(start + cut)
        start = end
    return ends, words, [" ".join(text[start:end].split()) for start, end in zip([0, *ends], ends, strict=False)]


def _rank(unit: str) -> bytes:
    """A value that looks random and depends on the words of a unit only."""
    return hashlib.blake2b(unit.encode(), digest_size=8).digest()


def _local_maxima(words: Sequence[int], ranks: Sequence[bytes], distance: int) -> Iterator[int]:
    """Boundaries i (after unit i) whose rank is the highest within `distance` words; of equals the first.

    Args:
        words: words before boundary i.
        ranks: rank of boundary i.
        distance: words to look at on either side; also kept free at both ends.
    """
    first = bisect_left(words, distance)
    last = bisect_left(words, words[-1] - distance + 1)
    place = first
    while place < last:
        rank, here = ranks[place], words[place]
        left = place - 1
        while left >= first and here - words[left] < distance and ranks[left] < rank:
            left -= 1
        right = place + 1
        while right < last and words[right] - here < distance and ranks[right] <= rank:
            right += 1
        is_highest = left < first or here - words[left] >= distance
        if is_highest and (right >= last or words[right] - here >= distance):
            yield place
        place = right  # those between are lower than `place`, or lower than `right`, and near it


def _fit(
    words: Sequence[int], ranks: Sequence[bytes], first: int, last: int, limits: SplitLimits
) -> Iterator[tuple[int, int]]:
    """Cut the stretch between boundaries `first` and `last` until each part is short enough."""
    waiting = [(first, last)]
    while waiting:
        begin, end = waiting.pop()
        if words[end] - words[begin] <= limits.max_words or end - begin == 1:
            yield begin, end
            continue
        middle = (words[begin] + words[end]) / 2
        inside = range(begin + 1, end)
        far = [
            place for place in inside if min(words[place] - words[begin], words[end] - words[place]) >= limits.min_words
        ]
        cut = (
            max(far, key=lambda place: (ranks[place], -place))
            if far
            else min(inside, key=lambda place: (abs(words[place] - middle), place))
        )
        waiting += [(cut, end), (begin, cut)]


def split_infobox(text: str, limits: SplitLimits) -> list[str]:
    """Cut `field: value` lines into passages of whole lines, at most `max_words` long."""
    parts: list[str] = []
    size = 0
    for line in text.split("\n"):
        words = count_words(line)
        if words > limits.max_words:
            parts += split_text(line, limits)
            size = limits.max_words
        elif parts and size + words <= limits.target_words:
            parts[-1] += "\n" + line
            size += words
        else:
            parts.append(line)
            size = words
    return parts


def passage_id(source_id: str, section: str, text: str, occurrence: int) -> int:
    """The id of a passage: the first 63 bits of a sha256.

    The hashed bytes are `source_id`, `section` and `text`, each as its UTF-8 bytes preceded by their number as 8 bytes,
    then `occurrence` as 8 bytes; numbers are unsigned and big-endian. The id is the digest's first 8 bytes, big-endian,
    shifted right by one bit, so it is never negative.

    Args:
        source_id: page id, or the id in the file.
        section: heading path.
        text: the passage.
        occurrence: how many equal passages (same three values) came before it.
    """
    return _id_of(_sized(source_id) + _sized(section) + _sized(text), occurrence)


def _sized(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _id_of(message: bytes, occurrence: int) -> int:
    return int.from_bytes(hashlib.sha256(message + occurrence.to_bytes(8, "big")).digest()[:8], "big") >> 1


def content_hash(title: str, section: str, text: str) -> str:
    """Hex sha256 of everything of a passage that is shown to a model, in the encoding of `passage_id`."""
    return hashlib.sha256(_sized(title) + _sized(section) + _sized(text)).hexdigest()


def cut_documents(documents: Iterable[Document], limits: SplitLimits) -> PassageColumns:
    """Passages of documents, as columns of `passages/1` in document order."""
    rows = PassageColumns()
    ids, sections, texts, kinds, hashes = (
        rows.columns[name] for name in ("passage_id", "section", "text", "kind", "content_hash")
    )
    for document in documents:
        seen: dict[tuple[str, str], int] = {}
        source, title = _sized(document.source_id), _sized(document.title)
        before = len(ids)
        for piece in document.pieces:
            heading = _sized(piece.section)
            of_source, of_title = source + heading, title + heading
            for text in _cut_piece(piece, limits):
                key = (piece.section, text)
                occurrence = seen.get(key, 0)
                seen[key] = occurrence + 1
                sized = _sized(text)
                ids.append(_id_of(of_source + sized, occurrence))
                hashes.append(hashlib.sha256(of_title + sized).hexdigest())
                sections.append(piece.section)
                texts.append(text)
                kinds.append(piece.kind)
        rows.add_page(document, len(ids) - before)
    return rows


def _cut_piece(piece: Piece, limits: SplitLimits) -> list[str]:
    if piece.is_passage:
        return [piece.text]
    return split_infobox(piece.text, limits) if piece.kind == INFOBOX else split_text(piece.text, limits)
