from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from ralm.corpus.lookup import Passage
from ralm.errors import ConfigError, DataError
from ralm.evaluation.passage_sources import FilePassages, NoPassages, SearchedPassages, check_file_passages
from ralm.evaluation.predict import predict, summarise
from ralm.evaluation.stopwatch import Stopwatch
from ralm.tasks.base import FilePassage, Question, Tools
from ralm.tasks.catalog import task_of
from ralm.tasks.config import TaskConfig

TEXTS = ("the river Ouse", "the city of York", "a bridge", "York again")


@dataclasses.dataclass(frozen=True)
class Said:
    text: str
    log_probability: float = -1.0


@dataclasses.dataclass(frozen=True)
class Reading:
    candidates: list[Said]
    option_logits: list[float] | None = None
    target_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    scores: np.ndarray
    passages: list[list[Passage]]


class FixedSearch:
    """Gives question b the passages b, b+1, ... (the first is passage 100)."""

    def __init__(self) -> None:
        self.excluded: list[str | None] = []

    def find(self, question_BD: np.ndarray, k: int, exclude: Sequence[str | None]) -> Result:
        self.excluded += exclude
        rows = [[(int(question[0]) + rank) % 4 for rank in range(k)] for question in question_BD]
        passages = [[passage(row) for row in of_one] for of_one in rows]
        return Result(np.tile(np.linspace(1, 0.5, k, dtype=np.float32), (len(rows), 1)), passages)


def passage(row: int) -> Passage:
    return Passage(100 + row, "s", None, None, f"Title {100 + row}", "", TEXTS[row], "text", 0)


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([[float(text[-1])] for text in texts], dtype=np.float32)


def searched(watch: Stopwatch, num_read: int = 2) -> SearchedPassages:
    return SearchedPassages(embed, FixedSearch(), num_retrieved=4, num_read=num_read, watch=watch)


QUESTIONS = [
    Question(
        question_id=f"q{n}",
        task="qa",
        question=f"city {n}",
        answers=("York",),
        source_id=f"s{n}",
        positive_titles=(f"title 10{n}",)[: 1 - n % 2],
        metadata={"subject": n},
    )
    for n in range(3)
]


def ask(questions: Sequence[Question], *, watch: Stopwatch | None = None, **options: Any) -> list[dict[str, Any]]:
    settings = {"tools": Tools(), "seed": 0, "batch_size": 2, **options}
    batches = predict(questions, task=task_of(questions), watch=watch or Stopwatch(), **settings)
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_reader_gets_the_best_passages_of_its_question(batch_size: int) -> None:
    """Defect 28: scores were thrown away and there was neither recall nor reciprocal rank."""
    seen: list[list[int]] = []

    def read(queries: Sequence[str], passages: Sequence[Sequence[Passage]], **rest: Any) -> Iterable[Reading]:
        seen.extend([passage.passage_id for passage in found] for found in passages)
        assert rest == {"options": None, "targets": ["York"] * len(queries)}
        for number, found in enumerate(passages):
            yield Reading([Said(found[0].text.split()[-1])], target_loss=float(number))

    task, watch = task_of(QUESTIONS), Stopwatch()
    source = searched(watch)
    rows = ask(QUESTIONS, source=source, read=read, batch_size=batch_size, watch=watch)
    assert seen == [[100, 101], [101, 102], [102, 103]]
    assert source.searcher.excluded == ["s0", "s1", "s2"], "no question gets its own source"
    assert [row["passage_ids"] for row in rows] == [[100, 101, 102, 103], [101, 102, 103, 100], [102, 103, 100, 101]]
    assert rows[0]["scores"] == pytest.approx([1, 5 / 6, 2 / 3, 0.5])
    assert [row["prediction"] for row in rows] == ["Ouse", "York", "bridge"]
    assert [row["answer_rank"] for row in rows] == [2, 1, 2]
    assert [row["title_rank"] for row in rows] == [1, None, 1]
    assert json.loads(rows[2]["metadata"])["question_metadata"] == {"subject": 2}
    assert set(watch.per_question_ms(3)) == {"encode_ms", "search_ms", "read_ms"}
    metrics = summarise(rows, QUESTIONS, task=task, cutoffs=[1, 2])
    assert metrics == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx(1 / 3),
        "eval_loss": pytest.approx({1: 0, 2: 1 / 3, 5: 1}[batch_size]),
        "num_questions": 3,
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": 1.0,
        "mrr": pytest.approx(2 / 3),
        "recall_title_at_1": 1.0,  # over the two questions that name a page
        "recall_title_at_2": 1.0,
    }


def test_closed_book_reads_the_bare_question() -> None:
    def read(queries: Sequence[str], passages: Sequence[Sequence[Passage]], **rest: Any) -> Iterable[Reading]:
        assert all(not found for found in passages)
        return [Reading([Said("york")]) for _ in queries]

    rows = ask(QUESTIONS, source=NoPassages(), read=read)
    assert all(row["exact_match"] == 1 and row["passage_ids"] == [] and row["answer_rank"] is None for row in rows)
    assert summarise(rows, QUESTIONS, task=task_of(QUESTIONS), cutoffs=[]) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "num_questions": 3,
    }


def test_without_a_reader_retrieval_alone_is_scored() -> None:
    rows = ask(QUESTIONS, source=searched(Stopwatch()), read=None)
    assert all(row["prediction"] == "" and row["exact_match"] is None and row["candidates"] == [] for row in rows)
    metrics = summarise(rows, QUESTIONS, task=task_of(QUESTIONS), cutoffs=[2])
    assert metrics == {
        "num_questions": 3,
        "recall_at_2": 1.0,
        "mrr": pytest.approx(2 / 3),
        "recall_title_at_2": 1.0,
    }


FILE_PASSAGES = tuple(FilePassage(passage_id=n, title="Emma", section="Plot", text=f"true {n}") for n in (7, 8, 9))
OF_TASKS: dict[str, dict[str, Any]] = {
    "base": {"target": "true"},
    "qa": {"answers": ("true",)},
    "fever": {"label": "SUPPORTS"},
    "kilt": {"answers": ("true",)},
    "multiple_choice": {"options": ("x", "y"), "label": "A"},
    "mlm": {},
    "lm": {},
    "section": {"metadata": {"title": "Emma", "section": "Plot"}},
}


@pytest.mark.parametrize("task", sorted(OF_TASKS))
def test_every_task_reads_the_passages_of_its_rows(task: str, request: pytest.FixtureRequest) -> None:
    """Defect 12: fever, kilt and multiple_choice overwrote them, mlm lost them."""
    seen: list[list[int]] = []

    def read(queries: Sequence[str], passages: Sequence[Sequence[Any]], **rest: Any) -> Iterable[Reading]:
        seen.extend([passage.passage_id for passage in found] for found in passages)
        return [Reading([Said("true")], option_logits=[1.0, 0.0], target_loss=0.5) for _ in queries]

    row = Question(
        **{"question_id": "q", "task": task, "question": "one two three", "passages": FILE_PASSAGES, **OF_TASKS[task]}
    )
    check_file_passages([row])
    tools = Tools(tokenizer=request.getfixturevalue("tiny_tokenizer") if task == "mlm" else None)
    (found,) = ask([row], source=FilePassages(num_read=2), read=read, tools=tools)
    assert seen == [[7, 8]]
    assert found["passage_ids"] == [7, 8, 9]
    assert found["eval_loss"] == 0.5
    with pytest.raises(DataError, match="question 'q': passages: file_passages expects some, found none"):
        check_file_passages([dataclasses.replace(row, passages=())])


@pytest.fixture
def tiny_tokenizer(tiny_model_files: Any) -> Any:
    from ralm.reader.tokenizer import load_tokenizer

    return load_tokenizer(tiny_model_files / "reader")


CHOICES = [
    Question(
        question_id=f"m{n}",
        task="multiple_choice",
        question=f"pick {n}",
        options=("red", "blue", "tan")[: 3 - n],
        label="B",
        metadata={"subject": ("anatomy", "astronomy")[n]},
    )
    for n in range(2)
]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_copies_of_a_question_make_one_row(batch_size: int) -> None:
    asked: list[str] = []

    def read(queries: Sequence[str], passages: Any, *, options: Any, targets: Any) -> Iterable[Reading]:
        asked.extend(queries)
        for query, letters, target in zip(queries, options, targets, strict=True):
            is_blue = [f"({letter}) blue" in query for letter in letters]
            yield Reading([Said(target if "pick 0" in query else "A")], [float(flag) for flag in is_blue], 2.0)

    tools = Tools(settings=TaskConfig(permutations="cyclic"))
    rows = ask(CHOICES, source=NoPassages(), read=read, tools=tools, batch_size=batch_size)
    assert len(asked) == 3 + 2
    assert [row["question_id"] for row in rows] == ["m0", "m1"]
    assert [row["debiased_accuracy"] for row in rows] == [1.0, 1.0]
    assert [row["accuracy"] for row in rows] == [1.0, 0.5]
    assert [len(row["choice_probabilities"]) for row in rows] == [3, 2]
    assert [len(json.loads(row["metadata"])["permutations"]) for row in rows] == [3, 2]
    metrics = summarise(rows, CHOICES, task=task_of(CHOICES), cutoffs=[])
    expected = {"debiased_accuracy": 1.0, "choice_accuracy": 1.0, "eval_loss": 2.0, "num_questions": 1}
    assert metrics["groups"] == {"other": {**expected, "accuracy": 1.0}, "stem": {**expected, "accuracy": 0.5}}
    assert metrics["accuracy"] == 0.75


def test_too_many_copies_are_refused() -> None:
    row = dataclasses.replace(CHOICES[0], options=tuple("abcdefgh"))
    tools = Tools(settings=TaskConfig(permutations="all"))
    with pytest.raises(
        ConfigError, match="task.permutations: all asks question 'm0' 40320 times, expected at most 5040"
    ):
        ask([row], source=NoPassages(), read=None, tools=tools)


def test_unlabelled_rows_have_no_score_and_no_loss() -> None:
    rows = [
        Question(question_id="a", task="fever", question="x", label="SUPPORTS"),
        Question(question_id="b", task="fever", question="y"),
    ]

    def read(queries: Sequence[str], passages: Any, *, options: Any, targets: Any) -> Iterable[Reading]:
        assert targets == ["true", None]
        return [Reading([Said("true")], target_loss=target and 0.5) for target in targets]

    found = ask(rows, source=NoPassages(), read=read)
    assert [(row["accuracy"], row["eval_loss"]) for row in found] == [(1.0, 0.5), (None, None)]
    metrics = summarise(found, rows, task=task_of(rows), cutoffs=[])
    assert metrics == {"accuracy": 1.0, "eval_loss": 0.5, "num_questions": 2}


def test_masks_do_not_depend_on_other_questions(tiny_tokenizer: Any) -> None:
    """Defect 19: evaluation noise was drawn from a generator that nobody seeded."""
    text = "The colour of granite is mostly amber in the northern valleys, as travellers have often noted."
    rows = [Question(question_id=f"t{n}", task="mlm", question=text) for n in range(4)]
    tools = Tools(tokenizer=tiny_tokenizer, settings=TaskConfig(mlm_noise_density=0.5, mlm_mean_span_length=2))

    def queries(questions: Sequence[Question], seed: int = 0) -> dict[str, str]:
        found = ask(questions, source=NoPassages(), read=None, tools=tools, seed=seed)
        return {row["question_id"]: json.loads(row["metadata"])["query"] for row in found}

    whole = queries(rows)
    assert len(set(whole.values())) > 1
    assert queries(rows[2:]) == {name: whole[name] for name in ("t2", "t3")}
    assert queries(rows, seed=1) != whole
