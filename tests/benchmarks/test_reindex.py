"""The benchmark of the re-index in a small size: what is taken over, and that its columns are there."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reindex
from ralm.corpus.dump import read_dump
from tests.conftest import SUBJECTS, VALUES

WORDS = [*SUBJECTS, *VALUES, "the", "of", "is", "northern", "valleys", "origin", "tools", "winter", "store", "coast"]
HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/" version="0.3" xml:lang="en">\n'


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """60 articles of three passages, and a redirect behind each."""
    parts = [HEAD]
    for number in range(60):
        generator = random.Random(number)
        facts = [" ".join(generator.choices(WORDS, k=9)).capitalize() + "." for _ in range(40)]
        texts = (" ".join(facts), f"#REDIRECT [[Town {number}]]")
        for page, title, text in zip((2 * number, 2 * number + 1), ("Town", "Other"), texts, strict=True):
            revision = f"<revision>\n<id>{page + 900}</id><text>{text}</text></revision>"
            parts.append(f"<page><title>{title} {number}</title><id>{page + 1}</id>{revision}</page>\n")
    path = tmp_path / "dump.xml"
    path.write_text("".join([*parts, "</mediawiki>\n"]))
    return path


def test_a_small_run(dump: Path, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    home = os.environ["RALM_HOME"]
    arguments = ["--dump", str(dump), "--model", tiny_model, "--precision", "fp32", "--percent", "0", "10"]
    small = ["--max-articles", "50", "--questions", "20", "--k", "30", "--kind", "flat", "ivf_flat"]
    reindex.main([*arguments, *small, "--work", str(tmp_path / "work"), "--json"])
    assert os.environ["RALM_HOME"] == home
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["percent"], row["kind"]) for row in rows] == [
        (0, "flat"),
        (0, "ivf_flat"),
        (10, "flat"),
        (10, "ivf_flat"),
    ]
    for row in rows:
        is_edited = row["percent"] > 0
        assert row["edited_sentences"] == 5 * is_edited
        assert row["pages_taken_over"] == 50 - row["edited_sentences"]
        assert (row["encoded"] > 0) == is_edited
        assert row["encoded_per_edit"] <= 3
        assert row["encoded"] + row["taken_over"] == row["passages"]
        assert set(row["full_wall_s"]) == {"download", "embed", "index flat", "index ivf_flat"}
        assert set(row["reindex_cpu_s"]) == {*row["full_wall_s"], "compare"}
        assert row["wall_ratio"] > 0
    for row in rows[::2]:
        assert row["score_difference"] <= 1e-3
        assert row["recall_of_rebuild"] == row["recall_of_reindex"] == row["equal_ids"] == 1.0
    reindex.print_tables(rows, 30)
    tables = capsys.readouterr().out.split("\n\n")
    assert [len(table.strip().split("\n")) for table in tables] == [2 + 8, 2 + 4]
    for table in tables:
        widths = {line.count("|") for line in table.strip().split("\n")}
        assert len(widths) == 1


def test_a_dump_is_shortened(dump: Path, tmp_path: Path) -> None:
    for number in (1, 7, 60, 1000):
        counts: Counter[str] = Counter()
        short = reindex.shorten_dump(dump, tmp_path / "short.xml.bz2", number)
        assert len(list(read_dump(short, counts))) == min(number, 60)


def test_overlap_is_the_share_of_equal_ids() -> None:
    one, other = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[4, 3, 2, 9], [8, 7, 6, 5]])
    assert reindex.overlap(one, other) == (3 / 4 + 1) / 2
