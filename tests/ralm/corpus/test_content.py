"""Keys of content hashes, and rows found by them."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.corpus.content import ContentRows, hash_keys
from ralm.errors import ArtifactError


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def keys_of(*texts: str) -> np.ndarray:
    return hash_keys(pa.chunked_array([[digest(text) for text in texts]], pa.string()), "here")


def test_keys_are_the_first_32_digits() -> None:
    hashes = [digest(str(number)) for number in range(50)]
    expected = [[int(text[:16], 16), int(text[16:32], 16)] for text in hashes]
    chunks = pa.chunked_array([hashes[:1], hashes[1:30], hashes[30:]])
    assert hash_keys(chunks, "here").tolist() == expected
    assert hash_keys(chunks, "here").dtype == np.uint64


def test_a_column_without_rows_and_an_empty_chunk_have_no_keys() -> None:
    empty = pa.array([], pa.string())
    assert hash_keys(pa.chunked_array([], pa.string()), "here").shape == (0, 2)
    assert hash_keys(pa.chunked_array([empty]), "here").shape == (0, 2)
    chunks = pa.chunked_array([empty, pa.array([digest("a")]), empty, pa.array([digest("b")])])
    np.testing.assert_array_equal(hash_keys(chunks, "here"), keys_of("a", "b"))


@pytest.mark.parametrize(
    "damaged", ["", "ab", digest("a")[:31], digest("a").upper(), "g" + digest("a")[1:], "ä" * 64, "\0" + "0" * 63]
)
def test_what_is_no_hash_is_named(damaged: str) -> None:
    chunks = pa.chunked_array([[digest("a")], [digest("b"), damaged, digest("c")]])
    with pytest.raises(ArtifactError, match="^place: content_hash: expected a sha256 in hexadecimal, found") as raised:
        hash_keys(chunks, "place")
    assert str(raised.value).endswith(repr(damaged))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 40), max_size=40))
def test_the_first_row_with_the_content_is_found(held: list[int], asked: list[int]) -> None:
    rows = ContentRows(keys_of(*map(str, held)))
    expected = [held.index(number) if number in held else -1 for number in asked]
    found = rows.find(keys_of(*map(str, asked)))
    assert found.tolist() == expected
    assert found.dtype == np.int64


def test_half_a_key_is_not_enough() -> None:
    rows = ContentRows(np.array([[5, 1], [2**64 - 1, 2]], np.uint64))
    asked = np.array([[5, 2], [5, 1], [2**64 - 1, 1], [2**64 - 1, 2], [0, 0]], np.uint64)
    assert rows.find(asked).tolist() == [-1, 0, -1, 1, -1]


def test_nothing_is_found_among_no_rows() -> None:
    assert ContentRows(np.empty((0, 2), np.uint64)).find(keys_of("a", "b")).tolist() == [-1, -1]
    assert ContentRows(keys_of("a")).find(np.empty((0, 2), np.uint64)).tolist() == []
