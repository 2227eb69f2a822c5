"""The columns of every table that crosses a stage boundary. A name and version travel in the schema's metadata.

A reader refuses another version; a change of a table is a new version and a decision record.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from ralm.errors import ConfigError

SCHEMA_KEY: Final = b"ralm.schema"
VECTOR_DTYPES: Final = {"f16": 2, "f32": 4}


def _schema(name: str, fields: list[pa.Field], **metadata: str) -> pa.Schema:
    items = {key.encode(): value.encode() for key, value in metadata.items()}
    return pa.schema(fields, metadata={SCHEMA_KEY: name.encode(), **items})


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


PASSAGES: Final = _schema(
    "passages/1",
    [
        _field("passage_id", pa.int64()),
        _field("source_id", pa.string()),
        _field("page_id", pa.int64(), nullable=True),
        _field("revision_id", pa.int64(), nullable=True),
        _field("title", pa.string()),
        _field("section", pa.string()),
        _field("text", pa.string()),
        _field("kind", pa.string()),  # text | infobox
        _field("position", pa.int32()),  # within the page
        _field("content_hash", pa.string()),
    ],
)

_FILE_PASSAGE: Final = pa.struct(
    [
        _field("passage_id", pa.int64()),
        _field("title", pa.string()),
        _field("section", pa.string()),
        _field("text", pa.string()),
    ]
)

QUESTIONS: Final = _schema(
    "questions/1",
    [
        _field("question_id", pa.string()),
        _field("task", pa.string()),
        _field("question", pa.string()),
        _field("answers", _list(pa.string())),
        _field("target", pa.string(), nullable=True),
        _field("options", _list(pa.string())),
        _field("label", pa.string(), nullable=True),
        _field("source_id", pa.string(), nullable=True),
        _field("positive_ids", _list(pa.int64())),
        _field("positive_titles", _list(pa.string())),
        _field("passages", _list(_FILE_PASSAGE)),
        _field("date", pa.string(), nullable=True),
        _field("metadata", pa.string()),  # one JSON object
    ],
)

_CANDIDATE: Final = pa.struct([_field("text", pa.string()), _field("log_probability", pa.float32())])

PREDICTIONS: Final = _schema(
    "predictions/1",
    [
        _field("question_id", pa.string()),
        _field("prediction", pa.string()),
        _field("answers", _list(pa.string())),
        _field("passage_ids", _list(pa.int64())),
        _field("scores", _list(pa.float32())),
        _field("candidates", _list(_CANDIDATE)),
        _field("choice_probabilities", _list(pa.float32()), nullable=True),
        _field("metadata", pa.string()),  # one JSON object
    ],
)
"""Base columns; a task appends its metrics as float64 columns (`predictions_schema`)."""


def predictions_schema(metrics: list[str]) -> pa.Schema:
    """`predictions/1` with one float64 column for each metric of the task."""
    columns = [_field(name, pa.float64(), nullable=True) for name in metrics]
    return pa.schema([*PREDICTIONS, *columns], PREDICTIONS.metadata)


PASSAGE_IDS: Final = _schema("passage_ids/1", [_field("passage_id", pa.int64())])
"""Row i of an index is the passage with the id in row i of this table."""

TRAINING_LOG: Final = _schema(
    "training_log/2",
    [
        _field("step", pa.int32()),  # 1 is the first
        _field("reader_loss", pa.float64()),
        _field("retriever_loss", pa.float64(), nullable=True),
        _field("reader_learning_rate", pa.float64()),
        _field("retriever_learning_rate", pa.float64(), nullable=True),
        _field("gradient_norm", pa.float64()),
        _field("index_overlap", pa.float64(), nullable=True),  # where the index was made anew before the update
    ],
)

PAGE_CHANGES: Final = _schema(
    "page_changes/1",
    [
        _field("source_id", pa.string()),
        _field("state", pa.string()),  # added | removed | changed | renamed (only its title) | unchanged
        _field("title_before", pa.string(), nullable=True),
        _field("title_after", pa.string(), nullable=True),
        _field("revision_before", pa.int64(), nullable=True),
        _field("revision_after", pa.int64(), nullable=True),
        *(
            _field(f"passages_{name}", pa.int32())
            for name in ("before", "after", "unchanged", "retitled", "moved", "added", "removed")
        ),
    ],
)
"""The pages that are not the same in two corpora."""


def embeddings_schema(dimension: int, dtype: str, passage_encoder: str) -> pa.Schema:
    """`embeddings/1`: passage ids and their vectors as fixed-size binary (little-endian f16 or f32 values).

    Args:
        dimension: D, values in a vector.
        dtype: `f16` or `f32`.
        passage_encoder: fingerprint of the encoder that made the vectors.

    Raises:
        ConfigError: unknown dtype.
    """
    if dtype not in VECTOR_DTYPES:
        raise ConfigError(f"vector dtype: expected one of {sorted(VECTOR_DTYPES)}, found {dtype!r}")
    fields = [_field("passage_id", pa.int64()), _field("vector", pa.binary(VECTOR_DTYPES[dtype] * dimension))]
    return _schema("embeddings/1", fields, dimension=str(dimension), dtype=dtype, passage_encoder=passage_encoder)


def schema_name(schema: pa.Schema) -> str:
    """The name and version in a schema's metadata, empty where there is none."""
    return str((schema.metadata or {}).get(SCHEMA_KEY, b"").decode())
