"""The shards of an Atlas index: `embeddings.N.pt` (a tensor, fp16) and `passages.N.pt` (a pickled list of dicts).

Shapes: `D` values in a vector, `N` passages of a shard.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ralm.atlas.plain_pickle import load_plain_pickle
from ralm.atlas.torch_file import dense_tensor, load_torch_file, save_torch_file
from ralm.corpus.passages import Document, Piece
from ralm.errors import ArtifactError

PARTS = ("passages", "embeddings")
_NAME = re.compile(r"(passages|embeddings)\.(\d+)\.pt")


@dataclass(frozen=True)
class Shard:
    """The two files of one shard."""

    passages: Path
    embeddings: Path


def find_shards(folder: Path) -> list[Shard]:
    """All shards of an index in order, however many there are.

    Atlas itself wants as many files as it was told shards, and may have written fewer.

    Raises:
        ArtifactError: there are none, or one before the last is missing; the message names the file.
    """
    found = {match[0]: int(match[2]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    if not found:
        raise ArtifactError(f"{folder}: no shards of an Atlas index (passages.0.pt, embeddings.0.pt, ...)")
    shards = []
    for number in range(max(found.values()) + 1):
        for part in PARTS:
            if f"{part}.{number}.pt" not in found:
                raise ArtifactError(
                    f"{folder / f'{part}.{number}.pt'}: missing; there are shards up to {max(found.values())}"
                )
        shards.append(Shard(folder / f"passages.{number}.pt", folder / f"embeddings.{number}.pt"))
    return shards


def read_passages(path: Path) -> Iterator[Document]:
    """The passages of a shard, one document each: `id`, `title`, `section`, `text`.

    Atlas adds a section to the title when it reads a corpus and saves it so; here it is taken off again.

    Raises:
        ArtifactError: no pickle of plain values, or a passage without `id` or `text`; the message names the passage.
    """
    rows = load_plain_pickle(path)
    if not isinstance(rows, list):
        raise ArtifactError(f"{path}: expected a list of passages, found {type(rows).__name__}")
    for number, row in enumerate(rows):
        place = f"{path} passage {number}"
        if not isinstance(row, dict):
            raise ArtifactError(f"{place}: expected a dict, found {type(row).__name__}")
        source_id, text = _field(row, "id", place), _field(row, "text", place)
        title, section = _field(row, "title", place, default=""), _field(row, "section", place, default="")
        yield Document(source_id, bare_title(title, section), [Piece(section, text, is_passage=True)])


def bare_title(title: str, section: str) -> str:
    """A title without the section that Atlas added to it.

    Example:
        >>> bare_title("Emma: Plot", "Plot"), bare_title("Emma", ""), bare_title("Emma", "Plot")
        ('Emma', 'Emma', 'Emma')
    """
    return title.removesuffix(f": {section}") if section else title


def read_shard_vectors(path: Path, *, dimension: int, rows: int) -> Tensor:
    """The vectors of a shard, fp16 [D, N], mapped where torch allows it.

    Raises:
        ArtifactError: no fp16 tensor of this dimension, or not as many vectors as passages.
    """
    value = load_torch_file(path)
    vector_DN = dense_tensor(value)
    if vector_DN is None or vector_DN.dtype != torch.float16:
        found = type(value).__name__ if vector_DN is None else vector_DN.dtype
        raise ArtifactError(f"{path}: expected a tensor of float16, found {found}")
    if vector_DN.ndim != 2 or vector_DN.shape[0] != dimension:
        raise ArtifactError(
            f"{path}: a tensor of shape {list(vector_DN.shape)}; expected ({dimension}, passages), as the model's "
            "passage encoder makes them"
        )
    if vector_DN.shape[1] != rows:
        raise ArtifactError(f"{path}: {vector_DN.shape[1]} vectors, but {rows} passages in the shard")
    return vector_DN


def write_shard(folder: Path, number: int, passages: Sequence[Mapping[str, str]], vector_DN: Tensor) -> None:
    """Write one shard; of a tensor that is part of a larger one only this part is saved."""
    with (folder / f"embeddings.{number}.pt").open("wb") as file:
        save_torch_file(vector_DN.clone(memory_format=torch.contiguous_format), file)
    with (folder / f"passages.{number}.pt").open("wb") as file:
        pickle.dump([dict(passage) for passage in passages], file, protocol=4)  # what Python 3.8 writes


def _field(row: dict[Any, Any], name: str, place: str, *, default: str | None = None) -> str:
    value = row.get(name, default)
    if isinstance(value, int) and name == "id" and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise ArtifactError(f"{place}: field {name!r}: expected text, found {found}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{place}: field {name!r}: holds half a character at {error.start}") from error
    return value
