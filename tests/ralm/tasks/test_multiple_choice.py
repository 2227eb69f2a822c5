from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from ralm.errors import DataError
from ralm.tasks.base import MAX_COPIES, Asked, Question, Tools
from ralm.tasks.catalog import TASKS
from ralm.tasks.config import TaskConfig
from ralm.tasks.mmlu_subjects import SUBJECT_GROUPS
from ralm.tasks.multiple_choice import debiased_probabilities, num_orders, order_of
from ralm.training.examples import make_training_set
from tests.ralm.tasks.conftest import said

TASK = TASKS["multiple_choice"]
ROW = Question(
    question_id="q1", task="multiple_choice", question="pick", options=("red", "blue", "red", "tan"), label="C"
)


def asked_all(permutations: Any, question: Question = ROW) -> list[Asked]:
    tools = Tools(settings=TaskConfig(permutations=permutations))
    copies = range(TASK.num_copies(question, tools))
    return [TASK.ask(question, copy, tools, np.random.default_rng(0)) for copy in copies]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_orders(count: int) -> None:
    orders = [order_of(number, count, "all") for number in range(num_orders(count, "all"))]
    assert orders == list(itertools.permutations(range(count)))
    rotations = [order_of(number, count, "cyclic") for number in range(num_orders(count, "cyclic"))]
    assert len(set(rotations)) == count
    assert all(sorted(place) == list(range(count)) for place in zip(*rotations, strict=True)), "each option everywhere"
    assert order_of(0, count, "single") == tuple(range(count))
    assert num_orders(count, "single") == 1


def test_orders_of_many_options_are_not_listed() -> None:
    last = math.factorial(26) - 1
    assert order_of(last, 26, "all") == tuple(range(25, -1, -1))
    assert sorted(order_of(last // 3, 26, "all")) == list(range(26))


def test_equal_options_stay_apart() -> None:
    """Defect 15: options with equal texts collapsed and permuted copies got a wrong letter."""
    for asked in asked_all("all"):
        assert asked.order[asked.options.index(asked.targets[0])] == 2, "the letter of the third option, not its twin"
    cyclic = asked_all("cyclic")
    assert [asked.targets[0] for asked in cyclic] == ["C", "B", "A", "D"]
    assert cyclic[1].query == "pick options: (A) blue (B) red (C) tan (D) red"
    probability_O = debiased_probabilities(np.log([[0.1, 0.2, 0.6, 0.1]]), np.array([[0, 1, 2, 3]]))
    assert probability_O.argmax() == 2
    assert probability_O.sum() == pytest.approx(1)


def test_debiasing_averages_by_option() -> None:
    """By hand: two options, two orders; the preference for place A (0.9) cancels, that for option 1 stays."""
    logits = np.log([[0.9, 0.1], [0.95, 0.05]]) + [[3.0], [-7.0]]
    found = debiased_probabilities(logits, np.array([[0, 1], [1, 0]]))
    assert found == pytest.approx([(0.9 + 0.05) / 2, (0.1 + 0.95) / 2])


def test_scores() -> None:
    """Defect 14: the debiased accuracy was 0 unless results were written; it always comes from the readings."""
    asked = asked_all("cyclic")
    always_a = [2.0, 0.0, 0.0, 0.0]
    tilted = [
        [value + (0.5 if item.order[place] == 2 else 0.0) for place, value in enumerate(always_a)] for item in asked
    ]
    reads = [said("A", logits) for logits in tilted]
    scored = TASK.score(ROW, asked, reads)
    assert scored.metrics == {"debiased_accuracy": 1.0, "accuracy": 0.25, "choice_accuracy": 0.0}
    assert int(np.argmax(scored.choice_probabilities)) == 2
    assert scored.metadata["choice"] == "C"
    assert scored.metadata["permutations"][1] == {"order": [1, 2, 3, 0], "generation": "A", "choice_logits": tilted[1]}


def test_rows_without_a_label_are_asked_but_not_scored() -> None:
    row = Question(question_id="q1", task="multiple_choice", question="pick", options=("x", "y"))
    TASK.check(row)
    scored = TASK.score(row, asked_all("single", row), [said("A", [0.0, 1.0])])
    assert set(scored.metrics.values()) == {None}
    assert scored.metadata["choice"] == "B"
    assert TASK.sought(row) == ()
    assert TASK.sought(ROW) == ("red",)


@pytest.mark.parametrize("count", [1, 26])
def test_one_to_twenty_six_options(count: int) -> None:
    options = tuple(f"o{n}" for n in range(count))
    row = Question(question_id="q1", task="multiple_choice", question="pick", options=options, label="A")
    TASK.check(row, is_learnt=True)
    cyclic = asked_all("cyclic", row)
    assert len(cyclic) == count
    assert len(cyclic[-1].options) == count
    make_training_set(
        [row],
        settings=TaskConfig(permutations="all"),
        tokenizer=None,
        max_input_tokens=9,
        target_choice="first",
        seed=0,
    ).batch(0, 3)


def test_training_asks_every_order_once_in_a_pass() -> None:
    options: dict[str, Any] = {"tokenizer": None, "max_input_tokens": 9, "target_choice": "first", "seed": 0}
    rows = [ROW, Question(question_id="q2", task="multiple_choice", question="or", options=("x", "y"), label="A")]
    training = make_training_set(rows, settings=TaskConfig(permutations="all"), **options)
    assert len(training) == 24 + 2
    batch = training.batch(0, 26)
    assert len({(example.question, example.target) for example in batch}) == 26
    many = Question(question_id="q3", task="multiple_choice", question="or", options=tuple("abcdefghij"), label="A")
    capped = make_training_set([many], settings=TaskConfig(permutations="all"), **options)
    assert len(capped) == MAX_COPIES
    assert len({example.question for example in capped.batch(0, 50)}) == 50


def test_the_start_of_a_long_question_is_cut(word_tokenizer: PreTrainedTokenizerFast) -> None:
    words = ["one", "two", "three"] * 30
    row = Question(
        question_id="q1", task="multiple_choice", question=" ".join(words), options=("king", "queen"), label="A"
    )
    tools = Tools(
        settings=TaskConfig(max_query_tokens=40),
        tokenizer=word_tokenizer,
        question_format="one two: {question} three",
    )
    query = TASK.ask(row, 0, tools, np.random.default_rng(0)).query
    size = len(word_tokenizer(tools.question_format.format(question=query), add_special_tokens=False)["input_ids"])
    assert 38 <= size <= 40
    question, _, options = query.partition(" options: ")
    assert options == "(A) king (B) queen"
    assert question.split() == words[-len(question.split()) :]
    assert len(question.split()) > 3
    short = Tools(settings=TaskConfig(max_query_tokens=3), tokenizer=word_tokenizer)
    assert TASK.ask(row, 0, short, np.random.default_rng(0)).query == "options: (A) king (B) queen"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": ()}, "options: expected 1 to 26, found 0"),
        ({"options": tuple("abcdefghijklmnopqrstuvwxyz0")}, "options: expected 1 to 26, found 27"),
        ({"label": "E"}, "label: expected A to D, found 'E'"),
        ({"label": "AB"}, "label: expected A to D, found 'AB'"),
        ({"label": ""}, "label: expected A to D, found ''"),
    ],
)
def test_bad_rows(fields: dict[str, Any], message: str) -> None:
    row = Question(
        **{"question_id": "q1", "task": "multiple_choice", "question": "?", "options": ROW.options, **fields}
    )
    with pytest.raises(DataError, match=f"question 'q1': {message}"):
        TASK.check(row)


def test_a_target_is_no_label() -> None:
    """A letter to learn comes from the label alone, so a row with a target only has nothing to learn."""
    row = Question(question_id="q1", task="multiple_choice", question="?", options=ROW.options, target="B")
    TASK.check(row)
    with pytest.raises(DataError, match="question 'q1': expected an answer to learn"):
        TASK.check(row, is_learnt=True)


def test_subject_groups() -> None:
    sizes = {name: list(SUBJECT_GROUPS.values()).count(name) for name in set(SUBJECT_GROUPS.values())}
    assert sizes == {"humanities": 13, "social_sciences": 12, "stem": 18, "other": 14}
    row = Question(question_id="q", task="multiple_choice", question="?", metadata={"subject": "anatomy"})
    assert TASK.group(row) == "other"
    assert TASK.group(ROW) is None
