"""Prompts are what Atlas gives to its reader, byte for byte, when its formats are chosen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ralm.errors import ConfigError
from ralm.reader.config import GenerationConfig, ReaderConfig
from ralm.reader.prompts import format_inputs, format_question, format_target, full_title

ATLAS = ReaderConfig(
    question_format="question: {question} answer: <extra_id_0>",
    passage_format="{question} title: {title} context: {text}",
    target_format="<extra_id_0> {target}",
)


def test_atlas_formats_byte_for_byte() -> None:
    passage = SimpleNamespace(title="Ayn Rand", section="Life", text="She was born in {Saint Petersburg}.")
    assert format_question(ATLAS, "who?") == "question: who? answer: <extra_id_0>"
    assert format_inputs(ATLAS, "who?", [passage]) == [
        "question: who? answer: <extra_id_0> title: Ayn Rand: Life context: She was born in {Saint Petersburg}."
    ]
    assert format_target(ATLAS, "Ayn Rand") == "<extra_id_0> Ayn Rand"


def test_title_without_section_has_no_colon() -> None:
    assert full_title("Ayn Rand", "") == "Ayn Rand"


def test_braces_in_a_question_are_text() -> None:
    assert format_inputs(ReaderConfig(), "what is {x}?", []) == ["question: what is {x}?"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question_format", "no field"),
        ("passage_format", "{title}"),
        ("passage_format", "{text} {author}"),
        ("passage_format", "{text"),
        ("target_format", ""),
        ("target_prompt_format", "{target}"),
        ("max_input_tokens", 0),
        ("num_passages", 0),
    ],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"reader.{field}"):
        ReaderConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_beams", {"num_beams": 0}),
        ("num_candidates", {"num_beams": 2, "num_candidates": 3}),
        ("num_candidates", {"num_candidates": 0}),
        ("length_penalty", {"length_penalty": float("nan")}),
        ("min_tokens", {"min_tokens": -1}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"min_tokens": 5, "max_tokens": 5}),
    ],
)
def test_bad_generation_settings_name_the_field(field: str, values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"generation.{field}: expected .* found"):
        GenerationConfig(**values)  # type: ignore[arg-type]
