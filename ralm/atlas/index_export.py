"""An index and its passages -> the shards of an Atlas index.

Shapes: `D` values in a vector, `N` passages of a shard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ralm.artifacts.files import Location, local_path, remove
from ralm.artifacts.manifest import open_artifact
from ralm.atlas.shards import write_shard
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.errors import ArtifactError, ConfigError
from ralm.index.search import Index, open_index
from ralm.log import progress
from ralm.reader.prompts import full_title

BLOCK_ROWS = 8192
NUM_SHARDS = 128


def export_index(*, index: Location, passages: Location, output: Location, num_shards: int = NUM_SHARDS) -> Path:
    """Write an index and its passages as shards that Atlas loads, with ⌈N / shards⌉ passages in each.

    There are always as many files as shards, since Atlas' loader insists on that: the last ones may hold nothing.

    Args:
        index: an `index` artifact.
        passages: the `passages` artifact it was made from.
        output: a new or empty folder.
        num_shards: Atlas needs a multiple of its number of processes.

    Returns:
        The folder.

    Raises:
        ConfigError: less than one shard.
        ArtifactError: the index is of other passages, or the folder is not empty.
    """
    if num_shards < 1:
        raise ConfigError(f"num_shards: expected at least 1, found {num_shards}")
    made_by = open_artifact(index, "index").manifest.details["passage_encoder"]
    opened, lookup = open_index(index, passage_encoder=made_by, device=torch.device("cpu")), PassageLookup(passages)
    if opened.passages_fingerprint != lookup.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {opened.passages_fingerprint}, but {passages} is {lookup.fingerprint}"
        )
    size = -(-opened.num_passages // num_shards)
    with _new_folder(output) as folder, progress(total=num_shards, what="export", unit="shards") as bar:
        for number in range(num_shards):
            row_N = np.arange(min(number * size, opened.num_passages), min((number + 1) * size, opened.num_passages))
            rows = [_official_passage(passage) for passage in lookup.get(opened.passage_ids[row_N])]
            write_shard(folder, number, rows, _vectors(opened, row_N))
            bar.update(1)
    return local_path(output)


@contextmanager
def _new_folder(output: Location) -> Iterator[Path]:
    """A folder that appears under its name when all is written; passages never stay beside vectors of others."""
    target = local_path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{output}: expected a new or empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield work
        work.chmod(0o755)
        work.replace(target)
    finally:
        remove(work)


def _official_passage(passage: Passage) -> dict[str, str]:
    """A passage as Atlas keeps it: the section also stands in the title."""
    title = full_title(passage.title, passage.section)
    return {"id": passage.source_id, "title": title, "section": passage.section, "text": passage.text}


def _vectors(index: Index, row_N: np.ndarray) -> Tensor:
    """Vectors of these rows, fp16 [D, N]."""
    vector_DN = torch.empty((index.dimension, len(row_N)), dtype=torch.float16)
    for start in range(0, len(row_N), BLOCK_ROWS):
        block_ND = index.vectors(row_N[start : start + BLOCK_ROWS])
        vector_DN[:, start : start + len(block_ND)] = torch.from_numpy(block_ND.T)
    if not torch.isfinite(vector_DN).all():
        raise ArtifactError("a vector of the index holds values that fp16 cannot, which is all that Atlas reads")
    return vector_DN
