from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ralm.corpus.build import DocumentBatch
from ralm.corpus.folder import split_markdown
from ralm.corpus.formats import detect_format, open_corpus
from ralm.corpus.passages import INFOBOX, Document, Piece
from ralm.errors import ConfigError, DataError

LONG = "One sentence of seven words is here. " * 60


def documents_of(source: Path, format: str = "auto") -> tuple[list[Document], Counter[str]]:  # noqa: A002
    corpus = open_corpus(str(source), format=format, base_url="http://unused")
    return [document for batch in corpus.batches() for document in batch.documents()], corpus.counts


def write_lines(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_atlas_passages_stay_as_they_are(tmp_path: Path) -> None:
    rows = [{"id": str(n), "title": "T" if n < 2 else "U", "section": "S", "text": LONG} for n in range(3)]
    documents, _ = documents_of(write_lines(tmp_path / "text-list-100-sec.jsonl.gz", *rows))
    assert [document.source_id for document in documents] == ["0", "1", "2"]
    assert [document.first_position for document in documents] == [0, 1, 0]
    assert documents[0].pieces == [Piece("S", LONG, is_passage=True)]


def test_atlas_infobox_file_is_of_that_kind(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "infobox.jsonl", {"id": "1", "title": "T", "section": "", "text": "a: b"})
    assert documents_of(path)[0][0].pieces[0].kind == INFOBOX


def test_dpr_table(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "psgs_w100.tsv.gz", "id\ttext\ttitle", '1\t"He said ""x"", then\tleft."\tA', "2\tmore\tA"
    )
    documents, _ = documents_of(path)
    assert [(item.source_id, item.title, item.pieces[0].text) for item in documents] == [
        ("1", "A", 'He said "x", then\tleft.'),
        ("2", "A", "more"),
    ]
    assert documents[1].first_position == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_any_delimiter(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "my.csv"
    path.write_text(f'Title{delimiter}text\nTea{delimiter}"hot, ""wet""\nand; green"\n')
    assert documents_of(path)[0] == [Document("Tea", "Tea", [Piece("", 'hot, "wet"\nand; green')])]


def test_own_jsonl_and_parquet_are_equal(tmp_path: Path) -> None:
    rows = [{"title": "A", "text": LONG, "id": 7}, {"title": "B", "text": "short", "id": 8}]
    jsonl = write_lines(tmp_path / "my.jsonl", rows[0], "", rows[1])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "my.parquet")
    assert documents_of(jsonl)[0] == documents_of(tmp_path / "my.parquet")[0]
    assert documents_of(jsonl)[0][0] == Document("7", "A", [Piece("", LONG)])


def test_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "green_tea.txt").write_text("Hot.\nWet.")
    (tmp_path / "a.md").write_text(
        "# Tea\nHot **drink**.\n## Kinds\n* [Green](x.md)\n```\n# no heading\n```\n### Old\nrare\n"
    )
    (tmp_path / ".hidden.txt").write_text("x")
    documents, counts = documents_of(tmp_path)
    assert [document.title for document in documents] == ["Tea", "green tea"]
    assert documents[0].pieces == [
        Piece("", "Hot drink."),
        Piece("Kinds", "Green\n# no heading"),
        Piece("Kinds: Old", "rare"),
    ]
    assert documents[1].source_id == "sub/green_tea.txt"
    assert counts["files"] == 2


def test_folder_of_parts(tmp_path: Path) -> None:
    for part in range(2):
        write_lines(tmp_path / f"{part}.jsonl", {"title": f"T{part}", "text": "x"})
    assert [document.title for document in documents_of(tmp_path)[0]] == ["T0", "T1"]


def test_markdown_without_headings() -> None:
    assert split_markdown("just _text_ with snake_case and 2*3*4") == (
        "",
        [Piece("", "just text with snake_case and 2*3*4")],
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.xml.bz2", "<mediawiki", "wikimedia"),
        ("x", "<mediawiki xmlns=", "wikimedia"),
        ("x.jsonl", '{"id": "1", "title": "t", "section": "s", "text": "x"}\n', "atlas"),
        ("x.jsonl", '{"id": "1", "title": "t", "text": "x"}\n', "jsonl"),
        ("x", "id\ttext\ttitle\n", "dpr"),
        ("x.tsv", "title\ttext\n", "csv"),
        ("x", "text;title\n", "csv"),
        ("x.md", "# x", "folder"),
        ("x.parquet", "", "parquet"),
    ],
)
def test_format_is_told_by_name_and_content(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    assert detect_format(tmp_path / name) == expected


def test_unknown_format_asks_for_a_setting(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_text("nothing known")
    with pytest.raises(ConfigError, match="x.bin: cannot tell its format; set format to one of"):
        detect_format(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.jsonl", [*[{"title": "t", "text": "x"}] * 6, '{"title": "t", '], "a.jsonl line 7: no JSON"),
        (
            "a.jsonl",
            [{"title": "t", "text": "x"}, {"title": "t"}],
            "a.jsonl line 2: missing field 'text'; found .*title",
        ),
        ("a.jsonl", [{"title": "t", "text": 5.5}], "a.jsonl line 1: field 'text': expected text, found float"),
        ("a.jsonl", [{"title": "t", "text": "x"}, [1]], "a.jsonl line 2: expected a JSON object, found list"),
        ("a.csv", ["title,text", "a,b", "c"], "a.csv line 3: expected 2 fields as in the header, found 1"),
        ("a.csv", ["title,body text", "a,b"], "a.csv line 2: missing field 'text'"),
        ("a.csv", ["title,text", 'a,"b'], "a.csv line 2: no ','-separated table: unexpected end of data"),
        ("psgs_w100.tsv", ["id\ttext\ttitle", "1\tx"], "psgs_w100.tsv line 2: expected 3 fields"),
    ],
)
def test_broken_records_name_the_line(tmp_path: Path, name: str, lines: list[object], message: str) -> None:
    path = write_lines(tmp_path / name, *lines)
    with pytest.raises(DataError, match=message):
        documents_of(path)


def test_no_utf8_names_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"title": "a", "text": "b"}\n{"title": "\xff"}\n')
    with pytest.raises(DataError, match="a.jsonl line 2: byte 12 of the line is not UTF-8"):
        documents_of(tmp_path / "a.jsonl")


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="a.parquet: no readable Parquet file"):
        documents_of(tmp_path / "a.parquet")


def test_batches_do_not_depend_on_anything_but_the_content(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *[{"title": str(n), "text": LONG} for n in range(1200)])
    corpus = open_corpus(str(path), format="auto", base_url="http://unused")
    sizes = [len(batch.items) for batch in corpus.batches() if isinstance(batch, DocumentBatch)]
    assert sum(sizes) == 1200
    assert len(sizes) > 2
