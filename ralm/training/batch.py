"""The questions of an update with what was retrieved for them, as texts and as tokens.

Shapes: `B` questions, `R` passages retrieved for each, `T` target tokens, `D` embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ralm.reader.fusion import FusionReader
from ralm.reader.prompts import PassageText
from ralm.retriever.encoder import Encoder


@dataclass(frozen=True)
class Tokens:
    """Some questions of a batch as the models take them."""

    inputs: list[list[list[int]]]
    """Of the reader: `[question][passage][token]`."""
    labels: Tensor
    """`[B, T]`, labels of the targets."""
    questions: list[np.ndarray]
    """Of the question encoder; none where it does not learn."""
    passages: list[np.ndarray]
    """Of the passage encoder, R for each question; none where it does not learn."""

    @property
    def num_targets(self) -> int:
        """Target tokens that are learnt."""
        return int((self.labels >= 0).sum())


@dataclass(frozen=True)
class Batch:
    """One update's questions with what was retrieved for them."""

    questions: list[str]
    targets: list[str]
    passages: Sequence[Sequence[PassageText]]
    """R passages for each question, the best first; none in closed-book training."""
    vectors: Tensor | None
    """Index vectors of the passages, `[B, R, D]`, for query-side training."""
    parts: tuple[tuple[Batch, Tokens], ...] = ()
    """The batch in the parts that are computed at a time; made by `cut`."""

    def __len__(self) -> int:
        """B."""
        return len(self.questions)

    def cut(
        self, size: int, *, reader: FusionReader, question_encoder: Encoder | None, passage_encoder: Encoder | None
    ) -> Batch:
        """The same batch with its parts of at most `size` questions, as texts and as tokens.

        Args:
            size: questions in a part.
            reader: whose tokens.
            question_encoder: whose tokens, where it learns.
            passage_encoder: whose tokens, where it learns.
        """
        parts = []
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            vectors = None if self.vectors is None else self.vectors[rows]
            part = Batch(self.questions[rows], self.targets[rows], self.passages[rows], vectors)
            tokens = Tokens(
                reader.tokenize_inputs(part.questions, part.passages),
                reader.tokenize_targets(part.targets, part.questions),
                [] if question_encoder is None else question_tokens(question_encoder, part.questions),
                [] if passage_encoder is None else passage_tokens(passage_encoder, part.passages),
            )
            parts.append((part, tokens))
        return replace(self, parts=tuple(parts))


def question_tokens(encoder: Encoder, questions: Sequence[str]) -> list[np.ndarray]:
    """Token ids of questions in the encoder's format."""
    texts = [encoder.config.format_question(question) for question in questions]
    return encoder.tokenize(texts, encoder.config.max_question_tokens)


def passage_tokens(encoder: Encoder, passages: Sequence[Sequence[PassageText]]) -> list[np.ndarray]:
    """Token ids of passages in the encoder's format, of one question after the other."""
    texts = passage_texts(encoder, [passage for of_question in passages for passage in of_question])
    return encoder.tokenize(texts, encoder.config.max_passage_tokens)


def passage_texts(encoder: Encoder, passages: Sequence[PassageText]) -> list[str]:
    """What the passage encoder is given."""
    return [encoder.config.format_passage(passage.title, passage.section, passage.text) for passage in passages]
