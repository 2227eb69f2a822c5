"""Exact match and F1 against a second implementation, written character by character instead of with patterns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.evaluation.metrics import exact_match, f1
from ralm.evaluation.normalise import normalise_answer

ASCII_PUNCTUATION = set(map(chr, [*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)]))


def is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def oracle_tokens(text: str) -> list[str]:
    """SQuAD v1.1: words of the lower-cased text without punctuation; a run of word characters that is an article goes.

    Articles are removed after punctuation, as whole words whose neighbours are no word characters, so that the signs
    around them (a dash outside ASCII, say) stay.
    """
    kept = [character for character in text.lower() if character not in ASCII_PUNCTUATION]
    runs: list[str] = []
    for character in kept:
        if runs and is_word_character(runs[-1][-1]) == is_word_character(character):
            runs[-1] += character
        else:
            runs.append(character)
    tokens, current = [], ""
    for character in "".join(" " if run in {"a", "an", "the"} else run for run in runs):
        if character.isspace():
            tokens.append(current)
            current = ""
        else:
            current += character
    return [token for token in [*tokens, current] if token]


def oracle_f1(prediction: str, answer: str) -> float:
    """2 * shared / (predicted + expected), with every shared token taken from the list once."""
    predicted, rest = oracle_tokens(prediction), oracle_tokens(answer)
    total, shared = len(predicted) + len(rest), 0
    for token in predicted:
        if token in rest:
            rest.remove(token)
            shared += 1
    return 2 * shared / total if shared else 0.0


WORDS = st.sampled_from(
    ["a", "an", "the", "A", "The", "AN", "cat", "Cat", "théâtre", "U.S.", "it's", "anthem", "e-mail", "1,000", "_the_"]
)
SEPARATORS = st.sampled_from([" ", "  ", "\t", "", ", ", "-", "–", "\u2003"])
PHRASES = st.lists(st.tuples(WORDS, SEPARATORS), max_size=6).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
TEXTS = st.one_of(PHRASES, st.text(max_size=20))


@settings(max_examples=300, deadline=None)
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_equals_the_second_implementation(prediction: str, answers: list[str]) -> None:
    assert normalise_answer(prediction).split() == oracle_tokens(prediction)
    expected = any(oracle_tokens(prediction) == oracle_tokens(answer) for answer in answers)
    assert exact_match(prediction, answers) == float(expected)
    assert f1(prediction, answers) == pytest.approx(max(oracle_f1(prediction, answer) for answer in answers))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Beatles", "beatles"),
        ("  An  apple a day. ", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre anthem a-b", "theatre anthem ab"),  # articles only as whole words, punctuation goes first
        ("the", ""),
        ("Café – the bar", "café – bar"),  # only ASCII punctuation is deleted
        ("A.D. 1066", "ad 1066"),
    ],
)
def test_normalised_text(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "answers", "match", "overlap"),
    [
        ("Allan Pinkerton", ["Pinkerton", "Allan Pinkerton"], 1.0, 1.0),
        ("pinkerton.", ["Pinkerton", "Allan Pinkerton"], 1.0, 1.0),
        ("Pinkerton the detective", ["Allan Pinkerton"], 0.0, 0.5),
        ("cat cat dog", ["cat dog dog"], 0.0, 2 / 3),  # multisets: one cat and one dog are shared
        ("1865", ["1864"], 0.0, 0.0),
        ("the", ["a"], 1.0, 0.0),  # both empty after normalising: equal, but no token is shared
        ("", ["Lincoln"], 0.0, 0.0),
    ],
)
def test_golden_scores(prediction: str, answers: list[str], match: float, overlap: float) -> None:
    assert exact_match(prediction, answers) == match
    assert f1(prediction, answers) == pytest.approx(overlap)
