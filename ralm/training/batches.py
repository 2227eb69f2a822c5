"""The batches of a run: which questions, what is retrieved for them, their tokens; the next one ahead where it may be.

While an update is computed, a thread searches, reads texts and tokenises for the next one. What it needs of the
question encoder, the vectors of the questions, is computed before, so the result does not depend on the timing. Where
the question encoder learns, these vectors are those of an update earlier: that is done only if `retrieve_ahead` is set.

With several processes each has its own consecutive part of every batch.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import torch

from ralm.retrieval import PassageRetriever, Rerank
from ralm.training.batch import Batch
from ralm.training.config import TrainingConfig
from ralm.training.examples import Example, TrainingSet
from ralm.training.learner import Learner
from ralm.training.refresh import IndexRefresher


class Batches:
    """Makes the batches of a run, in a `with` block.

    Args:
        learner: the models; encodes the questions.
        examples: what is learnt.
        refresher: the index in use; None where nothing is retrieved.
        config: the settings.
    """

    def __init__(
        self, learner: Learner, examples: TrainingSet, refresher: IndexRefresher | None, config: TrainingConfig
    ) -> None:
        self._learner, self._examples, self._refresher, self._config = learner, examples, refresher, config
        self._is_ahead = config.retrieve_ahead or config.mode == "reader_only"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=kind is None, cancel_futures=True)

    def take(self, step: int) -> Batch:
        """The batch of an update, by the encoders and the index as they are now or, if it was started, were then."""
        started, self._next = self._next, None
        with self._learner.timer.part("wait"):
            if started is not None and started[0] == step:
                return started[1].result()
            return self._make(*self._choose(step))

    def start(self, step: int) -> None:
        """Begin with the batch of an update, if that may be done ahead; `take` or `settle` has to follow."""
        if self._is_ahead:
            chosen = self._choose(step)
            self._next = step, self._thread.submit(self._make, *chosen)

    def settle(self) -> None:
        """Wait for what was started: the index and the other processes are then free for something else."""
        if self._next is not None:
            self._next[1].result()

    def questions(self, step: int) -> list[str]:
        """The questions of this process in an update."""
        return [example.question for example in self._own(step)]

    def _own(self, step: int) -> list[Example]:
        chosen = self._examples.batch(step, self._config.batch_size)
        return chosen[self._learner.world.part(len(chosen))]

    def _choose(self, step: int) -> tuple[list[Example], np.ndarray | None]:
        """This process' examples and, where passages are searched for, the vectors of their questions."""
        chosen = self._own(step)
        if self._refresher is None:
            return chosen, None
        return chosen, self._learner.embed_questions([each.question for each in chosen]).float().cpu().numpy()

    def _make(self, chosen: list[Example], question_BD: np.ndarray | None) -> Batch:
        questions, targets = [example.question for example in chosen], [example.target for example in chosen]
        if self._refresher is None or question_BD is None:
            given = [list(example.passages[: self._config.num_passages]) for example in chosen]
            passages = given if self._config.file_passages else [[] for _ in questions]
            return self._learner.tokenize(Batch(questions, targets, passages, None))
        with self._learner.timer.part("search"):
            found = make_retriever(self._learner, self._refresher, self._config).find(
                question_BD, self._config.num_scored, [example.source_id for example in chosen]
            )
        vector_BRD = None
        if self._config.mode == "query_side":
            vector_BRD = torch.from_numpy(self._refresher.index.vectors(found.rows)).to(self._learner.reader.device)
        return self._learner.tokenize(Batch(questions, targets, found.passages, vector_BRD))


def make_retriever(learner: Learner, refresher: IndexRefresher, config: TrainingConfig) -> PassageRetriever:
    """Search in the index in use, scored again by the passage encoder as it is now where that is wanted."""
    rerank = Rerank(config.num_reranked, learner.embed_passages) if config.num_reranked else None
    return PassageRetriever(
        refresher.index, refresher.passages, overretrieve_ratio=config.overretrieve_ratio, rerank=rerank
    )
