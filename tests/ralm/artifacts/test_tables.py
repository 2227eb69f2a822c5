"""Tables: the declared schema is enforced on both sides."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ralm.artifacts.schemas import (
    PASSAGE_IDS,
    PASSAGES,
    QUESTIONS,
    TRAINING_LOG,
    embeddings_schema,
    predictions_schema,
    schema_name,
)
from ralm.artifacts.tables import TableWriter, iterate_rows, read_table, to_table, write_table
from ralm.errors import ArtifactError, ConfigError

IDS = [{"passage_id": number} for number in range(10)]


def test_round_trip_over_row_groups(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "ids.parquet", PASSAGE_IDS, row_group_rows=4) as writer:
        writer.write(IDS[:3])
        writer.write(IDS[3:])
    assert writer.num_rows == 10
    groups = pq.ParquetFile(tmp_path / "ids.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [4, 4, 2]
    assert read_table(str(tmp_path / "ids.parquet"), "passage_ids/1").to_pylist() == IDS


@pytest.mark.parametrize(("start", "stop"), [(0, 20), (3, 17), (9, 11), (10, 10), (12, 20), (0, 1)])
def test_rows_by_range_over_files(tmp_path: Path, start: int, stop: int) -> None:
    for part in range(2):
        with TableWriter(tmp_path / f"{part}.parquet", PASSAGE_IDS, row_group_rows=3) as writer:
            writer.write([{"passage_id": part * 10 + number} for number in range(10)])
    files = [(str(tmp_path / f"{part}.parquet"), 10) for part in range(2)]
    tables = iterate_rows(files, "passage_ids/1", start=start, stop=stop)
    assert [row for table in tables for row in table.column(0).to_pylist()] == list(range(start, stop))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"passage_id": "x"}], "do not fit"),
        ([{"passage_id": None}], "null"),
        (pa.table({"id": [1]}), r"missing columns \['passage_id'\], unknown \['id'\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        to_table(rows, PASSAGE_IDS)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "ids.parquet", IDS, PASSAGE_IDS)
    with pytest.raises(ArtifactError, match="expected a questions/1 table, found passage_ids/1"):
        read_table(str(tmp_path / "ids.parquet"), "questions/1")
    pq.write_table(pa.table({"passage_id": [1]}), tmp_path / "plain.parquet")
    with pytest.raises(ArtifactError, match="found a table without a ralm schema"):
        read_table(str(tmp_path / "plain.parquet"), "passage_ids/1")


def test_no_parquet_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ArtifactError, match="no readable Parquet file"):
        read_table(str(tmp_path / "text.parquet"), "passage_ids/1")
    with pytest.raises(ArtifactError, match="no such file"):
        read_table(str(tmp_path / "none.parquet"), "passage_ids/1")


def test_unknown_column(tmp_path: Path) -> None:
    write_table(tmp_path / "ids.parquet", IDS, PASSAGE_IDS)
    with pytest.raises(ArtifactError, match=r"no columns \['title'\]"):
        read_table(str(tmp_path / "ids.parquet"), "passage_ids/1", ["title"])


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, IDS, PASSAGE_IDS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_embeddings_schema_carries_its_facts() -> None:
    schema = embeddings_schema(4, "f16", "fingerprint")
    assert schema.field("vector").type == pa.binary(8)
    assert schema.metadata[b"passage_encoder"] == b"fingerprint"
    with pytest.raises(ConfigError, match="vector dtype"):
        embeddings_schema(4, "int8", "fingerprint")


def test_predictions_take_a_task_s_metrics() -> None:
    assert predictions_schema(["exact_match"]).names[-1] == "exact_match"
    assert QUESTIONS.field("answers").type.value_field.name == "element"


LAYOUTS = {
    "passages/1": "passage_id int64, source_id string, page_id int64?, revision_id int64?, title string, "
    "section string, text string, kind string, position int32, content_hash string",
    "questions/1": "question_id string, task string, question string, answers [string], target string?, "
    "options [string], label string?, source_id string?, positive_ids [int64], positive_titles [string], "
    "passages [{passage_id int64, title string, section string, text string}], date string?, metadata string",
    "predictions/1": "question_id string, prediction string, answers [string], passage_ids [int64], scores [float], "
    "candidates [{text string, log_probability float}], choice_probabilities [float]?, metadata string, "
    "exact_match double?",
    "embeddings/1": "passage_id int64, vector fixed_size_binary[8]",
    "passage_ids/1": "passage_id int64",
    "training_log/2": "step int32, reader_loss double, retriever_loss double?, reader_learning_rate double, "
    "retriever_learning_rate double?, gradient_norm double, index_overlap double?",
}


def layout(fields: pa.Schema | pa.StructType) -> str:
    def kind(of: pa.DataType) -> str:
        if pa.types.is_list(of):
            return f"[{kind(of.value_type)}]"
        return f"{{{layout(of)}}}" if pa.types.is_struct(of) else str(of)

    return ", ".join(f"{field.name} {kind(field.type)}{'?' if field.nullable else ''}" for field in fields)


def test_layouts_are_frozen() -> None:
    """A change of a layout needs a new version in its name: artifacts of others are written in this one."""
    made = [PASSAGES, QUESTIONS, predictions_schema(["exact_match"]), embeddings_schema(4, "f16", "e")]
    assert {schema_name(schema): layout(schema) for schema in [*made, PASSAGE_IDS, TRAINING_LOG]} == LAYOUTS
    assert made[3].metadata == {
        b"ralm.schema": b"embeddings/1",
        b"dimension": b"4",
        b"dtype": b"f16",
        b"passage_encoder": b"e",
    }
