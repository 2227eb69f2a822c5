"""Prefix language modelling: write the rest of a text, given its beginning."""

from __future__ import annotations

import re

import numpy as np

from ralm.tasks.base import Asked, Question, Tools
from ralm.tasks.text import TextTask

_WORD = re.compile(r"(\S+)")


class LanguageModelling(TextTask):
    """The task `lm`."""

    fewest_words = 2

    def ask(self, question: Question, copy: int, tools: Tools, generator: np.random.Generator) -> Asked:
        """Cut the text in two."""
        settings = tools.settings
        ratios = settings.lm_min_context_ratio, settings.lm_max_context_ratio
        left, right = split_text(question.question, *ratios, generator)
        return Asked(query=left, targets=(right,), answers=(right,))


def split_text(text: str, min_ratio: float, max_ratio: float, generator: np.random.Generator) -> tuple[str, str]:
    r"""A text in two parts, cut before a word or a gap; both hold a word.

    Words and gaps are counted together, the empty gaps around the text too, and the cut falls between the two ratios.
    Source: the published Atlas code's task `lm` (behaviour only), kept away from the ends of the text, where that code
    leaves one part without a word.

    Args:
        text: at least two words.
        min_ratio: smallest part on the left.
        max_ratio: largest part on the left.
        generator: draws the place of the cut.

    Example:
        >>> split_text("one two  three four", 0.5, 0.5, np.random.default_rng(0))
        ('one two  ', 'three four')
    """
    pieces = _WORD.split(text)
    count = len(pieces)
    low = int(max(2, count * min_ratio))
    high = int(max(min(count - 2, count * max_ratio), low + 1))
    cut = min(int(generator.integers(low, high + 1)), count - 2)
    return "".join(pieces[:cut]), "".join(pieces[cut:])
