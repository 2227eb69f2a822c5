"""A training set gives the same examples for the same seed and update, and every row once in a pass."""

from __future__ import annotations

from typing import Any

import pytest

from ralm.errors import DataError
from ralm.tasks.base import FilePassage, Question
from ralm.tasks.config import TaskConfig
from ralm.training.examples import Example, TrainingSet, batch_rows, make_training_set

PASSAGE = FilePassage(passage_id=1, title="Emma", section="", text="A novel.")
ROWS = [
    Question(question_id=str(n), task="qa", question=f"q{n}", answers=(f"a{n}", " ", f"b{n}"), source_id=f"s{n}")
    for n in range(5)
]


def make(rows: list[Question] = ROWS, **changes: Any) -> TrainingSet:
    options = {"settings": TaskConfig(), "tokenizer": None, "max_input_tokens": 64, "target_choice": "first", "seed": 3}
    return make_training_set(rows, **(options | changes))


def test_an_example_holds_what_is_asked_and_learnt() -> None:
    row = Question(
        question_id="1", task="qa", question="who", answers=("Ann",), target="Anne", source_id="7", passages=(PASSAGE,)
    )
    assert make([row]).batch(0, 1) == [Example("who", "Anne", "7", (PASSAGE,))]


def test_batches_follow_the_order_of_rows() -> None:
    examples = make().batch(4, 3)
    rows = batch_rows(4, num_rows=5, batch_size=3, seed=3)
    assert [example.question for example in examples] == [f"q{row}" for row in rows]
    assert [example.target for example in examples] == [f"a{row}" for row in rows]
    assert [example.source_id for example in examples] == [f"s{row}" for row in rows]


def test_random_targets_depend_on_seed_and_step_alone() -> None:
    """Defect 19: the choice of answers came from a generator that nobody seeded."""
    sets = [make(target_choice="random"), make(target_choice="random")]
    first, again = ([batch for step in range(9) for batch in one.batch(step, 5)] for one in sets)
    assert first == again
    assert {example.target for example in first} == {row.answers[place] for row in ROWS for place in (0, 2)}
    assert sets[0].batch(7, 5) == first[35:40], "whatever was asked for before"
    assert [example.target for example in make(target_choice="random", seed=4).batch(0, 5)] != [
        example.target for example in first[:5]
    ]


def test_fewer_examples_than_a_batch() -> None:
    """Defect 29: a rank with fewer examples than the batch size never made a step."""
    batch = make(ROWS[:2]).batch(0, 7)
    assert len(batch) == 7
    assert {example.question for example in batch} == {"q0", "q1"}


def test_nothing_to_learn_is_named() -> None:
    with pytest.raises(DataError, match="'7': expected an answer to learn, found only empty ones"):
        make([Question(question_id="7", task="qa", question="who", answers=(" ",))])
