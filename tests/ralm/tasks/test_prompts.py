"""What each task asks, byte for byte, alone and in the formats of the official Atlas models."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from ralm.reader.config import ReaderConfig
from ralm.reader.prompts import format_question, format_target
from ralm.retriever.config import RetrieverConfig
from ralm.tasks.base import Asked, Question, Tools
from ralm.tasks.catalog import TASKS
from ralm.tasks.config import TaskConfig
from ralm.tasks.formats import task_formats

PROMPT = "question: {question} answer: <extra_id_0>"
READER = ReaderConfig(question_format=PROMPT, target_format="<extra_id_0> {target}")
RETRIEVER = RetrieverConfig(question_format=PROMPT, max_question_tokens=64, max_passage_tokens=200)
TEXT = "the one two three four five six seven"

CASES = {
    "base": (
        {"question": "fill in: {x}", "target": "y"},
        "fill in: {x}",
        "y",
    ),
    "qa": (
        {"question": "who wrote Emma?", "answers": ("Jane Austen",)},
        "question: who wrote Emma? answer: <extra_id_0>",
        "<extra_id_0> Jane Austen",
    ),
    "multiple_choice": (
        {"question": "2 + 2 =", "options": ("3", "4", "5", "22"), "label": "B"},
        "question: 2 + 2 = options: (A) 3 (B) 4 (C) 5 (D) 22 answer: <extra_id_0>",
        "<extra_id_0> B",
    ),
    "fever": (
        {"question": "Emma is a film.", "label": "NOT ENOUGH INFO"},
        "question: Emma is a film. answer: <extra_id_0>",
        "<extra_id_0> maybe",
    ),
    "kilt": (
        {"question": "who wrote Emma?", "answers": ("Austen", "Jane")},
        "question: who wrote Emma? answer: <extra_id_0>",
        "<extra_id_0> Austen",
    ),
    "mlm": (
        {"question": TEXT},
        "the one two three four five six<extra_id_0>",
        "<extra_id_0> seven",
    ),
    "lm": (
        {"question": "one two  three four"},
        "one two  ",
        "three four",
    ),
    "section": (
        {"question": "It is a novel.", "metadata": {"title": "Emma", "section": "Plot"}},
        "Emma, Plot",
        "It is a novel.",
    ),
}


def ask(task: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **fields: object) -> Asked:
    question = Question(**{"question_id": "q1", "task": task, **fields})
    TASKS[task].check(question, is_learnt=True)
    tools = Tools(settings=TaskConfig(), tokenizer=tokenizer, max_input_tokens=64)
    return TASKS[task].ask(question, 0, tools, np.random.default_rng(seed))


def test_every_task_is_here() -> None:
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("task", sorted(CASES))
def test_prompt_and_target(task: str, word_tokenizer: PreTrainedTokenizerFast) -> None:
    """For `base` also defect 3: this task could not be started."""
    fields, query, target = CASES[task]
    reader, retriever = task_formats(TASKS[task], READER, RETRIEVER)
    asked = ask(task, word_tokenizer, **fields)
    assert format_question(reader, asked.query) == query
    assert retriever.format_question(asked.query) == query, "the retriever sees the reader's query"
    assert format_target(reader, asked.targets[0]) == target


def test_plain_queries_may_be_as_long_as_a_passage() -> None:
    for name, task in TASKS.items():
        reader, retriever = task_formats(task, READER, RETRIEVER)
        assert retriever.max_question_tokens == (200 if name in ("base", "mlm", "lm", "section") else 64), name
        assert reader.passage_format == READER.passage_format
        assert retriever.passage_format == RETRIEVER.passage_format
