"""Passages by what they say: the first half of their `content_hash` as numbers, and rows found by it.

Shapes: N passages.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ralm.artifacts.files import Location
from ralm.errors import ArtifactError

HASH_DIGITS = 32
"""Of a content hash are compared (128 bits)."""
_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


class ContentRows:
    """Rows by content key; 20 bytes a passage.

    Args:
        key_N2: from `hash_keys`.

    Example:
        >>> ContentRows(np.array([[7, 1], [3, 1]], np.uint64)).find(np.array([[3, 1], [3, 2]], np.uint64)).tolist()
        [1, -1]
    """

    def __init__(self, key_N2: np.ndarray) -> None:
        order_N = np.argsort(key_N2[:, 0], kind="stable")
        self._key_N2, self._row_N = key_N2[order_N], order_N.astype(np.uint32)

    def find(self, key_N2: np.ndarray) -> np.ndarray:
        """The row of each key, -1 where there is none: int64 [N]."""
        if not len(self._key_N2):
            return np.full(len(key_N2), -1)
        place_N = np.minimum(np.searchsorted(self._key_N2[:, 0], key_N2[:, 0]), len(self._key_N2) - 1)
        is_known_N = (self._key_N2[place_N] == key_N2).all(1)
        return np.where(is_known_N, self._row_N[place_N].astype(np.int64), -1)


def hash_keys(content_hash: pa.ChunkedArray, place: Location) -> np.ndarray:
    """The first 128 bits of hexadecimal hashes: uint64 [N, 2].

    Args:
        content_hash: column of `passages/1`.
        place: where it is from, for the message.

    Raises:
        ArtifactError: one is not hexadecimal, or shorter.

    Example:
        >>> hash_keys(pa.chunked_array([["00000000000000ff" * 4]]), "here").tolist()
        [[255, 255]]
    """
    keys = [np.empty((0, 2), np.uint64)]
    for chunk in content_hash.chunks:
        texts = np.array(chunk.cast(pa.binary()).to_numpy(zero_copy_only=False), dtype=f"S{HASH_DIGITS}")
        digit_NH = _NIBBLES[texts.view(np.uint8).reshape(-1, HASH_DIGITS)]
        if (digit_NH > 15).any():
            row = int(np.flatnonzero((digit_NH > 15).any(1))[0])
            raise ArtifactError(
                f"{place}: content_hash: expected a sha256 in hexadecimal, found {chunk[row].as_py()!r}"
            )
        byte_NB = np.ascontiguousarray(digit_NH[:, 0::2] << 4 | digit_NH[:, 1::2])
        keys.append(byte_NB.view(">u8").astype(np.uint64))
    return np.concatenate(keys)
