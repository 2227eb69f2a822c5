"""Read an `embeddings` table as one array: the bytes of the file are the values.

The vectors of such a table are in plain pages, whose values lie in the file as they do in the array: they are read
straight into it, once. Where a file is laid out otherwise, or is remote, pyarrow reads it.

Shapes: `N` passages, `D` values in a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ralm.artifacts.files import Location, is_remote, local_path
from ralm.artifacts.plain_pages import read_plain
from ralm.artifacts.tables import open_parquet
from ralm.errors import ArtifactError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}


def read_vectors(location: Location) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of one embeddings file.

    Returns:
        passage_id_N (int64) and vector_ND (float16 or float32, as stored).

    Raises:
        ArtifactError: no embeddings table, or its metadata does not fit its column.
    """
    if not is_remote(location):
        with open_parquet(location, "embeddings/1") as file:
            dimension, dtype = _layout(location, file.schema_arrow)
            num_rows = file.metadata.num_rows
            arrays = {"passage_id": np.empty(num_rows, "<i8"), "vector": np.empty((num_rows, dimension), dtype)}
            if read_plain(local_path(location), file, arrays):
                return arrays["passage_id"], arrays["vector"]
    groups = list(iterate_vectors(location))
    if len(groups) == 1:
        return groups[0]
    return np.concatenate([ids for ids, _ in groups]), np.concatenate([vectors for _, vectors in groups])


def iterate_vectors(location: Location) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and vectors, one row group at a time (one empty pair for a file without rows).

    Raises:
        ArtifactError: see `read_vectors`.
    """
    with open_parquet(location, "embeddings/1") as file:
        dimension, dtype = _layout(location, file.schema_arrow)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).combine_chunks()
            for batch in table.to_batches():
                ids_N = batch.column("passage_id").to_numpy()
                yield ids_N, vector_array(batch.column("vector"), dtype, dimension)
        if file.metadata.num_rows == 0:
            yield np.empty(0, np.int64), np.empty((0, dimension), dtype)


def vector_array(column: pa.FixedSizeBinaryArray, dtype: np.dtype, dimension: int) -> np.ndarray:
    """A view of a fixed-size binary column as [N, D]."""
    values = np.frombuffer(column.buffers()[1], dtype=dtype)
    return values[column.offset * dimension : (column.offset + len(column)) * dimension].reshape(-1, dimension)


def binary_column(vector_ND: np.ndarray, dtype: str) -> pa.FixedSizeBinaryArray:
    """Vectors as a fixed-size binary column without a copy beyond the change of number format.

    Raises:
        ArtifactError: a value does not fit the format (f16 ends at 65504) or is not finite.
    """
    with np.errstate(over="ignore"):
        stored_ND = np.ascontiguousarray(vector_ND, dtype=NUMPY_DTYPES[dtype])
    if not np.isfinite(stored_ND).all():
        raise ArtifactError(f"a vector holds values that are not finite as {dtype}; the encoder is damaged, or use f32")
    kind = pa.binary(stored_ND.dtype.itemsize * stored_ND.shape[1])
    return pa.Array.from_buffers(kind, len(stored_ND), [None, pa.py_buffer(stored_ND)])


def _layout(location: Location, schema: pa.Schema) -> tuple[int, np.dtype]:
    metadata = schema.metadata
    dimension, dtype = int(metadata[b"dimension"]), NUMPY_DTYPES.get(metadata[b"dtype"].decode())
    width = schema.field("vector").type.byte_width
    if dtype is None or width != dimension * dtype.itemsize:
        raise ArtifactError(
            f"{location}: {width} bytes a vector, but the metadata says {dimension} x {metadata[b'dtype']!r}"
        )
    return dimension, dtype
