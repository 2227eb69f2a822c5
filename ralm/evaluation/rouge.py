"""ROUGE-1, ROUGE-2 and ROUGE-L of a prediction: overlap of distinct word n-grams and of common subsequences.

The values are those of the F measure in the package `rouge` 1.0.1, which the published Atlas figures were made with. It
differs from the original ROUGE: n-grams and words are counted once, sentences end at every full stop, words are cut at
white space and compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

_EPSILON = 1e-8


def rouge_1(prediction: str, answers: Sequence[str]) -> float:
    """F measure of the words that both texts hold, best over the answers, in [0, 1].

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 2, over distinct words.

    Example:
        >>> round(rouge_1("the old king", ["the king"]), 3)
        0.8
    """
    return max((_rouge_n(prediction, answer, 1) for answer in answers), default=0.0)


def rouge_2(prediction: str, answers: Sequence[str]) -> float:
    """F measure of the pairs of neighbouring words that both texts hold, best over the answers, in [0, 1].

    Source: Lin 2004, section 2, over distinct pairs.

    Example:
        >>> round(rouge_2("the old king", ["the old queen"]), 3)
        0.5
    """
    return max((_rouge_n(prediction, answer, 2) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F measure of the words in longest common subsequences of all sentence pairs, best over the answers, in [0, 1].

    Source: Lin 2004, section 3.2 (summary-level LCS), over distinct words.

    Example:
        >>> round(rouge_l("king the old", ["the old king"]), 3)
        0.667
    """
    return max((_rouge_l(prediction, answer) for answer in answers), default=0.0)


def _rouge_n(prediction: str, answer: str, size: int) -> float:
    ours, theirs = (_ngrams(_words(_sentences(text)), size) for text in (prediction, answer))
    return _f_measure(len(ours & theirs), len(ours), len(theirs))


def _rouge_l(prediction: str, answer: str) -> float:
    ours, theirs = _sentences(prediction), _sentences(answer)
    pairs = [(expected, found) for expected in theirs for found in ours]
    common = {word for pair in pairs for word in _common_subsequence(*(sentence.split(" ") for sentence in pair))}
    return _f_measure(len(common), len(set(_words(ours))), len(set(_words(theirs))))


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split(".") if part]


def _words(sentences: Sequence[str]) -> list[str]:
    return [word for sentence in sentences for word in sentence.split(" ")]


def _ngrams(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _f_measure(num_shared: int, num_predicted: int, num_expected: int) -> float:
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / num_predicted, num_shared / num_expected
    return 2.0 * precision * recall / (precision + recall + _EPSILON)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """One longest common subsequence, last word first.

    Of several it is the one that is met going back from both ends, in `second` first.
    """
    length = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first, start=1):
        above, row = length[i - 1], length[i]
        for j, other in enumerate(second, start=1):
            row[j] = above[j - 1] + 1 if word == other else max(above[j], row[j - 1])
    words, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.append(first[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
