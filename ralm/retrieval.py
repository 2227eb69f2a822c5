"""Passages for questions: search, leave out a question's own source, score again with a newer encoder where wanted.

Shapes: `B` questions, `K` passages per question, `C` candidates per question (at least K), `D` embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ralm.corpus.lookup import Passage, PassageLookup
from ralm.errors import ConfigError
from ralm.index.search import Index
from ralm.index.shard import Found

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rerank:
    """Over-retrieve, then score again with an encoder that is newer than the index.

    Source: Atlas (arXiv 2208.03299), section 2.4, "Over-retrieve with reranking".
    """

    num_candidates: int
    """Passages that are searched for and scored again, for one question."""
    embed: Callable[[Sequence[Passage]], np.ndarray]
    """Passages to vectors [N, D] of the newer passage encoder."""


@dataclass(frozen=True)
class Retrieved:
    """What was found for B questions, K passages each, the best first."""

    rows: np.ndarray
    """`[B, K]` int64, rows of the index."""
    passage_ids: np.ndarray
    """`[B, K]` int64."""
    scores: np.ndarray
    """`[B, K]` float32 inner products: those of the search, or of the newer encoder after reranking."""
    passages: list[list[Passage]]


class PassageRetriever:
    """Find passages in an index. Where several processes share it, each call is one of all of them.

    Args:
        index: the vectors.
        passages: the corpus of the index.
        overretrieve_ratio: how many times more passages are searched for at first where some must be left out.
        rerank: score candidates again; None takes the order of the search.

    Raises:
        ConfigError: the ratio is below 1.
    """

    def __init__(
        self, index: Index, passages: PassageLookup, *, overretrieve_ratio: int = 2, rerank: Rerank | None = None
    ) -> None:
        if overretrieve_ratio < 1:
            raise ConfigError(f"overretrieve_ratio: expected at least 1, found {overretrieve_ratio}")
        self.index, self.passages = index, passages
        self._ratio, self._rerank = overretrieve_ratio, rerank

    def find(self, question_BD: np.ndarray, k: int, exclude: Sequence[str | None] = ()) -> Retrieved:
        """The k best passages of each question.

        A passage is left out if its `source_id` or its `passage_id` (as decimal text) is what the question excludes.
        Where too few are left the search goes deeper, until the whole corpus was seen; only then are passages that
        should be left out put behind the others, with a warning.

        Args:
            question_BD: float32 question vectors.
            k: passages per question.
            exclude: for each question an id to leave out or None; empty leaves nothing out.

        Raises:
            ConfigError: k exceeds the number of passages, or the vectors have another size than the index's.
        """
        size = k if self._rerank is None else max(k, min(self._rerank.num_candidates, self.index.num_passages))
        own: list[str | None] = list(exclude) if any(exclude) else [None] * len(question_BD)
        found, passages = self._candidates(question_BD, size, own)
        if self._rerank is not None and len(question_BD):
            found, passages = self._score_again(question_BD, found, passages, k, own)
        if short := sum(any(_is_own(*pair)) for pair in zip(passages, own, strict=True)):
            logger.warning("retrieve: %d questions got passages of their own source: the corpus has no others", short)
        return Retrieved(found.rows, found.passage_ids, found.scores, passages)

    def _candidates(
        self, question_BD: np.ndarray, size: int, exclude: list[str | None]
    ) -> tuple[Found, list[list[Passage]]]:
        """The best `size` that are not left out. All processes of the index go equally deep."""
        world = self.index.world
        if not world.any(any(exclude)):
            found = self.index.search(question_BD, size)
            return found, self._fetch(found.passage_ids)
        depth = min(size * self._ratio, self.index.num_passages)
        while True:
            found = self.index.search(question_BD, depth)
            passages = self._fetch(found.passage_ids)
            order = [_kept_first(of_one, own) for of_one, own in zip(passages, exclude, strict=True)]
            is_short = any(kept < size for _, kept in order)
            if depth == self.index.num_passages or not world.any(is_short):
                break
            depth = min(2 * depth, self.index.num_passages)
        place_BC = np.array([places[:size] for places, _ in order], np.int64).reshape(len(order), size)
        return _take(found, passages, place_BC)

    def _score_again(
        self,
        question_BD: np.ndarray,
        found: Found,
        passages: list[list[Passage]],
        k: int,
        exclude: list[str | None],
    ) -> tuple[Found, list[list[Passage]]]:
        """The best k by the newer encoder; a question's own passages, where they had to be taken, stay the last."""
        assert self._rerank is not None
        vector_ND = self._rerank.embed([passage for of_one in passages for passage in of_one])
        score_BC = np.einsum("bd,bcd->bc", question_BD, vector_ND.reshape(*found.passage_ids.shape, -1)).astype(
            np.float32
        )
        is_own_BC = np.array([_is_own(*pair) for pair in zip(passages, exclude, strict=True)])
        place_BK = np.lexsort((found.passage_ids, -score_BC, is_own_BC), axis=1)[:, :k]
        return _take(found._replace(scores=score_BC), passages, place_BK)

    def _fetch(self, id_BK: np.ndarray) -> list[list[Passage]]:
        found = self.passages.get(id_BK)
        size = id_BK.shape[1]
        return [found[start : start + size] for start in range(0, len(found), size)]


def _take(found: Found, passages: list[list[Passage]], place_BK: np.ndarray) -> tuple[Found, list[list[Passage]]]:
    """Of each question's candidates those at these places, in this order."""
    chosen = [[of_one[place] for place in places] for of_one, places in zip(passages, place_BK, strict=True)]
    return Found(*(np.take_along_axis(values, place_BK, 1) for values in found)), chosen


def _kept_first(passages: Sequence[Passage], own: str | None) -> tuple[list[int], int]:
    """Places of the passages that are not of the question's own source, then those that are; and how many of the first.

    The order within both groups is that of the search.
    """
    is_own = _is_own(passages, own)
    order = sorted(range(len(passages)), key=lambda place: is_own[place])
    return order, len(passages) - sum(is_own)


def _is_own(passages: Sequence[Passage], own: str | None) -> list[bool]:
    """For each passage whether it is what a question excludes."""
    return [own is not None and own in (passage.source_id, str(passage.passage_id)) for passage in passages]
