from __future__ import annotations

import unicodedata

import pytest

from ralm.evaluation.normalise import AnswerFinder, normalise_title, tokenise


@pytest.mark.parametrize(
    ("answer", "text", "is_there"),
    [
        ("us", "A music hall", False),
        ("US", "in the US, then", True),
        ("New York", "york new york city", True),
        ("New York", "newyork", False),
        ("19", "in 1900", False),
        ("U.S.", "the U . S . army", True),
        ("café", unicodedata.normalize("NFD", "the CAFÉ."), True),
        ("cafe", "café", False),
        ("", "anything", False),
        ("   ", "any thing", False),
        ("C++", "written in C++ and C", True),
        ("कम", "कमी", False),  # a vowel sign belongs to its word
        ("東京", "東京", True),
    ],
)
def test_answers_are_whole_token_sequences(answer: str, text: str, is_there: bool) -> None:
    finder = AnswerFinder([answer])
    assert finder.is_in(text) is is_there
    assert bool(finder.spans(text)) is is_there


def test_spans_prefer_the_longest_answer_and_do_not_overlap() -> None:
    text = "Allan Pinkerton met Pinkerton; PINKERTON won"
    finder = AnswerFinder(["Pinkerton", "Allan Pinkerton"])
    assert [text[start:end] for start, end in finder.spans(text)] == ["Allan Pinkerton", "Pinkerton", "PINKERTON"]


def test_offsets_are_those_of_the_original_text() -> None:
    text = unicodedata.normalize("NFD", "Über \u200bSão Paulo")
    assert [text[token.start : token.end] for token in tokenise(text)] == [
        unicodedata.normalize("NFD", word) for word in ("Über", "São", "Paulo")
    ]


def test_titles() -> None:
    assert normalise_title("Abraham_Lincoln ") == normalise_title("abraham  lincoln")
