"""Objectives, freezing, rerank, refresh and file passages in the train stage, and resume with all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ralm.training.evaluation
import ralm.training.loop
import ralm.training.refresh
from components.train.config import TrainConfig
from components.train.stage import LOG, train
from ralm.artifacts.files import ralm_home
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.schemas import QUESTIONS
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import read_table, write_table
from ralm.errors import ConfigError
from ralm.model import open_model
from ralm.training.batches import Batches
from ralm.training.learner import Learner
from tests.conftest import toy_questions

CONFIG = TrainConfig(
    mode="joint",
    num_steps=6,
    batch_size=4,
    num_passages=3,
    num_retrieved=5,
    learning_rate=2e-3,
    retriever_learning_rate=1e-3,
    warmup_steps=1,
    dropout=0.1,
    precision="fp32",
)


@pytest.fixture
def inputs(toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> dict[str, str]:
    return {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}


def run(inputs: dict[str, str], output: Path, **changes: Any) -> tuple[Manifest, list[dict[str, Any]]]:
    manifest = train(**inputs, trained=str(output), config=dataclasses.replace(CONFIG, **changes))
    return manifest, read_table(str(output / LOG), "training_log/2").to_pylist()


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


@pytest.mark.parametrize("mode", ["joint", "query_side"])
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "pdist"},
        {"objective": "adist"},
        {"objective": "loop"},
        {"objective": "emdr2"},
        {"objective": "emdr2", "emdr2_level": "token"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_every_objective_moves_the_question_encoder(
    inputs: dict[str, str], tmp_path: Path, mode: str, settings: dict[str, str]
) -> None:
    """Defects 1 and 11: in Atlas ADist crashes, and EMDR2 explodes with the default temperature."""
    _, log = run(inputs, tmp_path / "trained", mode=mode, num_steps=2, temperature_score=1.0, **settings)
    assert all(math.isfinite(row["retriever_loss"]) and row["retriever_loss"] < 50 for row in log)
    after, before = open_model(str(tmp_path / "trained")), open_model(inputs["model"])
    assert after.fingerprints["question_encoder"] != before.fingerprints["question_encoder"]
    assert (after.fingerprints["passage_encoder"] != before.fingerprints["passage_encoder"]) == (mode == "joint")


def test_query_side_leaves_every_passage_weight_bit_identical(inputs: dict[str, str], tmp_path: Path) -> None:
    """Defect 2: in Atlas both encoders are one object, so the passage side moves while the index stays."""
    run(inputs, tmp_path / "trained", mode="query_side")
    before, after = open_model(inputs["model"]), open_model(str(tmp_path / "trained"))
    old, new = (load_file(model.passage_encoder_folder / "model.safetensors") for model in (before, after))
    assert old.keys() == new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    moved = load_file(after.question_encoder_folder / "model.safetensors")
    assert not all(torch.equal(value, moved[name]) for name, value in old.items())


def test_a_frozen_reader_teaches_without_learning(inputs: dict[str, str], tmp_path: Path) -> None:
    _, log = run(inputs, tmp_path / "trained", freeze_reader=True, temperature_score=1.0)
    before, after = open_model(inputs["model"]), open_model(str(tmp_path / "trained"))
    name = "model.safetensors"
    old, new = (load_file(model.reader_folder / name) for model in (before, after))
    assert all(torch.equal(value, new[key]) for key, value in old.items())
    assert after.fingerprints["passage_encoder"] != before.fingerprints["passage_encoder"]
    assert {row["reader_learning_rate"] for row in log} == {0.0}


def test_the_retriever_stands_still_for_its_first_steps(inputs: dict[str, str], tmp_path: Path) -> None:
    manifest, log = run(inputs, tmp_path / "frozen", freeze_retriever_steps=6)
    before = open_model(inputs["model"])
    assert manifest.details["fingerprints"]["passage_encoder"] == before.fingerprints["passage_encoder"]
    _, log = run(inputs, tmp_path / "trained", freeze_retriever_steps=4)
    assert [row["retriever_loss"] is None for row in log] == [True] * 4 + [False] * 2
    after = open_model(str(tmp_path / "trained"))
    assert after.fingerprints["passage_encoder"] != before.fingerprints["passage_encoder"]


def test_refresh_comes_by_schedule_and_tells_how_stale_the_index_was(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    whole = ralm.training.refresh.IndexRefresher.refresh

    def watch(self: Any, step: int, *, embed: Any, is_stopped: Any) -> bool:
        before = self.index
        done = whole(self, step, embed=embed, is_stopped=is_stopped)
        passages = self.passages.get(self.index.passage_ids)
        learner: Learner = embed.__self__
        expected = learner.embed_passages(passages)
        found = self.index.vectors(torch.arange(len(passages)).numpy())
        seen.append((step, bool(abs(found - expected).max() < 2e-2 and self.index is not before)))
        return done

    monkeypatch.setattr(ralm.training.refresh.IndexRefresher, "refresh", watch)
    _, log = run(
        inputs, tmp_path / "trained", refresh_schedule="0-4:2,5-9:9", retriever_learning_rate=0.02, schedule="constant"
    )
    assert seen == [(2, True), (5, True)]
    overlaps = [row["index_overlap"] for row in log]
    assert [overlap is not None for overlap in overlaps] == [False, False, True, False, False, True]
    assert all(0 <= overlap < 1 for overlap in overlaps if overlap is not None)


@pytest.mark.parametrize("place", ["update", "refresh"])
def test_stopped_with_a_renewed_index_and_again_gives_the_same_bytes(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Defects 4, 5 and 25: N updates, SIGTERM, and the rest equal 2N, index, both optimisers and schedules included."""
    settings = {"refresh_schedule": "2", "num_steps": 8, "retriever_learning_rate": 0.01, "evaluate_every_steps": 3}
    whole, whole_log = run(inputs, tmp_path / "whole", **settings)
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))

    def stop_once(original: Any, when: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        if place == "update":
            wrapped = stop_once(ralm.training.loop.report, lambda row: row["step"] == 5)
            patch.setattr(ralm.training.loop, "report", wrapped)
        else:
            refresher = ralm.training.refresh.IndexRefresher
            wrapped = stop_once(refresher.refresh, lambda self, step, **rest: step == 4)
            patch.setattr(refresher, "refresh", wrapped)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "stopped", **settings)
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    steps = [path.name for path in sorted(ralm_home().glob("checkpoints/*/*"))]
    expected = {
        "update": ["index-00000002", "index-00000004", "step-00000004", "step-00000005"],
        "refresh": ["index-00000002", "step-00000003", "step-00000004"],
    }
    assert steps == expected[place]
    again, log = run(inputs, tmp_path / "stopped", **settings)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    assert log == whole_log
    assert again.details["evaluations"] == whole.details["evaluations"]
    assert not list(ralm_home().glob("checkpoints/*"))


@pytest.mark.parametrize("place", ["evaluation", "refresh"])
def test_killed_in_long_work_loses_no_update(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A pod that is not given the time to end an evaluation or a refresh has its updates in a checkpoint."""
    settings = {"refresh_schedule": "4", "evaluate_every_steps": 3, "checkpoint_every_steps": 100}
    whole, _ = run(inputs, tmp_path / "whole", **settings)
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))

    def die(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        owner, name = {
            "evaluation": (ralm.training.evaluation, "predict"),
            "refresh": (ralm.training.refresh.IndexRefresher, "refresh"),
        }[place]
        patch.setattr(owner, name, die)
        with pytest.raises(MemoryError):
            run(inputs, tmp_path / "killed", **settings)
    newest = {"evaluation": "step-00000003", "refresh": "step-00000004"}[place]
    assert sorted(path.name for path in ralm_home().glob("checkpoints/*/step-*"))[-1] == newest
    again, _ = run(inputs, tmp_path / "killed", **settings)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert again.details["evaluations"] == whole.details["evaluations"]


def test_rerank_trains_on_the_best_by_the_encoder_of_now(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    take = Batches.take

    def watch(self: Batches, step: int) -> Any:
        batch = take(self, step)
        learner, refresher = self._learner, self._refresher
        question_BD = learner.embed_questions(batch.questions).numpy()
        score_BN = question_BD @ learner.embed_passages(refresher.passages.get(refresher.index.passage_ids)).T
        for scores, passages in zip(score_BN, batch.passages, strict=True):
            best = refresher.index.passage_ids[(-scores).argsort(kind="stable")[:5]]
            seen.append([passage.passage_id for passage in passages] == best.tolist())
        return batch

    monkeypatch.setattr(Batches, "take", watch)
    run(inputs, tmp_path / "trained", num_reranked=30, num_steps=4, retriever_learning_rate=0.02)
    assert len(seen) == 16
    assert all(seen)


def test_evaluation_on_the_way_is_kept_in_the_manifest(inputs: dict[str, str], tmp_path: Path) -> None:
    manifest, _ = run(inputs, tmp_path / "trained", num_steps=5, evaluate_every_steps=2, max_evaluate_questions=3)
    found = manifest.details["evaluations"]
    assert [row["step"] for row in found] == [2, 4]
    assert all(row["num_questions"] == 3 and 0 <= row["exact_match"] <= row["f1"] <= 1 for row in found)
    assert all(row["eval_loss"] > 0 for row in found)


def test_evaluation_on_the_way_changes_nothing_else(inputs: dict[str, str], tmp_path: Path) -> None:
    run(inputs, tmp_path / "plain", num_steps=3)
    run(inputs, tmp_path / "watched", num_steps=3, evaluate_every_steps=1)
    plain, watched = digests(tmp_path / "plain"), digests(tmp_path / "watched")
    assert {name for name in plain if plain[name] != watched[name]} == {"manifest.json"}


def test_attention_statistics_go_to_the_tracking_run(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(ralm.training.loop, "report", rows.append)
    run(inputs, tmp_path / "trained", num_steps=2, attention_statistics=True)
    names = [name for name in rows[0] if name.startswith("correlation_")]
    assert len(names) == 24
    assert all(-1 <= row[name] <= 1 for row in rows for name in names)
    assert any(row[name] for row in rows for name in names)


@pytest.fixture
def questions_with_passages(tmp_path: Path) -> str:
    """Questions that bring their own passages along."""
    passage = {"passage_id": 1, "title": "Granite", "section": "", "text": "Granite is grey."}
    empty = {"task": "qa", "target": None, "options": [], "label": None, "source_id": None, "positive_ids": []}
    rows = [{**empty, "passages": [passage], "date": None, "metadata": "{}", **row} for row in toy_questions("train")]

    def build(folder: Path) -> Contents:
        return Contents(rows={"train.parquet": write_table(folder / "train.parquet", rows, QUESTIONS)})

    output = str(tmp_path / "questions")
    produce(output, kind="questions", stage="toy", stage_version=1, inputs={}, config={"own": True}, build=build)
    return output


def test_file_passages_need_no_index(
    tiny_model: str, questions_with_passages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    update = Learner.update

    def watch(self: Learner, batch: Any, step: int) -> Any:
        texts.extend(passage.text for of_one in batch.passages for passage in of_one)
        return update(self, batch, step)

    monkeypatch.setattr(Learner, "update", watch)
    config = dataclasses.replace(CONFIG, mode="reader_only", file_passages=True, num_steps=2)
    train(model=tiny_model, questions=questions_with_passages, trained=str(tmp_path / "trained"), config=config)
    assert texts == ["Granite is grey."] * 8
    assert set(open_artifact(str(tmp_path / "trained"), "model").manifest.inputs) == {"model", "questions"}


def test_no_index_where_one_is_needed(tiny_model: str, toy_questions_artifact: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no --passages"):
        train(model=tiny_model, questions=toy_questions_artifact, trained=str(tmp_path / "trained"), config=CONFIG)
