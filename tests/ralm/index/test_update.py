"""An index out of an earlier one: the same lists and codes as its trained part gives to all vectors, and when not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from ralm.artifacts.manifest import Artifact, open_artifact
from ralm.artifacts.schemas import PASSAGE_IDS as PASSAGE_IDS_SCHEMA
from ralm.artifacts.store import Contents, build_artifact
from ralm.artifacts.tables import write_table
from ralm.errors import ConfigError
from ralm.index import kept_codes
from ralm.index.approximate import FAISS_FILE, ApproximateSearcher, Effort
from ralm.index.build import finish_index, read_layout
from ralm.index.config import IndexSettings, UpdateSettings
from ralm.index.drift import measure_fit
from ralm.index.kept_codes import UPDATABLE, match_rows
from ralm.index.matrix import create_matrix, to_float32, to_storage
from ralm.index.recall import matrix_products
from ralm.index.search import PASSAGE_IDS, open_index
from ralm.index.tuning import make_probes, measure_recall
from ralm.index.update import PreviousError, open_previous, update_index

KINDS = sorted(UPDATABLE)
ENCODER = "00ee"
ANY_DRIFT: dict[str, Any] = {"max_drift": 1e9, "max_added": 1.0}
Corpus = tuple[np.ndarray, np.ndarray]


def clustered(count: int, size: int, *, seed: int, num_clusters: int = 60, first_cluster: int = 0) -> np.ndarray:
    """Vectors of length 0.5 to 2 around fixed centres; the seed chooses the vectors, not the centres."""
    center = np.random.default_rng(7).normal(size=(200, size))[first_cluster : first_cluster + num_clusters]
    generator = np.random.default_rng(seed)
    vector = center[generator.integers(num_clusters, size=count)] + 0.7 * generator.normal(size=(count, size))
    vector *= generator.uniform(0.5, 2, size=(count, 1)) / np.linalg.norm(vector, axis=1, keepdims=True)
    return vector.astype(np.float32)


def made(
    folder: Path, corpus: Corpus, settings: UpdateSettings, previous: Artifact | None = None, encoder: str = ENCODER
) -> Artifact:
    """An index artifact, as the stage makes it."""
    ids, vectors = corpus

    def build(work: Path) -> Contents:
        matrix = create_matrix(work, settings.storage, *vectors.shape)
        matrix[:] = to_storage(vectors, settings.storage)
        write_table(work / PASSAGE_IDS, pa.table({"passage_id": ids}), PASSAGE_IDS_SCHEMA)
        if previous is None:
            details, counts = finish_index(work, matrix, settings), {}
        else:
            update = update_index(work, matrix, ids, previous, settings, encoder)
            details, counts = update.details, update.counts
        details = {**details, "passages": "00aa", "passage_encoder": encoder}
        return Contents(rows={PASSAGE_IDS: len(ids)}, counts=counts, details=details)

    config = settings.without_update
    options: dict[str, Any] = {"kind": "index", "version": 1, "stage": "made", "stage_version": 1, "seed": 0}
    build_artifact(folder, build, config=config, inputs={}, **options)
    return open_artifact(str(folder), "index")


def first_corpus(count: int = 1200, size: int = 16) -> Corpus:
    return np.random.default_rng(1).permutation(10**6)[:count].astype(np.int64), clustered(count, size, seed=1)


def edited(corpus: Corpus, *, seed: int, changed: int = 40, removed: int = 150, added: int = 100) -> Corpus:
    """Some vectors changed, some passages gone, some new, and all in another order."""
    generator = np.random.default_rng(seed)
    ids, vectors = corpus[0].copy(), corpus[1].copy()
    vectors[generator.choice(len(ids), changed, replace=False)] = clustered(changed, vectors.shape[1], seed=seed)
    stays = generator.permutation(len(ids))[removed:]
    new_ids = 10**6 * seed + np.arange(added, dtype=np.int64)
    ids = np.concatenate([ids[stays], new_ids])
    vectors = np.concatenate([vectors[stays], clustered(added, vectors.shape[1], seed=seed + 100)])
    order = generator.permutation(len(ids))
    return ids[order], vectors[order]


def faiss_bytes(artifact: Artifact) -> bytes:
    return artifact.local(FAISS_FILE).read_bytes()


def added_to_the_trained_part(trained: Artifact, corpus: Corpus, settings: IndexSettings, path: Path) -> bytes:
    """The reference: faiss's own `add` of all vectors to the emptied index."""
    index = faiss.read_index(str(trained.local(FAISS_FILE)))
    index.reset()
    with matrix_products():
        index.add(to_float32(to_storage(corpus[1], settings.storage)))
    faiss.write_index(index, str(path))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "storage"), [*((kind, "f16") for kind in KINDS), ("ivf_flat", "f32"), ("ivf_flat", "bf16"), ("pq", "bf16")]
)
def test_equals_the_trained_part_filled_with_all_vectors(
    kind: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two updates, in blocks that cut lists and packed codes anywhere; equal bytes of the whole file."""
    monkeypatch.setattr(kept_codes, "BLOCK_ROWS", 77)
    settings = UpdateSettings(kind=kind, storage=storage, **ANY_DRIFT)  # type: ignore[arg-type]
    corpus = first_corpus()
    trained = previous = made(tmp_path / "0", corpus, settings)
    for version in (1, 2):
        corpus = edited(corpus, seed=version)
        previous = made(tmp_path / str(version), corpus, settings, previous)
        assert previous.manifest.details["built"] == "updated"
        reference = added_to_the_trained_part(trained, corpus, settings, tmp_path / "reference")
        assert faiss_bytes(previous) == reference
    opened = open_index(previous.location, passage_encoder=ENCODER)
    np.testing.assert_array_equal(opened.passage_ids, corpus[0])
    found = opened.search(corpus[1][:20], 5)
    np.testing.assert_array_equal(found.passage_ids, corpus[0][found.rows])


@pytest.mark.parametrize("kind", KINDS)
def test_only_new_and_changed_vectors_are_encoded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = UpdateSettings(kind=kind, **ANY_DRIFT)  # type: ignore[arg-type]
    ids, vectors = first_corpus()
    previous = made(tmp_path / "0", (ids, vectors), settings)
    vectors = vectors.copy()
    vectors[5] += 0.5  # changed; 7 other passages are gone, 3 new
    new = (np.concatenate([ids[:-7], [1, 2, 3]]), np.concatenate([vectors[:-7], clustered(3, 16, seed=9)]))
    encoded = []

    def counted(stored: np.ndarray) -> np.ndarray:
        encoded.append(len(stored))
        return to_float32(stored)

    monkeypatch.setattr(kept_codes, "to_float32", counted)
    updated = made(tmp_path / "1", new, settings, previous)
    assert sum(encoded) == 4
    assert updated.manifest.counts == {"kept": 1192, "added": 4, "removed": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_corpus_gives_the_same_file_and_then_the_same_artifact(kind: str, tmp_path: Path) -> None:
    settings = UpdateSettings(kind=kind)  # type: ignore[arg-type]
    first = made(tmp_path / "0", first_corpus(), settings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    second = made(tmp_path / "1", first_corpus(), settings, first)
    assert faiss_bytes(second) == faiss_bytes(first)
    assert second.manifest.counts == {"kept": 1200, "added": 0, "removed": 0}
    since = second.manifest.details["since_training"]
    assert set(since.values()) == {0.0}
    assert since.keys() >= {"added_passages", "added_share", "quantisation_error"}
    assert made(tmp_path / "2", first_corpus(), settings, second).fingerprint == second.fingerprint
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()} == before, "only read"


@pytest.mark.parametrize(
    "kind", [kind if kind == "ivf_pq" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_recall_is_that_of_a_full_build(kind: str, tmp_path: Path) -> None:
    """The contract: within 0.002, with the same effort, when 1, 5 and 20 % of the passages were replaced.

    On average over the three: full builds differ by about 0.001 among themselves, by what they are trained on.
    """
    settings = UpdateSettings(kind=kind)  # type: ignore[arg-type]
    count = 20_000
    ids, vectors = first_corpus(count, 64)
    previous = made(tmp_path / "old", (ids, vectors), settings)
    built, losses = [], []
    for share in (0.01, 0.05, 0.2):
        rows = np.random.default_rng(2).choice(count, round(share * count), replace=False)
        new_ids, new_vectors = ids.copy(), vectors.copy()
        new_ids[rows], new_vectors[rows] = 10**7 + rows, clustered(len(rows), 64, seed=3)
        updated = made(tmp_path / f"updated-{share}", (new_ids, new_vectors), settings, previous)
        full = made(tmp_path / f"full-{share}", (new_ids, new_vectors), settings)
        options = full.manifest.details["options"]
        effort = Effort(breadth=options.get("nprobe", 1), rerank=options.get("rerank", 0))
        recall = recall_at_10(full, effort)
        assert recall > 0.9
        losses.append(recall - recall_at_10(updated, effort))
        built.append(updated.manifest.details["built"])
    assert built[:2] == ["updated", "updated"]
    assert np.mean(losses) <= 0.002
    assert max(losses) <= 0.004


def recall_at_10(artifact: Artifact, effort: Effort) -> float:
    matrix = np.load(artifact.local("matrix.npy"), mmap_mode="r")
    layout = read_layout(artifact.manifest.details)
    searcher = ApproximateSearcher(faiss.read_index(str(artifact.local(FAISS_FILE))), matrix, layout, effort)
    return measure_recall(searcher.search, make_probes(matrix, 2000, seed=11), matrix)["recall_at_10"]


def test_facts_of_the_training_go_from_version_to_version(tmp_path: Path) -> None:
    settings = UpdateSettings(kind="ivf_sq8", **ANY_DRIFT)
    corpus = first_corpus()
    first = previous = made(tmp_path / "0", corpus, settings)
    index, matrix = faiss.read_index(str(first.local(FAISS_FILE))), np.load(first.local("matrix.npy"))
    fit = measure_fit(index, "ivf_sq8", matrix)
    counts = {"passages": 1200, "added": 0}
    for version in (1, 2):
        corpus = edited(corpus, seed=version, changed=0)
        previous = made(tmp_path / str(version), corpus, settings, previous)
        details = previous.manifest.details
        counts = {"passages": counts["passages"] - 50, "added": counts["added"] + 100}
        assert details["training"] == {"passages": 1200, **fit}
        assert details["since_training"]["added_passages"] == counts["added"]
        assert details["since_training"]["added_share"] == round(counts["added"] / counts["passages"], 4)
        index, matrix = faiss.read_index(str(previous.local(FAISS_FILE))), np.load(previous.local("matrix.npy"))
        for name, value in measure_fit(index, "ivf_sq8", matrix).items():
            assert details["since_training"][name] == pytest.approx(value / fit[name] - 1, abs=1e-4)


def test_fit_is_what_it_says(tmp_path: Path) -> None:
    """Against plain numpy: distance to the centroid of the list, and squares of the sizes of the lists."""
    ids, vectors = first_corpus()
    index = faiss.read_index(
        str(made(tmp_path / "0", (ids, vectors), UpdateSettings(kind="ivf_flat")).local(FAISS_FILE))
    )
    stored = vectors.astype(np.float16)
    center = index.quantizer.reconstruct_n(0, index.nlist)
    nearest = (stored.astype(np.float32) @ center.T).argmax(1)
    sizes = np.bincount(nearest, minlength=index.nlist)
    spread = ((stored.astype(np.float64) - stored.astype(np.float64).mean(0)) ** 2).sum()
    fit = measure_fit(index, "ivf_flat", stored)
    assert fit["quantisation_error"] == pytest.approx(((stored - center[nearest]) ** 2).sum() / spread, rel=1e-4)
    assert fit["imbalance"] == pytest.approx(index.nlist * (sizes**2).sum() / 1200**2, rel=1e-4)


def other_subject(corpus: Corpus, count: int) -> Corpus:
    """The corpus and passages of clusters that it did not have."""
    ids, vectors = corpus
    new = clustered(count, vectors.shape[1], seed=5, first_cluster=100, num_clusters=2)
    return np.concatenate([ids, 10**7 + np.arange(count)]), np.concatenate([vectors, new])


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_that_moved_away_is_trained_anew(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ralm")
    settings = UpdateSettings(kind=kind)  # type: ignore[arg-type]
    corpus = first_corpus(2000, 32)
    previous = made(tmp_path / "0", corpus, settings)
    near = made(tmp_path / "near", edited(corpus, seed=1, changed=10, removed=10, added=10), settings, previous)
    assert near.manifest.details["built"] == "updated"
    moved = other_subject(corpus, 1000)
    new = made(tmp_path / "1", moved, settings, near)
    reason = new.manifest.details["built"]
    assert reason.startswith(("anew: quantisation_error grew by ", "anew: imbalance grew by "))
    assert reason.endswith("since the training, max_drift is 0.02")
    assert f"built {reason}" in caplog.text
    assert new.manifest.details.keys().isdisjoint({"training", "since_training"})
    assert faiss_bytes(new) == faiss_bytes(made(tmp_path / "full", moved, settings))
    again = made(tmp_path / "2", moved, settings, new)
    assert again.manifest.details["training"]["passages"] == 3000


def test_many_new_vectors_are_trained_for(tmp_path: Path) -> None:
    """Added vectors count over all versions since the training."""
    settings = UpdateSettings(kind="pq_fast_scan", max_drift=1e9, max_added=0.1)
    corpus = first_corpus()
    previous = made(tmp_path / "0", corpus, settings)
    built = []
    for version in (1, 2):
        corpus = edited(corpus, seed=version, changed=0, removed=80, added=80)
        previous = made(tmp_path / str(version), corpus, settings, previous)
        built.append(previous.manifest.details["built"])
    reason = "anew: 160 of 1200 vectors were added since the training, max_added is 0.1"
    assert built == ["updated", reason]


def test_a_missed_recall_target_is_trained_for_once(tmp_path: Path) -> None:
    corpus = first_corpus(2000, 32)
    moved = other_subject((corpus[0][:200], corpus[1][:200]), 1800)
    settings = UpdateSettings(kind="pq", code_size=8, rerank=16, recall_target=0.3, **ANY_DRIFT)
    previous = made(tmp_path / "0", corpus, settings)
    reached, full = previous.manifest.details, made(tmp_path / "full", moved, settings).manifest.details
    loose = made(tmp_path / "loose", moved, dataclasses.replace(settings, recall_target=0.01), previous)
    assert (reached["recall_target_reached"], loose.manifest.details["built"]) == (True, "updated")
    between = (loose.manifest.details["recall"]["recall_at_10"] + full["recall"]["recall_at_10"]) / 2
    strict = dataclasses.replace(settings, recall_target=between)
    new = made(tmp_path / "1", moved, strict, previous)
    assert new.manifest.details["built"].startswith("anew: the update misses recall_target")
    assert new.manifest.details["recall_target_reached"]
    never = dataclasses.replace(settings, recall_target=1.0)
    missed = made(tmp_path / "2", corpus, never)
    assert made(tmp_path / "3", moved, never, missed).manifest.details["built"] == "updated", "training did not help"


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "kind is ivf_sq4, of the previous index ivf_sq8": ({"kind": "ivf_sq4"}, ENCODER),
    "storage is f32, of the previous index f16": ({"storage": "f32"}, ENCODER),
    "passage_encoder is 00ff, of the previous index 00ee": ({}, "00ff"),
    "nlist is 20, of the previous index 30": ({"nlist": 20}, ENCODER),
    "max_drift is 0": ({"max_drift": 0.0}, ENCODER),
}


@pytest.mark.parametrize("reason", MISFITS)
def test_a_previous_index_that_does_not_fit(reason: str, tmp_path: Path) -> None:
    changes, encoder = MISFITS[reason]
    settings = UpdateSettings(kind="ivf_sq8")
    corpus = first_corpus()
    previous = made(tmp_path / "0", corpus, settings)
    assert previous.manifest.details["options"]["nlist"] == 30
    other = dataclasses.replace(settings, **changes)
    new = made(tmp_path / "1", corpus, other, previous, encoder)
    assert new.manifest.details["built"] == f"anew: {reason}"
    full = made(tmp_path / "full", corpus, other, encoder=encoder)
    assert new.manifest.files == full.manifest.files
    assert {name: value for name, value in new.manifest.details.items() if name != "built"} == full.manifest.details


def test_the_layout_of_the_previous_index_is_kept(tmp_path: Path) -> None:
    corpus = first_corpus()
    previous = made(tmp_path / "0", corpus, UpdateSettings(kind="ivf_pq", nlist=11, code_size=2))
    for settings in (UpdateSettings(kind="ivf_pq"), UpdateSettings(kind="ivf_pq", nlist=11, code_size=2)):
        details = made(tmp_path / "1", corpus, settings, previous).manifest.details
        assert (details["built"], details["options"]["nlist"], details["options"]["code_size"]) == ("updated", 11, 2)
    other_code = UpdateSettings(kind="ivf_pq", code_size=4)
    details = made(tmp_path / "1", corpus, other_code, previous).manifest.details
    assert details["built"] == "anew: code_size is 4, of the previous index 2"
    few = (corpus[0][:10], corpus[1][:10])
    many_lists = made(tmp_path / "many", corpus, UpdateSettings(kind="ivf_sq8", nlist=11))
    details = made(tmp_path / "1", few, UpdateSettings(kind="ivf_sq8"), many_lists).manifest.details
    assert details["built"] == "anew: 10 passages are fewer than the 11 lists of the previous index"
    with pytest.raises(ConfigError, match="ivf_pq needs at least 256 passages, found 10"):
        made(tmp_path / "1", few, UpdateSettings(kind="ivf_pq"), previous)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("name", [FAISS_FILE, PASSAGE_IDS])
def test_damaged_codes_and_ids_are_not_taken_over(name: str, tmp_path: Path) -> None:
    settings = UpdateSettings(kind="ivf_sq8")
    previous = made(tmp_path / "0", first_corpus(), settings)
    flip_a_byte(previous.local(name))
    with pytest.raises(PreviousError, match=f"0: damaged: {name} has another checksum"):
        made(tmp_path / "1", first_corpus(), settings, previous)


def test_a_damaged_vector_counts_as_changed(tmp_path: Path) -> None:
    settings = UpdateSettings(kind="ivf_sq8")
    previous = made(tmp_path / "0", first_corpus(), settings)
    flip_a_byte(previous.local("matrix.npy"))
    updated = made(tmp_path / "1", first_corpus(), settings, previous)
    assert updated.manifest.counts == {"kept": 1199, "added": 1, "removed": 1}
    assert faiss_bytes(updated) == faiss_bytes(previous)


BREAK: dict[str, Callable[[Path], object]] = {
    "no such artifact": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "unfinished": lambda folder: (folder / "manifest.json").unlink(),
    "index.faiss is missing": lambda folder: (folder / "index.faiss").unlink(),
    "no valid manifest|no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("message", BREAK)
def test_a_previous_index_that_is_not_there(message: str, tmp_path: Path) -> None:
    made(tmp_path / "0", first_corpus(300), UpdateSettings(kind="ivf_sq8"))
    BREAK[message](tmp_path / "0")
    with pytest.raises(PreviousError, match=message):
        open_previous(str(tmp_path / "0"))


def test_on_a_machine_with_a_gpu_it_is_said_that_the_cpu_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ralm")
    settings = UpdateSettings(kind="ivf_sq8")
    ids, vectors = first_corpus()
    previous = made(tmp_path / "0", (ids, vectors), settings)
    (tmp_path / "1").mkdir()
    matrix = create_matrix(tmp_path / "1", "f16", *vectors.shape)
    matrix[:] = vectors
    update = update_index(tmp_path / "1", matrix, ids, previous, settings, ENCODER, torch.device("cuda"))
    assert update.details["built"] == "updated"
    assert "an update is made on the CPU" in caplog.text


def test_rows_are_matched_by_id_and_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_codes, "BLOCK_ROWS", 2)
    old = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [6.0, 7.0]], np.float16)
    old_ids = np.array([50, 10, 40, 20, 20])
    new_ids = np.array([40, 10, 60, 50, 20, 20, 20])
    new = np.array([[4, 5], [2, 3.5], [6, 7], [-0.0, 1], [6, 7], [6, 7], [6, 8]], np.float16)
    old_rows, new_rows = match_rows(old_ids, old, new_ids, new)
    assert old_rows[:4].tolist() == [2, -1, -1, -1], "another value, another id, another bit"
    assert sorted(old_rows[4:].tolist()) == [-1, -1, 3], "the codes of an id that occurs twice go to one row"
    assert new_rows[[0, 1, 2, 4]].tolist() == [-1, -1, 0, -1]
    assert old_rows[new_rows[3]] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_occurs_twice_loses_no_row(kind: str, tmp_path: Path) -> None:
    settings = UpdateSettings(kind=kind, **ANY_DRIFT)  # type: ignore[arg-type]
    ids, vectors = first_corpus()
    previous = made(tmp_path / "0", (ids, vectors), settings)
    doubled = (np.concatenate([ids, ids[:50]]), np.concatenate([vectors, vectors[:50]]))
    updated = made(tmp_path / "1", doubled, settings, previous)
    assert updated.manifest.details["built"] == "updated"
    assert faiss_bytes(updated) == added_to_the_trained_part(previous, doubled, settings, tmp_path / "reference")


@pytest.mark.parametrize("values", [{"max_drift": -0.1}, {"max_drift": float("nan")}, {"max_added": 1.5}])
def test_limits_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        UpdateSettings(kind="ivf_pq", **values)  # type: ignore[arg-type]
