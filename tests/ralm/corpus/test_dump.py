from __future__ import annotations

import bz2
import gzip
import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from ralm.corpus.compressed import read_chunks, read_lines
from ralm.corpus.dump import RawPage, read_dump
from ralm.errors import DataError

DUMP = Path(__file__).parents[2] / "data" / "dump.xml"


def pages_of(path: Path) -> tuple[list[RawPage], Counter[str]]:
    counts: Counter[str] = Counter()
    return [page for _, page in read_dump(path, counts)], counts


def test_articles_are_read_and_the_rest_is_counted() -> None:
    pages, counts = pages_of(DUMP)
    assert [(page.page_id, page.revision_id, page.title) for page in pages] == [
        (1, 101, "Otter"),
        (4, 104, "Broken page"),
    ]
    assert counts == Counter(pages=5, articles=2, redirects=1, pages_of_other_namespaces=1, skipped_other_models=1)
    assert "&nbsp;" in pages[0].wikitext


@pytest.mark.parametrize("suffix", ["bz2", "gz", "zst", "multistream", "gz-parts", "zst-parts"])
def test_every_compression_gives_the_same_pages(tmp_path: Path, suffix: str) -> None:
    raw = DUMP.read_bytes()
    cuts = [0, 700, 701, 2500, len(raw)]
    pieces = [raw[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    encoded = {
        "bz2": lambda: bz2.compress(raw),
        "gz": lambda: gzip.compress(raw),
        "zst": lambda: zstandard.compress(raw),
        "multistream": lambda: b"".join(bz2.compress(piece) for piece in pieces),
        "gz-parts": lambda: b"".join(gzip.compress(piece) for piece in pieces),
        "zst-parts": lambda: b"".join(zstandard.compress(piece) for piece in pieces),
    }[suffix]()
    path = tmp_path / f"dump.{suffix}"
    path.write_bytes(encoded)
    assert pages_of(path) == pages_of(DUMP)


@pytest.mark.parametrize("schema", [3, 4, 5, 6, 7, 8, 9, 10, 11])
def test_schemas_with_and_without_ns(tmp_path: Path, schema: int) -> None:
    raw = DUMP.read_text().replace("export-0.10", f"export-0.{schema}")
    if schema < 6:
        raw = re.sub(r" *<(ns>.*</ns|sha1>.*</sha1|redirect .*/)>\n", "", raw)
    if schema == 11:
        raw = raw.replace(
            "</revision>", "<content><role>x</role><id>9</id><text>other slot</text></content></revision>"
        )
    path = tmp_path / "dump.xml"
    path.write_text(raw)
    assert pages_of(path) == pages_of(DUMP)


@pytest.mark.parametrize(
    "text", ["#redirect[[Otter]]", "#WEITERLEITUNG [[X]]", "#перенаправление [[X]]", "#重定向 [[X]]"]
)
def test_redirects_in_any_language(tmp_path: Path, text: str) -> None:
    raw = DUMP.read_text().replace('<redirect title="Otter" />', "").replace("#REDIRECT [[Otter]]", text)
    (tmp_path / "dump.xml").write_text(raw)
    assert pages_of(tmp_path / "dump.xml")[1]["redirects"] == 1


def test_last_revision_of_a_history_dump_stays(tmp_path: Path) -> None:
    older = "<revision><id>7</id><text>older</text></revision><revision>\n      <id>104"
    (tmp_path / "dump.xml").write_text(DUMP.read_text().replace("<revision>\n      <id>104", older))
    page = pages_of(tmp_path / "dump.xml")[0][1]
    assert (page.revision_id, page.wikitext[:9]) == (104, "This page")


def test_oversized_page_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ralm.corpus.dump.MAX_PAGE_CHARS", 300)
    pages, counts = pages_of(DUMP)
    assert [page.title for page in pages] == ["Broken page"]
    assert counts["skipped_oversized_pages"] == 1


def multistream(path: Path, streams: int) -> bytes:
    """A bz2 file of text that does not compress, in many streams."""
    pieces = [hashlib.shake_128(bytes([number])).hexdigest(20_000).encode() for number in range(streams)]
    path.write_bytes(b"".join(map(bz2.compress, pieces)))
    return b"".join(pieces)


def test_many_streams_are_decompressed_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bz2"
    content = multistream(path, 60)
    for segment_bytes, longest in [(1000, 50_000), (100_000, 200_000), (1, 10), (100_000, 110_000)]:
        monkeypatch.setattr("ralm.corpus.multistream.SEGMENT_BYTES", segment_bytes)
        monkeypatch.setattr("ralm.corpus.multistream.MAX_SEGMENT_BYTES", longest)
        assert b"".join(read_chunks(path)) == content
    monkeypatch.setattr("ralm.corpus.multistream.SEGMENT_BYTES", 1000)
    monkeypatch.setattr("ralm.corpus.multistream.MAX_SEGMENT_BYTES", 50_000)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=f"at byte {cut}: the file is truncated"):
            b"".join(read_chunks(path))
    path.write_bytes(whole[:300_000] + b"x" * 40 + whole[300_040:])
    with pytest.raises(DataError, match="damaged bz2 data near byte"):
        b"".join(read_chunks(path))


@pytest.mark.parametrize("encode", [bz2.compress, gzip.compress, zstandard.compress])
def test_truncated_file_names_the_byte(tmp_path: Path, encode) -> None:
    path = tmp_path / "dump.xml.z"
    data = encode(DUMP.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"dump\.xml\.z: .* at byte {len(data) // 2}: the file is truncated"):
        pages_of(path)


def test_damaged_bz2_is_named(tmp_path: Path) -> None:
    data = bytearray(bz2.compress(DUMP.read_bytes()))
    data[len(data) // 2] ^= 255
    (tmp_path / "d.bz2").write_bytes(data)
    with pytest.raises(DataError, match="d.bz2: damaged bz2 data near byte"):
        pages_of(tmp_path / "d.bz2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "</title>\n    <ns>1",
            "</titel>\n    <ns>1",
            r"dump.xml: malformed XML at line \d+, column \d+ .*mismatched tag",
        ),
        ("</mediawiki>", "", "malformed XML at line .*no element found"),
        ("export-0.10", "export-0.99", "expected <mediawiki> of export schema 0.3 to 0.11, found .*0.99"),
        ("<mediawiki xmlns=", "<rss xmlns=", "expected <mediawiki>"),
        ("<id>4</id>", "<id>four</id>", "line .*expected a number as page id, found 'four'"),
        ("<id>4</id>", "", "line .*'Broken page' has no <id>"),
    ],
)
def test_bad_xml_names_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    raw = DUMP.read_text()
    assert old in raw
    (tmp_path / "dump.xml").write_text(raw.replace(old, new))
    with pytest.raises(DataError, match=message):
        pages_of(tmp_path / "dump.xml")


def test_entity_declarations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dump.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]>' + DUMP.read_text())
    with pytest.raises(DataError, match="declares no XML entities"):
        pages_of(tmp_path / "dump.xml")


def test_lines_keep_their_numbers_over_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\ntw") + gzip.compress("o\n\nÄ".encode()))
    assert list(read_lines(tmp_path / "a.gz")) == [(1, "one"), (2, "two"), (3, ""), (4, "Ä")]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing.xml: cannot be read"):
        pages_of(tmp_path / "nothing.xml")
