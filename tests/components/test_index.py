"""The index stage: all shards, once each, of one corpus and one encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from components.embed.stage import embed
from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.index.search import open_index
from ralm.model import open_model


@pytest.fixture
def shards(tmp_path: Path, toy_passages: str, tiny_model: str) -> Path:
    for shard in range(3):
        embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "e"), shard=shard, num_shards=3)
    return tmp_path / "e"


def test_shards_give_the_index_of_the_whole(
    tmp_path: Path, shards: Path, toy_index: str, tiny_model: str, toy_passages: str
) -> None:
    manifest = index(embeddings=str(shards), index=str(tmp_path / "index"))
    assert manifest.counts == {"passages": 30, "shards": 3}
    assert manifest.details["recall"] == {"recall_at_1": 1.0, "recall_at_10": 1.0}
    encoder = open_model(tiny_model).fingerprints["passage_encoder"]
    opened, whole = (open_index(place, passage_encoder=encoder) for place in (str(tmp_path / "index"), toy_index))
    assert opened.passages_fingerprint == open_artifact(toy_passages, "passages").fingerprint
    np.testing.assert_array_equal(opened.passage_ids, whole.passage_ids)
    rows = np.arange(30)
    np.testing.assert_allclose(opened.vectors(rows), whole.vectors(rows), atol=2e-3)
    np.testing.assert_array_equal(opened.search(whole.vectors(rows), 3)[1], whole.search(whole.vectors(rows), 3)[1])


def test_a_list_of_shards_in_any_order(tmp_path: Path, shards: Path) -> None:
    places = sorted((str(path) for path in shards.iterdir()), reverse=True)
    from_list = index(embeddings=places, index=str(tmp_path / "a"))
    assert index(embeddings=str(shards), index=str(tmp_path / "b")).fingerprint == from_list.fingerprint


def test_a_missing_shard(tmp_path: Path, shards: Path) -> None:
    shutil.rmtree(shards / "shard-00001-of-00003")
    with pytest.raises(ArtifactError, match=r"expected shards 0 to 2 .* found \[0, 2\]"):
        index(embeddings=str(shards), index=str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


def test_shards_of_two_runs(tmp_path: Path, shards: Path, toy_passages: str, tiny_model: str) -> None:
    embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "other"), shard=1, num_shards=2)
    places = [*(str(path) for path in shards.iterdir()), str(tmp_path / "other" / "shard-00001-of-00002")]
    with pytest.raises(ArtifactError, match="num_shards is"):
        index(embeddings=places, index=str(tmp_path / "index"))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(ArtifactError, match="no embeddings artifact"):
        index(embeddings=str(tmp_path / "e"), index=str(tmp_path / "index"))


def test_another_encoder_is_refused_with_both_fingerprints(toy_index: str) -> None:
    with pytest.raises(ArtifactError, match=r"made by passage encoder [0-9a-f]{64}, the model has 00ff"):
        open_index(toy_index, passage_encoder="00ff")


def test_fp32_index(tmp_path: Path, shards: Path) -> None:
    manifest = index(embeddings=str(shards), index=str(tmp_path / "index"), config=IndexConfig(storage="f32"))
    assert manifest.details["storage"] == "f32"


def test_probes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="num_probes"):
        IndexConfig(num_probes=0)
