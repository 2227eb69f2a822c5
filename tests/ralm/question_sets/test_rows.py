from __future__ import annotations

from pathlib import Path

import pytest

from ralm.artifacts.tables import read_table
from ralm.errors import ConfigError, DataError
from ralm.question_sets.rows import choose_shots, question_row, read_shots, write_shots, write_splits


def rows(count: int) -> list[dict[str, object]]:
    return [question_row(question_id=str(number), task="qa", question=f"q{number}") for number in range(count)]


def test_few_shot_table_holds_the_chosen_rows_in_order(tmp_path: Path) -> None:
    written, _ = write_splits(tmp_path, {"train": iter(rows(9000)), "dev": rows(1)})
    name = write_shots(tmp_path, written, [8999, 4, 4096])
    assert name == {"train-3-shot.parquet": 3}
    table = read_table(str(tmp_path / "train-3-shot.parquet"), "questions/1")
    assert table.column("question_id").to_pylist() == ["4", "4096", "8999"]


def test_few_shot_draw_is_fixed_by_its_seed() -> None:
    assert choose_shots(1000, 64, 0) == choose_shots(1000, 64, 0)
    assert choose_shots(1000, 64, 0) != choose_shots(1000, 64, 1)
    assert len(set(choose_shots(1000, 64, 0))) == 64
    with pytest.raises(ConfigError, match="num_shots: expected at most the 3 questions of train, found 4"):
        choose_shots(3, 4, 0)


def test_rows_that_train_does_not_have(tmp_path: Path) -> None:
    written, _ = write_splits(tmp_path, {"train": rows(3)})
    with pytest.raises(DataError, match="shots: expected rows from 0 to 2 of train, found 1 to 3"):
        write_shots(tmp_path, written, [1, 3])
    with pytest.raises(DataError, match="no split 'train'"):
        write_shots(tmp_path, {"test.parquet": 3}, [1])


@pytest.mark.parametrize("text", ["[3, 1]", "3\n1\n", " 3 1"])
def test_index_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "shots").write_text(text)
    assert read_shots(tmp_path / "shots") == [3, 1]


@pytest.mark.parametrize("text", ["", "[]", "one", "[1.5]", "[true]", '{"a": 1}', "1\n1\n"])
def test_bad_index_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "shots").write_text(text)
    with pytest.raises(DataError, match="shots: expected"):
        read_shots(tmp_path / "shots")


def test_empty_splits_are_left_out(tmp_path: Path) -> None:
    written, counts = write_splits(tmp_path, {"train": rows(1), "dev": []})
    assert written == {"train.parquet": 1}
    assert dict(counts) == {"train_questions": 1, "questions": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
    with pytest.raises(DataError, match="no question in any of the splits dev"):
        write_splits(tmp_path, {"dev": []})
