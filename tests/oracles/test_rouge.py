"""ROUGE equals the package `rouge` 1.0.1, which Atlas was scored with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from ralm.evaluation.rouge import rouge_1, rouge_2, rouge_l

REFERENCE = Rouge()
OURS = {"rouge-1": rouge_1, "rouge-2": rouge_2, "rouge-l": rouge_l}
SENTENCES = st.lists(
    st.sampled_from(["the", "old", "king", "queen", "The", "a,", "sea", ".", " ", ". .", "king."]), max_size=25
)


def reference(prediction: str, answer: str) -> dict[str, float]:
    try:
        (scores,) = REFERENCE.get_scores(prediction, answer)
    except ValueError:  # an empty text
        return dict.fromkeys(OURS, 0.0)
    return {name: value["f"] for name, value in scores.items()}


@given(SENTENCES.map(" ".join), SENTENCES.map(" ".join))
@settings(deadline=None, max_examples=300)
def test_equal_to_the_package(prediction: str, answer: str) -> None:
    expected = reference(prediction, answer)
    for name, measure in OURS.items():
        assert measure(prediction, [answer]) == pytest.approx(expected[name], abs=1e-12), name


def test_real_texts() -> None:
    prediction = "Emma Woodhouse is handsome. She is clever, and rich, with a comfortable home."
    answer = "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition. She is 21."
    expected = reference(prediction, answer)
    assert 0.2 < expected["rouge-2"] < expected["rouge-l"] <= expected["rouge-1"] < 1
    for name, measure in OURS.items():
        assert measure(prediction, [answer]) == pytest.approx(expected[name], abs=1e-12)
        assert measure(prediction, ["no such words", answer]) == measure(prediction, [answer]), "the best answer counts"


def test_by_hand() -> None:
    assert rouge_1("the old king", ["the king sleeps"]) == pytest.approx(2 / 3, abs=1e-7)
    assert rouge_2("a b c d", ["a b x c d"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4), abs=1e-7)
    assert rouge_l("a b c d", ["b a c d"]) == pytest.approx(3 / 4, abs=1e-7)
    for measure in OURS.values():
        assert measure("", ["a"]) == measure("a", [""]) == measure("...", ["a"]) == measure("a", []) == 0.0


def test_long_texts_do_not_fail() -> None:
    """The package gives up on them (its recursion is too deep), which Atlas counts as 0."""
    words = " ".join(f"w{n % 700}" for n in range(1500))
    assert rouge_l(words, [words]) == pytest.approx(1.0)
