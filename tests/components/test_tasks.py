"""Every task trains and is evaluated on real excerpts, with a tiny model in the formats of official Atlas models."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ralm.training.evaluation
from components.download.config import DownloadConfig
from components.download.stage import download
from components.embed.stage import embed
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.index.stage import index
from components.report.stage import report
from components.train.config import TrainConfig
from components.train.stage import train
from ralm.artifacts.tables import read_table
from ralm.errors import DataError
from ralm.model_config import ModelConfig
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverSettings
from ralm.tasks.catalog import TASKS
from ralm.tasks.config import TaskConfig
from tests.conftest import write_tiny_model

PROMPT = "question: {question} answer: <extra_id_0>"
ATLAS = ModelConfig(
    reader=ReaderConfig(question_format=PROMPT, target_format="<extra_id_0> {target}", max_target_tokens=12),
    retriever=RetrieverSettings(question_format=PROMPT, max_question_tokens=96, max_passage_tokens=96),
)
CHOICES = TaskConfig(permutations="cyclic", min_words=3, mlm_noise_density=0.3)
UNSCORED = {"fever": "test", "kilt": "test"}
"""Splits whose rows have no answer."""


@pytest.fixture(scope="module")
def places(session_home: Path, toy_passages: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Passages, index and model; the reader's tokenizer knows every letter."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tiny_model(folder / "files", [" ".join(string.ascii_letters + string.digits)] * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        download(source=str(folder / "files"), model=str(folder / "model"), config=DownloadConfig(model=ATLAS))
        embed(passages=toy_passages, model=str(folder / "model"), embeddings=str(folder / "embeddings"))
        index(embeddings=str(folder / "embeddings"), index=str(folder / "index"))
    return {"passages": toy_passages, "index": str(folder / "index"), "model": str(folder / "model")}


@pytest.fixture
def questions_of(task_questions: Callable[[str], str], tmp_path: Path) -> Callable[[str], str]:
    """Makes the questions of a task."""

    def make(task: str) -> str:
        if task != "base":
            return task_questions(task)
        rows = [{"task": "base", "question": f"say {word}", "target": word} for word in ("amber", "iron", "quiet")]
        for split in ("train", "dev"):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        download(source=str(tmp_path), questions=str(tmp_path / "questions"))
        return str(tmp_path / "questions")

    return make


def ask(places: dict[str, str], questions: str, output: Path, **settings: Any) -> tuple[list[dict[str, Any]], Any]:
    config = EvaluateConfig(**{"num_passages": 2, "recall_at": (1, 3), "task": CHOICES, "split": "dev", **settings})
    evaluate(**places, questions=questions, predictions=str(output), config=config)
    rows = read_table(str(output / f"{config.split}.parquet"), "predictions/1").to_pylist()
    return rows, json.loads((output / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_trains_and_is_evaluated(
    task: str, places: dict[str, str], questions_of: Callable[[str], str], tmp_path: Path
) -> None:
    questions = questions_of(task)
    config = TrainConfig(
        num_steps=3,
        batch_size=2,
        num_passages=2,
        learning_rate=1e-3,
        warmup_steps=1,
        target_choice="random",
        precision="fp32",
        task=CHOICES,
    )
    manifest = train(**places, questions=questions, trained=str(tmp_path / "trained"), config=config)
    assert manifest.counts["steps"] == 3
    assert manifest.details["fingerprints"] != {}
    log = read_table(str(tmp_path / "trained" / "training_log.parquet"), "training_log/2").to_pylist()
    assert all(row["reader_loss"] > 0 for row in log)

    trained = {**places, "model": str(tmp_path / "trained")}
    before, _ = ask(places, questions, tmp_path / "before")
    rows, metrics = ask(trained, questions, tmp_path / "after")
    assert len(rows) == metrics["num_questions"] > 0
    assert set(TASKS[task].metrics) <= set(metrics)
    assert all(0 <= metrics[name] <= 1 for name in TASKS[task].metrics)
    assert [row["eval_loss"] for row in rows] != [row["eval_loss"] for row in before], "it learnt something"
    assert all(len(row["passage_ids"]) == len(row["scores"]) == 3 for row in rows)
    if task == "multiple_choice":
        assert all(sum(row["choice_probabilities"]) == pytest.approx(1) for row in rows)
        assert set(metrics["groups"]) == {"stem", "social_sciences"}
    if task in ("mlm", "lm", "section"):
        assert all(int(row["question_id"]) not in row["passage_ids"] for row in rows), "not the text itself"
    inputs = {"before": str(tmp_path / "before"), "after": str(tmp_path / "after"), "passages": places["passages"]}
    report(**inputs, report=str(tmp_path / "report"))
    assert TASKS[task].metrics[0] in json.loads((tmp_path / "report" / "metrics.json").read_text())["difference"]


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(UNSCORED))
def test_rows_without_answers_are_asked(
    task: str, places: dict[str, str], task_questions: Callable[[str], str], tmp_path: Path
) -> None:
    """Defect 27: KILT's test lines crashed."""
    rows, metrics = ask(places, task_questions(task), tmp_path / "out", split=UNSCORED[task])
    assert rows
    assert all(row["answers"] == [] and row["accuracy"] is None and row["eval_loss"] is None for row in rows)
    assert set(metrics) <= {"num_questions", "recall_title_at_1", "recall_title_at_3"}


@pytest.mark.slow
def test_kilts_claims_are_answered_in_words(
    places: dict[str, str], task_questions: Callable[[str], str], tmp_path: Path
) -> None:
    rows, _ = ask(places, task_questions("kilt/fever"), tmp_path / "out")
    assert {answer for row in rows for answer in row["answers"]} <= {"true", "false", "maybe"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["closed_book", "retrieve_only"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_in_the_other_modes(
    task: str, mode: str, places: dict[str, str], questions_of: Callable[[str], str], tmp_path: Path
) -> None:
    rows, metrics = ask(places, questions_of(task), tmp_path / "out", **{mode: True})
    assert len(rows) == metrics["num_questions"] > 0
    assert (TASKS[task].metrics[0] in metrics) == (mode == "closed_book")
    assert all(bool(row["passage_ids"]) == (mode == "retrieve_only") for row in rows)


def test_passages_of_the_rows_are_learnt_from(places: dict[str, str], tmp_path: Path) -> None:
    """Defect 12, in training: a fact to check with its own passages, and no corpus at all."""
    given = [{"title": "Emma", "section": "", "text": text} for text in ("Emma is a novel.", "It is by Jane Austen.")]
    row = {"task": "fever", "question": "Emma is a film.", "label": "REFUTES", "passages": given}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (tmp_path / "dev.jsonl").write_text(json.dumps({**row, "passages": []}))
    download(source=str(tmp_path), questions=str(tmp_path / "questions"))
    settings = {"num_steps": 2, "batch_size": 3, "num_passages": 2, "mode": "reader_only", "file_passages": True}
    inputs = {"model": places["model"], "questions": str(tmp_path / "questions"), "trained": str(tmp_path / "trained")}
    train(**inputs, config=TrainConfig(**settings))
    log = read_table(str(tmp_path / "trained" / "training_log.parquet"), "training_log/2").to_pylist()
    assert log[0]["reader_loss"] > 0
    train(
        **{**inputs, "trained": str(tmp_path / "closed")},
        config=TrainConfig(**settings | {"file_passages": False, "closed_book": True}),
    )
    closed = read_table(str(tmp_path / "closed" / "training_log.parquet"), "training_log/2").to_pylist()
    assert closed[0]["reader_loss"] != log[0]["reader_loss"], "the passages were read"
    with pytest.raises(DataError, match="passages: file_passages expects some, found none"):
        train(**{**inputs, "trained": str(tmp_path / "none")}, config=TrainConfig(**settings, split="dev"))


@pytest.mark.slow
@pytest.mark.parametrize(("permutations", "copies"), [("single", 1), ("cyclic", 4)])
def test_orders_of_options_on_the_way_are_not_those_of_training(
    places: dict[str, str],
    task_questions: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    permutations: Any,
    copies: int,
) -> None:
    asked: list[int] = []
    original = ralm.training.evaluation.generate_answers

    def watch(reader: Any, queries: list[str], *rest: Any, **options: Any) -> Any:
        asked.append(len(queries))
        return original(reader, queries, *rest, **options)

    monkeypatch.setattr(ralm.training.evaluation, "generate_answers", watch)
    config = TrainConfig(
        num_steps=1,
        num_passages=2,
        evaluate_every_steps=1,
        evaluate_permutations=permutations,
        max_evaluate_questions=2,
        task=TaskConfig(permutations="all"),
        precision="fp32",
    )
    train(**places, questions=task_questions("multiple_choice"), trained=str(tmp_path / "trained"), config=config)
    assert sum(asked) == 2 * copies
