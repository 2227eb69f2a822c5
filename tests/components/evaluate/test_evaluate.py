from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.schemas import QUESTIONS
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import read_table, write_table
from ralm.cli import run_stage
from ralm.corpus.lookup import PassageLookup
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.evaluation.metrics import exact_match
from ralm.evaluation.retrieval import answer_rank
from ralm.reader.fusion import FusionReader

CUTOFFS = (1, 5, 10)


@pytest.fixture(scope="session")
def places(toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> dict[str, str]:
    return {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}


def run(
    places: dict[str, str], output: Path, **settings: Any
) -> tuple[Manifest, list[dict[str, Any]], dict[str, float]]:
    config = EvaluateConfig(**{"recall_at": CUTOFFS, "num_passages": 4, **settings})
    manifest = evaluate(**places, predictions=str(output), config=config)
    rows = read_table(str(output / f"{config.split}.parquet"), "predictions/1").to_pylist()
    return manifest, rows, json.loads((output / "metrics.json").read_text())


def write_questions(folder: Path, **changes: Any) -> str:
    """A questions artifact with one row."""
    row = {name: [] if "list" in str(QUESTIONS.field(name).type) else None for name in QUESTIONS.names}
    row |= {
        "question_id": "q1",
        "task": "qa",
        "question": "what is it",
        "answers": ["amber"],
        "metadata": "{}",
        **changes,
    }

    def build(work: Path) -> Contents:
        return Contents(rows={"test.parquet": write_table(work / "test.parquet", [row], QUESTIONS)})

    produce(str(folder), kind="questions", stage="t", stage_version=1, inputs={}, config=changes, build=build)
    return str(folder)


def test_predictions_and_metrics_agree(places: dict[str, str], tmp_path: Path) -> None:
    manifest, rows, metrics = run(places, tmp_path / "out")
    assert manifest.counts == {"questions": 6}
    assert metrics["num_questions"] == len(rows) == 6
    lookup = PassageLookup(places["passages"])
    for row in rows:
        assert len(row["passage_ids"]) == len(row["scores"]) == max(CUTOFFS)
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert row["exact_match"] == exact_match(row["prediction"], row["answers"])
        assert row["answer_rank"] == answer_rank(lookup.get(row["passage_ids"]), row["answers"])
        assert row["candidates"][0]["text"] == row["prediction"]
        assert row["candidates"][0]["log_probability"] <= 0
        assert json.loads(row["metadata"])["question"].startswith("what is the ")
    assert metrics["exact_match"] == np.mean([row["exact_match"] for row in rows])
    for k in CUTOFFS:
        hits = [row["title_rank"] is not None and row["title_rank"] <= k for row in rows]
        assert metrics[f"recall_title_at_{k}"] == np.mean(hits)
    assert metrics["eval_loss"] == pytest.approx(np.mean([row["eval_loss"] for row in rows]))
    assert metrics["eval_loss"] > 0
    assert metrics["mrr"] == np.mean([1 / row["answer_rank"] if row["answer_rank"] else 0 for row in rows])
    assert all(0 <= value <= 1 for name, value in metrics.items() if name not in ("num_questions", "eval_loss"))


def test_times_are_per_question_and_apart(places: dict[str, str], tmp_path: Path) -> None:
    run(places, tmp_path / "out")
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert {"encode_ms", "search_ms", "read_ms"} <= set(timings)
    assert "_ms" not in (tmp_path / "out" / "manifest.json").read_text()


def test_equal_runs_give_equal_bytes_whatever_the_store(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for home in ("one", "two"):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / home))
        manifest, _, _ = run(places, tmp_path / home / "out")
        assert not manifest.reused
        names = ("test.parquet", "metrics.json", "manifest.json")
        outputs.append([(tmp_path / home / "out" / name).read_bytes() for name in names])
    assert outputs[0] == outputs[1]
    assert run(places, tmp_path / "two" / "again")[0].reused


def test_batches_do_not_change_answers(places: dict[str, str], tmp_path: Path) -> None:
    """In fp32: what bf16 rounds differs with the shapes of a batch, and a random reader's answers hang on it."""
    _, whole, _ = run(places, tmp_path / "whole", batch_size=6, precision="fp32")
    _, single, _ = run(places, tmp_path / "single", max_batch_tokens=1, precision="fp32")
    assert [row["prediction"] for row in whole] == [row["prediction"] for row in single]
    assert [row["passage_ids"] for row in whole] == [row["passage_ids"] for row in single]


def test_closed_book_retrieves_nothing(places: dict[str, str], tmp_path: Path) -> None:
    nowhere = {**places, "passages": str(tmp_path / "none"), "index": str(tmp_path / "none")}
    manifest, rows, metrics = run(nowhere, tmp_path / "out", closed_book=True)
    assert set(manifest.inputs) == {"model", "questions"}
    assert all(row["passage_ids"] == [] and row["answer_rank"] is None for row in rows)
    assert set(metrics) == {"exact_match", "f1", "eval_loss", "num_questions"}
    nothing = {**places, "passages": "", "index": ""}
    assert run(nothing, tmp_path / "again", closed_book=True)[0].reused
    with pytest.raises(ConfigError, match="evaluate: no --passages; it is needed unless closed_book or file_passages"):
        run(nothing, tmp_path / "open")


def test_only_retrieval(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 28: retrieving alone gave neither scores nor recall. The reader's weights are not even loaded."""
    _, answered, whole = run(places, tmp_path / "whole")
    monkeypatch.setattr("components.evaluate.stage.FusionReader", None)
    _, rows, metrics = run(places, tmp_path / "out", retrieve_only=True)
    for name in ("passage_ids", "scores", "answer_rank", "title_rank", "question_id"):
        assert [row[name] for row in rows] == [row[name] for row in answered]
    assert all(row["prediction"] == "" and row["f1"] is None and row["candidates"] == [] for row in rows)
    assert metrics == {name: value for name, value in whole.items() if name not in ("exact_match", "f1", "eval_loss")}
    assert {"recall_at_1", "mrr"} <= set(metrics)


def test_inputs_may_be_shorter_than_the_models_own(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    encode = FusionReader.encode

    def watch(self: FusionReader, inputs: list[list[list[int]]]) -> Any:
        lengths.append(max(len(tokens) for of_question in inputs for tokens in of_question))
        return encode(self, inputs)

    monkeypatch.setattr(FusionReader, "encode", watch)
    run(places, tmp_path / "whole")
    manifest, _, _ = run(places, tmp_path / "short", max_input_tokens=9)
    assert lengths[0] > 9
    assert lengths[-1] == 9
    assert manifest.config["max_input_tokens"] == 9


def test_passages_of_the_rows(places: dict[str, str], tmp_path: Path) -> None:
    """Defect 12, for the stage; every task is in tests/ralm/evaluation/test_predict.py."""
    given = [
        {"passage_id": n, "title": f"Title {n}", "section": "", "text": text}
        for n, text in enumerate(("a stone", "amber it is", "sand"))
    ]
    questions = write_questions(tmp_path / "questions", passages=given, positive_titles=["title 2"])
    nothing = {**places, "questions": questions, "passages": "", "index": ""}
    manifest, (row,), metrics = run(nothing, tmp_path / "out", file_passages=True, num_passages=2)
    assert set(manifest.inputs) == {"model", "questions"}
    assert (row["passage_ids"], row["scores"]) == ([0, 1, 2], [])
    assert (row["answer_rank"], row["title_rank"]) == (2, 3)
    assert (metrics["recall_at_1"], metrics["recall_at_5"]) == (0, 1)
    with pytest.raises(DataError, match="passages: file_passages expects some, found none"):
        run(places, tmp_path / "none", file_passages=True)


def test_the_own_source_is_not_retrieved(places: dict[str, str], tmp_path: Path) -> None:
    lookup = PassageLookup(places["passages"])
    _, (row,), _ = run({**places, "questions": write_questions(tmp_path / "q1")}, tmp_path / "one")
    first = lookup.get(row["passage_ids"])[0]
    for number, source_id in enumerate((first.source_id, str(first.passage_id))):
        questions = write_questions(tmp_path / f"q{source_id}", source_id=source_id)
        _, (found,), _ = run({**places, "questions": questions}, tmp_path / f"out{number}", overretrieve_ratio=1)
        names = {(passage.source_id, str(passage.passage_id))[number] for passage in lookup.get(found["passage_ids"])}
        assert source_id not in names
        assert len(found["passage_ids"]) == max(CUTOFFS)


def test_reranking_with_the_models_own_encoder(places: dict[str, str], tmp_path: Path) -> None:
    """The index is in f16: with every passage as a candidate the order is that of exact scores, nearly the same."""
    _, searched, _ = run(places, tmp_path / "searched")
    manifest, reranked, _ = run(places, tmp_path / "reranked", num_reranked=30)
    assert manifest.config["num_reranked"] == 30
    for before, after in zip(searched, reranked, strict=True):
        assert after["scores"] == sorted(after["scores"], reverse=True)
        assert after["scores"] == pytest.approx(before["scores"], abs=0.02)
        assert after["scores"] != before["scores"]


def test_rows_are_never_skipped_silently(places: dict[str, str], tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions", task="lm", question="one", answers=[])
    with pytest.raises(DataError, match="all 1 rows were skipped"):
        run({**places, "questions": questions}, tmp_path / "out")


def test_reader_decides_how_many_passages_by_default(places: dict[str, str], tmp_path: Path) -> None:
    manifest, _, _ = run(places, tmp_path / "out", num_passages="auto", max_questions=2)
    assert manifest.config["num_passages"] == manifest.details["num_passages"] == 10
    assert manifest.counts == {"questions": 2}


@pytest.mark.parametrize(
    ("settings", "name"), [({"num_passages": 31}, "num_passages"), ({"recall_at": (1, 31)}, "recall_at")]
)
def test_a_corpus_with_fewer_passages_than_k(
    places: dict[str, str], tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(DataError, match=rf"the corpus has 30 passages, but config\.{name} asks for 31"):
        run(places, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_cut_offs_end_where_the_corpus_does(places: dict[str, str], tmp_path: Path) -> None:
    manifest, rows, metrics = run(places, tmp_path / "out", recall_at="auto")
    assert manifest.config["recall_at"] == [1, 5, 10, 20]
    assert "recall_at_20" in metrics
    assert "recall_at_50" not in metrics
    assert {len(row["passage_ids"]) for row in rows} == {20}


def test_the_command_line_says_it_on_one_line(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for name, place in places.items() for part in (f"--{name}", place)]
    arguments += ["--config.recall_at", "[1, 50]", "--predictions", str(tmp_path / "out")]
    code = run_stage(evaluate, arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ralm: error:")]
    assert code == 2
    assert len(errors) == 1
    assert "the corpus has 30 passages, but config.recall_at asks for 50" in errors[0]


def test_an_index_of_other_passages(places: dict[str, str], tmp_path: Path) -> None:
    from ralm.artifacts.schemas import PASSAGES

    def build(folder: Path) -> Contents:
        table = PassageLookup(places["passages"])
        row = read_table(f"{table.location}/part-00000.parquet", "passages/1").slice(0, 1)
        return Contents(rows={"part-00000.parquet": write_table(folder / "part-00000.parquet", row, PASSAGES)})

    other = str(tmp_path / "other")
    produce(other, kind="passages", stage="t", stage_version=1, inputs={}, config={}, build=build)
    with pytest.raises(ArtifactError, match="made from passages [0-9a-f]{64}, but .*other is [0-9a-f]{64}"):
        run({**places, "passages": other}, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "question 'q1': expected at least one answer, found none"),
        ({"task": "quiz"}, "task: expected one of .*qa.*, found 'quiz'"),
    ],
)
def test_questions_that_cannot_be_scored(
    places: dict[str, str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    questions = write_questions(tmp_path / "questions", **changes)
    with pytest.raises(DataError, match=message):
        run({**places, "questions": questions}, tmp_path / "out")


def test_a_split_that_is_not_there(places: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'tset'; there are: dev, test, train"):
        evaluate(**places, predictions=str(tmp_path / "out"), config=EvaluateConfig(split="tset"))


def test_questions_without_titles_have_no_recall_by_title(places: dict[str, str], tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions")
    _, rows, metrics = run({**places, "questions": questions}, tmp_path / "out")
    assert rows[0]["title_rank"] is None
    assert {"recall_at_1", "mrr"} <= set(metrics)
    assert not [name for name in metrics if "title" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"recall_at": ()}, "recall_at: expected auto or different numbers"),
        ({"recall_at": (5, 5)}, "recall_at: expected auto or different numbers"),
        ({"num_passages": 0}, "num_passages: expected at least 1, found 0"),
        ({"split": ""}, "split: expected the name of a table"),
        ({"overretrieve_ratio": 0}, "overretrieve_ratio: expected at least 1, found 0"),
        ({"num_reranked": -1}, "num_reranked: expected at least 0, found -1"),
        ({"closed_book": True, "file_passages": True}, "closed_book: expected false where file_passages is true"),
        ({"file_passages": True, "retrieve_only": True}, "file_passages: expected false where retrieve_only is true"),
    ],
)
def test_config_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**settings)
