"""Artifacts in an object store: the same as in a local one, and read by the part that is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.download.stage import download
from components.embed.stage import embed
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.index.stage import index
from ralm.artifacts import remote, tables
from ralm.artifacts.collect import collect_garbage
from ralm.artifacts.files import exists, is_folder, join, read_file
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.schemas import PASSAGES, embeddings_schema
from ralm.artifacts.store import Contents, files_location, produce, store_uri, stored_location
from ralm.artifacts.tables import TableWriter, iterate_rows, open_parquet, read_table
from ralm.corpus.lookup import PassageLookup
from ralm.errors import ArtifactError, DataError
from ralm.retriever.vectors import binary_column, iterate_vectors
from tests.conftest import toy_rows
from tests.s3_proxy import BUCKET, S3Proxy, client

GROUP_ROWS = 500


def run_chain(folder: Path, corpus: Path, model: Path, questions: Path) -> dict[str, Manifest]:
    """From sources to an evaluation, as a pipeline runs it."""
    places = {name: str(folder / name) for name in ("passages", "model", "questions", "index", "predictions")}
    made = {
        "passages": download(source=str(corpus), passages=places["passages"]),
        "model": download(source=str(model), model=places["model"]),
        "questions": download(source=str(questions), questions=places["questions"]),
    }
    for shard in range(2):
        made[f"embeddings {shard}"] = embed(
            passages=places["passages"],
            model=places["model"],
            embeddings=str(folder / "embeddings"),
            shard=shard,
            num_shards=2,
        )
    made["index"] = index(embeddings=str(folder / "embeddings"), index=places["index"])
    config = EvaluateConfig(num_passages=2, recall_at=(1, 5))
    made["predictions"] = evaluate(**places, config=config)
    return made


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s3") / "toy.jsonl"
    rows = [{"id": str(row["passage_id"]), "title": row["title"], "text": row["text"]} for row in toy_rows()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_chain_of_stages_makes_the_same_as_with_a_local_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    s3: S3Proxy,
    corpus: Path,
    tiny_model_files: Path,
    toy_question_files: Path,
) -> None:
    sources = (corpus, tiny_model_files, toy_question_files)
    remote_store = store_uri()
    monkeypatch.delenv("RALM_STORE_URI")
    local = run_chain(tmp_path / "local", *sources)
    monkeypatch.setenv("RALM_STORE_URI", remote_store)
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "one machine"))
    stored = run_chain(tmp_path / "remote", *sources)
    assert {name: made.fingerprint for name, made in stored.items()} == {
        name: made.fingerprint for name, made in local.items()
    }
    for name, made in stored.items():
        assert dataclasses.replace(made, data_uri=None) == local[name]
        place = files_location(made)
        assert place.startswith(f"{stored_location(made)}/")
        for entry in made.files:
            assert hashlib.sha256(read_file(join(place, entry.path))).hexdigest() == entry.sha256
        assert open_artifact(place, made.kind).fingerprint == made.fingerprint
    handed_over = sorted(path.name for path in (tmp_path / "remote" / "index").iterdir())
    assert handed_over == ["manifest.json"]
    assert not list((tmp_path / "one machine" / "work").iterdir())
    copies = {path.name for path in (tmp_path / "one machine" / "cache" / "remote").rglob("*") if path.is_file()}
    assert {"matrix.npy", "model.safetensors"} <= copies
    assert not any(name.endswith(".parquet") for name in copies)  # passages, questions and vectors are read in place

    puts = len(s3.puts())
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "another machine"))
    again = run_chain(tmp_path / "again", *sources)
    assert all(made.reused for made in again.values())
    assert {name: made.fingerprint for name, made in again.items()} == {
        name: made.fingerprint for name, made in local.items()
    }
    assert len(s3.puts()) == puts

    outputs = f"s3://{BUCKET}/outputs"
    for shard in range(2):
        given = {"passages": files_location(again["passages"]), "model": stored_location(again["model"])}
        assert embed(**given, embeddings=f"{outputs}/embeddings", shard=shard, num_shards=2).reused
    assert index(embeddings=f"{outputs}/embeddings", index=f"{outputs}/index").reused
    assert open_artifact(f"{outputs}/index", "index").fingerprint == local["index"].fingerprint


def make_passages(folder: Path, num_parts: int = 3, num_groups: int = 8) -> list[dict[str, Any]]:
    """A passages artifact whose row groups have about 150 kB each; returns the rows."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(num_parts * num_groups * GROUP_ROWS)
    rows = [{**toy_rows()[0], "passage_id": int(number), "text": rng.bytes(150).hex()} for number in ids]

    def build(work: Path) -> Contents:
        size = len(rows) // num_parts
        for number in range(num_parts):
            with TableWriter(work / f"part-{number:05d}.parquet", PASSAGES, GROUP_ROWS) as writer:
                writer.write(rows[number * size : (number + 1) * size])
        return Contents(rows={f"part-{number:05d}.parquet": size for number in range(num_parts)})

    produce(str(folder), kind="passages", stage="toy", stage_version=1, inputs={}, config={}, build=build)
    return rows


def test_passages_are_read_by_row_group(tmp_path: Path, s3: S3Proxy, ralm_home: Path) -> None:
    rows = make_passages(tmp_path / "p")
    artifact = open_artifact(str(tmp_path / "p"), "passages")
    size = sum(entry.bytes for entry in artifact.manifest.files)
    s3.requests.clear()
    lookup = PassageLookup(str(tmp_path / "p"))
    assert lookup.num_passages == 12_000
    opened = s3.got_bytes(".parquet")
    assert opened < size / 8  # ids and footers
    assert lookup.get([rows[0]["passage_id"]])[0].text == rows[0]["text"]
    assert opened + size / 30 < s3.got_bytes(".parquet") < opened + size / 20  # one of 24 row groups
    seen = len(s3.requests)
    lookup.get([row["passage_id"] for row in rows[:GROUP_ROWS]])
    assert len(s3.requests) == seen  # the group is kept
    wanted = [rows[place]["passage_id"] for place in (600, 4100, 8100, 8101, 600)]
    assert [found.passage_id for found in lookup.get(wanted)] == wanted
    assert len(s3.requests) == seen + 3
    assert not list(ralm_home.rglob("*.parquet"))


def test_rows_of_several_files_are_fetched_at_the_same_time(tmp_path: Path, s3: S3Proxy) -> None:
    rows = make_passages(tmp_path / "p", num_parts=4, num_groups=1)
    lookup = PassageLookup(str(tmp_path / "p"))
    waiting = [0, 0]

    def wait() -> None:
        waiting[0] += 1
        waiting[1] = max(waiting)

    s3.fail("GET", ".parquet", then=wait, stall_s=0.3, times=4)
    lookup.get([rows[place]["passage_id"] for place in range(0, 2000, 250)])
    assert waiting == [4, 4]


def test_a_slice_of_a_table_reads_its_row_groups_and_columns(tmp_path: Path, s3: S3Proxy) -> None:
    rows = make_passages(tmp_path / "p", num_parts=1)
    artifact = open_artifact(str(tmp_path / "p"), "passages")
    s3.requests.clear()
    found = list(iterate_rows(artifact.tables(), "passages/1", start=700, stop=1200, columns=["text"]))
    assert [text for table in found for text in table.column("text").to_pylist()] == [
        row["text"] for row in rows[700:1200]
    ]
    assert s3.got_bytes() < artifact.manifest.files[0].bytes / 2
    s3.requests.clear()
    ids = read_table(artifact.file("part-00000.parquet"), "passages/1", ["passage_id"])
    assert ids.column(0).to_pylist() == [row["passage_id"] for row in rows]
    assert s3.got_bytes() < artifact.manifest.files[0].bytes / 8


def test_vectors_come_one_row_group_at_a_time(tmp_path: Path, s3: S3Proxy) -> None:
    vector_ND = np.random.default_rng(0).normal(size=(4 * 1000, 64)).astype(np.float16)
    path = tmp_path / "shard.parquet"
    schema = embeddings_schema(64, "f16", "e" * 64)
    with TableWriter(path, schema, 1000) as writer:
        writer.write(pa.table({"passage_id": np.arange(4000), "vector": binary_column(vector_ND, "f16")}))
    url = f"{store_uri()}/shard.parquet"
    remote.upload(path, url)
    s3.requests.clear()
    groups, sent = [], []
    for _, vectors in iterate_vectors(url):
        groups.append(np.array(vectors))
        sent.append(s3.got_bytes())
    np.testing.assert_array_equal(np.concatenate(groups), vector_ND)
    assert len(sent) == 4
    steps = np.diff(sent)
    assert (np.abs(steps - 1000 * (128 + 8)) < 4000).all()


def test_an_empty_table_and_one_of_another_schema(tmp_path: Path, s3: S3Proxy) -> None:
    TableWriter(tmp_path / "empty.parquet", PASSAGES).close()
    url = f"{store_uri()}/empty.parquet"
    remote.upload(tmp_path / "empty.parquet", url)
    assert read_table(url, "passages/1").num_rows == 0
    with pytest.raises(ArtifactError, match="expected a questions/1 table, found passages/1"):
        open_parquet(url, "questions/1")
    with pytest.raises(ArtifactError, match="no such file, expected a passages/1 table"):
        open_parquet(f"{store_uri()}/nothing.parquet", "passages/1")
    remote.write_file(url, b"no parquet")
    with pytest.raises(ArtifactError, match="no readable Parquet file"):
        open_parquet(url, "passages/1")


def test_what_another_machine_publishes_is_seen_at_once(s3: S3Proxy) -> None:
    place = f"{store_uri()}/folder"
    remote.write_file(f"{place}/one", b"1")
    assert is_folder(place)
    assert not exists(f"{place}/two")
    client(s3.url).put_object(Bucket=BUCKET, Key=f"{place}/two".removeprefix(f"s3://{BUCKET}/"), Body=b"2")
    assert exists(f"{place}/two")
    assert remote.file_sizes(place) == {"one": 1, "two": 1}
    assert remote.list_folder(place) == [f"{place}/one", f"{place}/two"]
    assert (remote.file_sizes(f"{place}/three"), exists(f"{place}/three")) == ({}, False)
    with pytest.raises(DataError, match=r"folder: is a directory"):
        read_file(place)


def test_garbage_collection_leaves_the_artifacts_and_cleans_this_machine(
    tmp_path: Path, s3: S3Proxy, ralm_home: Path
) -> None:
    def build(work: Path) -> Contents:
        (work / "file").write_text("content")
        return Contents()

    made = produce(str(tmp_path / "o"), kind="t", stage="t", stage_version=1, inputs={}, config={}, build=build)
    copy = open_artifact(str(tmp_path / "o"), "t").local("file")
    left = ralm_home / "work" / "left"
    left.mkdir()
    for days, is_there in ((1, True), (0, False)):
        assert collect_garbage(roots=[], keep_days=days, is_dry_run=False) == []
        assert (copy.exists(), left.exists()) == (is_there, is_there)
    assert open_artifact(stored_location(made), "t").fingerprint == made.fingerprint


def test_a_whole_table_comes_in_pieces(tmp_path: Path, s3: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_passages(tmp_path / "p", num_parts=1)
    place = open_artifact(str(tmp_path / "p"), "passages").file("part-00000.parquet")
    monkeypatch.setattr(tables, "BYTES_AT_ONCE", 200_000)
    found = read_table(place, "passages/1")
    assert found.column("text").to_pylist() == [row["text"] for row in rows]
    assert found.schema.equals(PASSAGES)
