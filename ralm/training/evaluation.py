"""Questions asked on the way: how good the models are that are being trained, on questions that they do not learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ralm.distributed import World
from ralm.evaluation.passage_sources import (
    FilePassages,
    NoPassages,
    PassageSource,
    SearchedPassages,
    check_file_passages,
)
from ralm.evaluation.predict import count_copies, predict, summarise
from ralm.evaluation.stopwatch import Stopwatch
from ralm.reader.config import GenerationConfig
from ralm.reader.generate import Reading, generate_answers
from ralm.reader.prompts import PassageText
from ralm.retrieval import PassageRetriever, Retrieved
from ralm.tasks.base import Question, Tools
from ralm.tasks.catalog import task_of, usable_questions
from ralm.tasks.config import TaskConfig
from ralm.training.batches import make_retriever
from ralm.training.config import TrainingConfig
from ralm.training.learner import Learner
from ralm.training.loop import Evaluate
from ralm.training.refresh import IndexRefresher

MAX_BATCH_TOKENS = 65_536
ENCODED_AT_ONCE = 64


def make_evaluation(questions: Sequence[Question], *, settings: TaskConfig, config: TrainingConfig) -> Evaluate:
    """An evaluation of the models of a run, with the passages and the index that they are trained with.

    Args:
        questions: rows of one task.
        settings: choices of the tasks.
        config: of the training.

    Raises:
        ConfigError: a row can be asked in too many ways.
        DataError: a row that the task cannot use, one without the passages that it has to bring, or none left.
    """
    used, _ = usable_questions(questions, settings)
    task = task_of(used)
    count_copies(used, task, Tools(settings=settings))  # refused now, not after hours of training
    if config.file_passages:
        check_file_passages(used)

    def evaluate(learner: Learner, refresher: IndexRefresher | None) -> dict[str, float]:
        reader = learner.reader.eval()
        tools = Tools(
            settings=settings,
            tokenizer=reader.tokenizer,
            max_input_tokens=reader.config.max_input_tokens,
            question_format=reader.config.question_format,
        )

        def read(queries: Sequence[str], passages: Sequence[Sequence[PassageText]], **asked: Any) -> Iterable[Reading]:
            with learner.precision():
                return list(
                    generate_answers(
                        reader, queries, passages, generation=GenerationConfig(), batch_size=len(queries), **asked
                    )
                )

        watch, world = Stopwatch(), learner.world
        searcher = None if refresher is None else _InStep(make_retriever(learner, refresher, config), world)
        own_rows = [
            row
            for batch in predict(
                used[world.part(len(used))],
                task=task,
                tools=tools,
                seed=config.seed,
                source=_source(learner, searcher, config, watch),
                read=read,
                batch_size=max(1, MAX_BATCH_TOKENS // (config.num_passages * reader.config.max_input_tokens)),
                watch=watch,
            )
            for row in batch
        ]
        if searcher is not None:
            searcher.finish(learner.embed_questions([]).numpy(), config.num_passages)
        rows = [row for part in world.gather_json(own_rows) for row in part]
        cutoffs = [config.num_passages] if config.retrieves else []
        metrics = summarise(rows, used, task=task, cutoffs=cutoffs)
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    return evaluate


class _InStep:
    """A search of several processes, of which some have more batches than others.

    Args:
        retriever: searches with all of them.
        world: they.
    """

    def __init__(self, retriever: PassageRetriever, world: World) -> None:
        self.retriever, self._world = retriever, world

    def find(self, question_BD: np.ndarray, k: int, exclude: Sequence[str | None]) -> Retrieved:
        """The k best passages of each question."""
        self._world.any(True)
        return self.retriever.find(question_BD, k, exclude)

    def finish(self, nothing_0D: np.ndarray, k: int) -> None:
        """Take part in the searches of the others until none has any left."""
        while self._world.any(False):
            self.retriever.find(nothing_0D, k)


def _source(learner: Learner, searcher: _InStep | None, config: TrainingConfig, watch: Stopwatch) -> PassageSource:
    if searcher is None:
        return FilePassages(config.num_passages) if config.file_passages else NoPassages()

    def embed(queries: Sequence[str]) -> np.ndarray:
        parts = (queries[start : start + ENCODED_AT_ONCE] for start in range(0, len(queries), ENCODED_AT_ONCE))
        return np.concatenate([learner.embed_questions(part).float().cpu().numpy() for part in parts])

    return SearchedPassages(embed, searcher, config.num_passages, config.num_passages, watch)
