"""Text as it is compared: answers as SQuAD scores them, token sequences as DPR looks for them in passages."""

from __future__ import annotations

import dataclasses
import re
import string
import unicodedata
from collections.abc import Sequence

import regex

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_BETWEEN = "\x00"  # never part of a token: it is a control character


def normalise_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation, replace the words a, an, the by a space, collapse white space.

    Source: the SQuAD v1.1 evaluation script (Rajpurkar et al. 2016); the order of the steps matters.

    Example:
        >>> normalise_answer(" The  U.S.A.")
        'usa'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalise_title(text: str) -> str:
    """A page title for comparison: composed characters, underscores as spaces, one space between words, no case."""
    return " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split()).casefold()


@dataclasses.dataclass(frozen=True)
class Token:
    """A word or sign of a text."""

    text: str
    """Decomposed (NFD) and lower-cased."""
    start: int
    """Where it begins in the original text."""
    end: int


def tokenise(text: str) -> list[Token]:
    """Words (letters, numbers, marks) and single other signs, without white space and control characters.

    Source: the tokens of DPR's answer check (Karpukhin et al. 2020, section 4.1, after DrQA): the pattern is applied to
    the original text, which gives the same tokens and keeps the offsets.

    Example:
        >>> [token.text for token in tokenise("Post-War, 1945")]
        ['post', '-', 'war', ',', '1945']
    """
    return [
        Token(unicodedata.normalize("NFD", match.group()).lower(), match.start(), match.end())
        for match in _TOKEN.finditer(text)
    ]


class AnswerFinder:
    """Finds any of a question's answers in texts, as whole token sequences: `us` is not in `music`.

    Args:
        answers: accepted answers; one without any token never matches.

    Example:
        >>> AnswerFinder(["US"]).is_in("music"), AnswerFinder(["US"]).is_in("The US, then")
        (False, True)
    """

    def __init__(self, answers: Sequence[str]) -> None:
        sequences = {tuple(token.text for token in tokenise(answer)) for answer in answers}
        self._sequences = sorted((sequence for sequence in sequences if sequence), key=lambda item: (-len(item), item))
        self._needles = [_join(sequence) for sequence in self._sequences]

    def is_in(self, text: str) -> bool:
        """True if the text holds one of the answers."""
        tokens = _join([token.text for token in tokenise(text)])
        return any(needle in tokens for needle in self._needles)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where answers stand in the text: (start, end) offsets, ascending, not overlapping, longer answers first."""
        tokens = tokenise(text)
        words = [token.text for token in tokens]
        spans, position = [], 0
        while position < len(words):
            length = next((len(s) for s in self._sequences if tuple(words[position : position + len(s)]) == s), 0)
            if length:
                spans.append((tokens[position].start, tokens[position + length - 1].end))
            position += length or 1
        return spans


def _join(tokens: Sequence[str]) -> str:
    return _BETWEEN + _BETWEEN.join(tokens) + _BETWEEN
