"""The index stage: all shards, once each, of one corpus and one encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.embed.stage import embed
from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, handing_over_by_reference, produce
from ralm.errors import ArtifactError, ConfigError
from ralm.index.config import IndexSettings, Kind
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.retriever.vectors import binary_column


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


@pytest.fixture(scope="module")
def many_vectors() -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of 300 passages, as an embed stage may hand them over."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 16))[generator.integers(30, size=300)] + generator.normal(size=(300, 16)) / 2
    return generator.permutation(10**6)[:300].astype(np.int64), vectors.astype(np.float16)


def write_shards(folder: Path, ids: np.ndarray, vectors: np.ndarray, num_shards: int, passages: str = "00aa") -> str:
    """`embeddings` artifacts, cut as `embed` cuts: ranges of rows, some of them empty where shards are many."""
    for shard in range(num_shards):
        rows = slice(len(ids) * shard // num_shards, len(ids) * (shard + 1) // num_shards)

        def build(work: Path, rows: slice = rows) -> Contents:
            schema = embeddings_schema(vectors.shape[1], "f16", "00ee")
            columns = [pa.array(ids[rows], pa.int64()), binary_column(vectors[rows], "f16")]
            pq.write_table(pa.table(columns, schema=schema), work / "shard.parquet")
            return Contents(
                rows={"shard.parquet": len(ids[rows])},
                details={
                    "passages": passages,
                    "passage_encoder": "00ee",
                    "dimension": vectors.shape[1],
                    "dtype": "f16",
                    "shard": shard,  # noqa: B023 - called at once
                    "num_shards": num_shards,
                },
            )

        produce(
            str(folder / f"shard-{shard:05d}"),
            kind="embeddings",
            stage="made",
            stage_version=1,
            inputs={"passages": passages, "vectors": hashlib.sha256(vectors.tobytes()).hexdigest()},
            config={"shard": shard, "num_shards": num_shards},
            build=build,
        )
    return str(folder)


KINDS = [IndexConfig(kind=kind) for kind in get_args(Kind)] + [IndexConfig(storage="bf16"), IndexConfig(storage="f32")]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"{config.kind}-{config.storage}")
def test_the_number_of_shards_does_not_matter(
    config: IndexConfig, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    """Atlas defect 6: saved shards could be loaded by as many workers as wrote them, and not for every corpus size."""
    found = {}
    for num_shards in (1, 3, 7):
        embeddings = write_shards(tmp_path / f"e{num_shards}", *many_vectors, num_shards)
        manifest = index(embeddings=embeddings, index=str(tmp_path / f"index-{num_shards}"), config=config)
        found[num_shards] = {entry.path: entry.sha256 for entry in manifest.files}
    assert found[1] == found[3] == found[7]
    assert ("index.faiss" in found[1]) == (config.kind != "flat")
    opened = open_index(str(tmp_path / "index-7"), passage_encoder="00ee")
    np.testing.assert_array_equal(opened.passage_ids, many_vectors[0])
    assert (opened.kind, opened.dimension, opened.num_passages) == (config.kind, 16, 300)
    np.testing.assert_allclose(opened.vectors(np.arange(300)), many_vectors[1].astype(np.float32), rtol=2**-8)


@pytest.mark.parametrize("num_passages", [5, 7, 8])
def test_more_shards_than_fit(num_passages: int, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]) -> None:
    """Atlas defect 6: with few passages the saver wrote fewer shards than the loader insisted on."""
    ids, vectors = (values[:num_passages] for values in many_vectors)
    index(embeddings=write_shards(tmp_path / "e", ids, vectors, 7), index=str(tmp_path / "index"))
    opened = open_index(str(tmp_path / "index"), passage_encoder="00ee")
    np.testing.assert_array_equal(opened.passage_ids, ids)
    assert opened.search(vectors.astype(np.float32), num_passages)[1].shape == (num_passages, num_passages)


def test_a_new_corpus_in_an_old_folder(tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]) -> None:
    """Atlas defect 7: passage shards were never overwritten, so that old text was paired with new vectors."""
    ids, vectors = many_vectors
    old = index(embeddings=write_shards(tmp_path / "old", ids, vectors, 2), index=str(tmp_path / "index"))
    embeddings = write_shards(tmp_path / "new", ids[:40] + 1, vectors[40:80], 2, passages="00bb")
    new = index(embeddings=embeddings, index=str(tmp_path / "index"))
    assert new.fingerprint != old.fingerprint
    opened = open_index(str(tmp_path / "index"), passage_encoder="00ee")
    np.testing.assert_array_equal(opened.passage_ids, ids[:40] + 1)
    np.testing.assert_array_equal(opened.vectors(np.arange(40)), vectors[40:80].astype(np.float32))
    assert opened.passages_fingerprint == "00bb"


SEARCH = """
import json, sys
import numpy as np
from ralm.index.search import open_index
found = open_index(sys.argv[1], passage_encoder="00ee").search(np.load(sys.argv[2]), 9)
print(json.dumps([found[0].tolist(), found[1].tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "ivf_pq"])
def test_many_processes_search_one_index(
    kind: Kind, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    embeddings = write_shards(tmp_path / "e", *many_vectors, 3)
    index(embeddings=embeddings, index=str(tmp_path / "index"), config=IndexConfig(kind=kind))
    np.save(tmp_path / "questions.npy", many_vectors[1][:5].astype(np.float32))
    command = [sys.executable, "-c", SEARCH, str(tmp_path / "index"), str(tmp_path / "questions.npy")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate()[0] for process in running}
    assert len(answers) == 1
    assert len(json.loads(answers.pop())[1]) == 5


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"{config.kind}-{config.storage}")
def test_new_vectors_give_the_index_that_a_full_build_gives(
    config: IndexConfig, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    ids, vectors = many_vectors
    index(embeddings=write_shards(tmp_path / "e", ids, vectors, 2), index=str(tmp_path / "index"), config=config)
    old = open_index(str(tmp_path / "index"), passage_encoder="00ee")
    before = old.search(vectors[:4].astype(np.float32), 6)
    moved = np.roll(vectors, 7, axis=0)
    new = old.with_vectors(moved, tmp_path / "refreshed", passage_encoder="00ff")
    full = index(embeddings=write_shards(tmp_path / "m", ids, moved, 1), index=str(tmp_path / "full"), config=config)
    refreshed = open_artifact(str(tmp_path / "refreshed"), "index").manifest
    assert {entry.path: entry.sha256 for entry in refreshed.files} == {entry.path: entry.sha256 for entry in full.files}
    assert (new.kind, new.passage_encoder, new.passages_fingerprint) == (config.kind, "00ff", "00aa")
    assert new.fingerprint not in (old.fingerprint, "")
    np.testing.assert_array_equal(new.passage_ids, old.passage_ids)
    for part, again in zip(before, old.search(vectors[:4].astype(np.float32), 6), strict=True):
        np.testing.assert_array_equal(part, again)
    reopened = open_index(str(tmp_path / "refreshed"), passage_encoder="00ff")
    assert reopened.fingerprint == new.fingerprint
    newest = new.with_vectors(vectors, tmp_path / "refreshed", passage_encoder="00ff")  # in place of the one before
    np.testing.assert_array_equal(newest.search(vectors[:4].astype(np.float32), 6)[1], before[1])
    np.testing.assert_allclose(new.vectors(np.array([7])), vectors[:1].astype(np.float32), rtol=2**-8)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_a_failed_refresh_leaves_the_last_one(tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]) -> None:
    ids, vectors = many_vectors
    index(embeddings=write_shards(tmp_path / "e", ids, vectors, 1), index=str(tmp_path / "index"))
    old = open_index(str(tmp_path / "index"), passage_encoder="00ee")
    first = old.with_vectors(vectors, tmp_path / "refreshed")
    damaged = vectors.copy()
    damaged[200, 3] = np.nan
    with pytest.raises(ArtifactError, match="infinite or undefined"):
        old.with_vectors(damaged, tmp_path / "refreshed")
    assert open_index(str(tmp_path / "refreshed"), passage_encoder="").fingerprint == first.fingerprint
    with pytest.raises(
        ConfigError, match=r"matrix_ND: expected the shape of the index, \(300, 16\), found \(299, 16\)"
    ):
        old.with_vectors(vectors[1:], tmp_path / "refreshed")


def test_manifest_says_what_an_approximate_index_is(
    tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    embeddings = write_shards(tmp_path / "e", *many_vectors, 1)
    manifest = index(embeddings=embeddings, index=str(tmp_path / "index"), config=IndexConfig(kind="ivf_pq", nlist=5))
    details = manifest.details
    assert (details["kind"], details["metric"], details["dimension"]) == ("ivf_pq", "inner_product", 16)
    assert details["options"].keys() == {"nlist", "nprobe", "code_size", "rerank"}
    assert (details["options"]["nlist"], details["options"]["code_size"]) == (5, 4)
    size = (tmp_path / "index" / "index.faiss").stat().st_size
    assert details["bytes_per_vector"] == round(size / 300, 2)


def test_a_damaged_faiss_file_is_refused(tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]) -> None:
    embeddings = write_shards(tmp_path / "e", *many_vectors, 1)
    index(embeddings=embeddings, index=str(tmp_path / "index"), config=IndexConfig(kind="pq"))
    path = tmp_path / "index" / "index.faiss"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(b"XXXX" + content[4:])
    with pytest.raises(ArtifactError, match="expected a faiss index"):
        open_index(str(tmp_path / "index"), passage_encoder="00ee")
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"damaged: index.faiss has \d+ bytes"):
        open_index(str(tmp_path / "index"), passage_encoder="00ee")


def some_changed(ids: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same passages in reverse, with 2 of them changed, 3 gone and 1 new."""
    new_ids, new_vectors = ids[:2:-1].copy(), vectors[:2:-1].copy()
    new_vectors[[4, 90]] = -new_vectors[[4, 90]]
    return np.append(new_ids, 10**7), np.concatenate([new_vectors, vectors[:1] + 1])


LOOSE = {"max_drift": 10.0, "max_added": 1.0}


@pytest.mark.parametrize("is_by_reference", [False, True])
def test_an_index_is_made_out_of_the_previous_one(
    is_by_reference: bool, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    config = IndexConfig(kind="ivf_sq8", nlist=7, **LOOSE)  # type: ignore[arg-type]
    embeddings = write_shards(tmp_path / "e", *many_vectors, 2)
    with handing_over_by_reference() if is_by_reference else contextlib.nullcontext():
        old = index(embeddings=embeddings, index=str(tmp_path / "old"), config=config)
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    ids, vectors = some_changed(*many_vectors)
    embeddings = write_shards(tmp_path / "f", ids, vectors, 3, passages="00bb")
    places = {"embeddings": embeddings, "previous": str(tmp_path / "old")}
    new = index(**places, index=str(tmp_path / "new"), config=config)  # type: ignore[arg-type]
    assert new.details["built"] == "updated"
    assert new.counts == {"passages": 298, "shards": 3, "kept": 295, "added": 3, "removed": 5}
    assert (new.inputs["previous"], new.details["passages"]) == (old.fingerprint, "00bb")
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    opened = open_index(str(tmp_path / "new"), passage_encoder="00ee")
    np.testing.assert_array_equal(opened.passage_ids, ids)
    np.testing.assert_array_equal(opened.vectors(np.arange(298)), vectors.astype(np.float32))
    unit = vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    found = opened.search(unit[[4, 90, 297]] * 9, 3)
    exact = np.sort(unit[[4, 90, 297]] * 9 @ vectors.astype(np.float32).T, axis=1)[:, :-4:-1]
    np.testing.assert_allclose(found.scores, exact, rtol=1e-3)
    assert index(**places, index=str(tmp_path / "again"), config=config).reused  # type: ignore[arg-type]
    moved = opened.with_vectors(np.roll(vectors, 1, axis=0), tmp_path / "refreshed")
    np.testing.assert_array_equal(moved.passage_ids, ids)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_kinds_that_are_built_anew_do_not_look_at_a_previous_index(
    kind: Kind, tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    embeddings, config = write_shards(tmp_path / "e", *many_vectors, 1), IndexConfig(kind=kind)
    plain = index(embeddings=embeddings, index=str(tmp_path / "plain"), config=config)
    with_previous = index(embeddings=embeddings, index=str(tmp_path / "new"), previous="/nowhere", config=config)
    assert with_previous.reused
    assert with_previous == plain


def test_without_a_previous_index_the_key_is_what_it_was(
    tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    """Settings of updates are not in it, so that indices made by earlier versions are found again."""
    embeddings = write_shards(tmp_path / "e", *many_vectors, 1)
    plain = index(embeddings=embeddings, index=str(tmp_path / "plain"), config=IndexConfig(kind="ivf_sq8"))
    assert plain.config == dataclasses.asdict(IndexSettings(kind="ivf_sq8"))
    assert "built" not in plain.details
    loose = IndexConfig(kind="ivf_sq8", max_drift=3.0)
    assert index(embeddings=embeddings, index=str(tmp_path / "loose"), config=loose).reused
    previous = str(tmp_path / "plain")
    updated = [
        index(embeddings=embeddings, index=str(tmp_path / f"updated-{number}"), previous=previous, config=config)
        for number, config in enumerate([loose, dataclasses.replace(loose, max_drift=0.0)])
    ]
    assert [manifest.details["built"] for manifest in updated] == ["updated", "anew: max_drift is 0"]
    assert not any(manifest.reused for manifest in updated)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such artifact"),
        (lambda folder: (folder / "manifest.json").unlink(), "unfinished"),
        (lambda folder: (folder / "matrix.npy").unlink(), "matrix.npy is missing"),
        (lambda folder: flip_a_byte(folder / "index.faiss"), "index.faiss has another checksum"),
        (lambda folder: flip_a_byte(folder / "passage_ids.parquet"), "passage_ids.parquet has another checksum"),
    ],
)
def test_a_damaged_previous_index_is_no_error(
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    many_vectors: tuple[np.ndarray, np.ndarray],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = IndexConfig(kind="ivf_sq8")
    embeddings = write_shards(tmp_path / "e", *many_vectors, 1)
    index(embeddings=embeddings, index=str(tmp_path / "old"), config=config)
    new = write_shards(tmp_path / "f", *some_changed(*many_vectors), 1)
    damage(tmp_path / "old")
    built = index(embeddings=new, index=str(tmp_path / "new"), previous=str(tmp_path / "old"), config=config)
    assert "index: built anew: previous index" in caplog.text
    assert message in caplog.text
    plain = index(embeddings=new, index=str(tmp_path / "plain"), config=config)
    assert plain.reused
    assert plain == built


def test_the_previous_index_is_not_written_over(tmp_path: Path, many_vectors: tuple[np.ndarray, np.ndarray]) -> None:
    embeddings = write_shards(tmp_path / "e", *many_vectors, 1)
    place = str(tmp_path / "index")
    index(embeddings=embeddings, index=place)
    with pytest.raises(ConfigError, match="previous: expected another folder than the output"):
        index(embeddings=embeddings, index=f"{tmp_path}/e/../index/", previous=place)
