"""Answers from a model, an index and its passages: shared by `ralm ask`, the registered model and servers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ralm.artifacts.files import Location
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.device import best_device, resolve_dtype
from ralm.errors import ArtifactError, ConfigError
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import generate_answers
from ralm.retriever.embed import embed_questions
from ralm.retriever.encoder import Encoder

PASSAGES_AT_A_TIME = 160
"""Of all questions that are read together: a bound for memory."""


@dataclasses.dataclass(frozen=True)
class FoundPassage:
    """A passage that the index gave for a question."""

    passage: Passage
    score: float
    """Inner product of question and passage vector."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types; the id as a string, since 63 bits do not survive every JSON reader."""
        wanted = {name: getattr(self.passage, name) for name in ("title", "section", "text", "source_id")}
        return {"passage_id": str(self.passage.passage_id), "score": round(self.score, 4), **wanted}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the reader answers, and what it read."""

    question: str
    text: str
    log_probability: float
    """Of the answer under the reader, natural logarithm."""
    passages: tuple[FoundPassage, ...]
    """The best first."""
    num_candidates: int = 1
    """Answers that the reader had to choose from."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        found = [passage.to_json() for passage in self.passages]
        return {
            "question": self.question,
            "answer": self.text,
            "log_probability": round(self.log_probability, 4),
            "passages": found,
        }


class Searcher:
    """A retriever with its index and passages.

    Args:
        model: model artifact; only its retriever is loaded.
        index: index by this model's passage encoder.
        passages: the passages that the index was made from.
        precision: number format of the weights.

    Raises:
        ArtifactError: the three do not belong together.
    """

    def __init__(
        self,
        *,
        model: Location,
        index: Location,
        passages: Location,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ) -> None:
        self.model = open_model(model)
        self.device = best_device()
        self.dtype = resolve_dtype(precision, self.device)
        self._open(index, passages)
        self._encoder = Encoder.load(
            self.model.question_encoder_folder, self.model.retriever, device=self.device, dtype=self.dtype
        )

    def _open(self, index: Location, passages: Location) -> None:
        self.index = open_index(index, passage_encoder=self.model.fingerprints["passage_encoder"])
        self.passages = PassageLookup(passages)
        if self.index.passages_fingerprint != self.passages.fingerprint:
            raise ArtifactError(
                f"{index}: made from passages {self.index.passages_fingerprint}, but {passages} is "
                f"{self.passages.fingerprint}"
            )

    def with_index(self, *, index: Location, passages: Location) -> Searcher:
        """The same retriever, which is not loaded again, with another index; this searcher stays usable.

        Raises:
            ArtifactError: they do not belong together, or not to this retriever.
        """
        other = copy.copy(self)
        other._open(index, passages)
        return other

    def search(self, questions: Sequence[str], k: int) -> list[list[FoundPassage]]:
        """The k passages with the highest score for each question (all of them where there are fewer).

        Raises:
            ConfigError: k is below 1, or a question is empty.
        """
        if k < 1:
            raise ConfigError(f"k: expected at least 1, found {k}")
        if not all(question.strip() for question in questions):
            raise ConfigError("question: expected a text, found an empty one")
        question_BD = embed_questions(self._encoder, self.model.retriever, list(questions))
        result = self.index.search(question_BD, min(k, self.index.num_passages))
        found = []
        for score_K, id_K in zip(result.scores, result.passage_ids, strict=True):
            passages = self.passages.get(id_K)
            found.append([FoundPassage(*pair) for pair in zip(passages, map(float, score_K), strict=True)])
        return found


class Answerer:
    """A searcher with the model's reader.

    Args:
        model: model artifact.
        index: index by this model's passage encoder.
        passages: the passages that the index was made from.
        precision: number format of the weights.
    """

    def __init__(
        self,
        *,
        model: Location,
        index: Location,
        passages: Location,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ) -> None:
        self.searcher = Searcher(model=model, index=index, passages=passages, precision=precision)
        opened = self.searcher.model
        self.num_passages = opened.reader.num_passages
        self._reader = FusionReader.load(
            opened.reader_folder, opened.reader, device=self.searcher.device, dtype=self.searcher.dtype
        )

    def with_index(self, *, index: Location, passages: Location) -> Answerer:
        """The same model, which is not loaded again, with another index; this answerer stays usable.

        Raises:
            ArtifactError: they do not belong together, or not to this model.
        """
        other = copy.copy(self)
        other.searcher = self.searcher.with_index(index=index, passages=passages)
        return other

    def answer(self, questions: Sequence[str], *, k: int = 0) -> list[Answer]:
        """Answer questions from the passages retrieved for them.

        Args:
            questions: texts as given.
            k: passages the reader gets for each; 0: as many as the model's reader was set up for.
        """
        return self.read(questions, self.search(questions, k=k))

    def search(self, questions: Sequence[str], *, k: int = 0) -> list[list[FoundPassage]]:
        """The first half of `answer`: the passages for each question."""
        return self.searcher.search(questions, k or self.num_passages)

    def read(self, questions: Sequence[str], found: Sequence[Sequence[FoundPassage]]) -> list[Answer]:
        """The second half of `answer`: what the reader makes of each question's passages."""
        passages = [[hit.passage for hit in hits] for hits in found]
        batch_size = max(1, PASSAGES_AT_A_TIME // max([1, *map(len, found)]))
        readings = generate_answers(self._reader, list(questions), passages, batch_size=batch_size)
        return [
            Answer(
                question=question,
                text=reading.candidates[0].text,
                log_probability=reading.candidates[0].log_probability,
                passages=tuple(hits),
                num_candidates=len(reading.candidates),
            )
            for question, reading, hits in zip(questions, readings, found, strict=True)
        ]
