"""questions + model + index -> predictions and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.evaluate.config import EvaluateConfig
from ralm.artifacts.files import Location, write_json
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.schemas import predictions_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.device import best_device, resolve_dtype
from ralm.errors import ArtifactError, DataError
from ralm.evaluation.predict import RANKS, ReadAnswers, Retriever, Stopwatch, predict, summarise
from ralm.index.search import Index, open_index
from ralm.model import Model, open_model
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import Candidate, generate_answers
from ralm.retriever.embed import embed_questions
from ralm.retriever.encoder import Encoder
from ralm.tasks.base import Question, open_questions
from ralm.tasks.catalog import task_of, usable_questions
from ralm.tasks.config import TaskConfig

STAGE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The passages to retrieve from and their index."""

    passages: PassageLookup
    index: Index


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything one evaluation needs, checked."""

    questions: Sequence[Question]
    model: Model
    corpus: Corpus | None
    config: EvaluateConfig
    num_passages: int
    device: torch.device
    dtype: torch.dtype
    skipped: dict[str, int]


def evaluate(
    *,
    passages: Location,
    index: Location,
    model: Location,
    questions: Location,
    predictions: Location,
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
) -> Manifest:
    """Answer questions with retrieved passages and score the answers and the retrieval.

    Args:
        passages: Passages artifact that the index was made from.
        index: Index of these passages by the model's passage encoder.
        model: Model artifact: retriever and reader.
        questions: Questions artifact.
        predictions: Output folder: one table named after the split, and metrics.json with fractions between 0 and 1.
        config: Which questions, how many passages, which cut-offs.

    Returns:
        The manifest of the predictions; milliseconds per question are in timings.json.

    Raises:
        ArtifactError: an input is unfinished, or passages, index and model do not belong together.
        DataError: the corpus has fewer passages than are asked for, or the questions cannot be scored.
    """
    opened = open_model(model)
    table, rows = open_questions(questions, config.split, config.max_questions)
    used, skipped = usable_questions(rows, TaskConfig())
    device = best_device()
    dtype = resolve_dtype(config.precision, device)
    num_passages = opened.reader.num_passages if config.num_passages == "auto" else config.num_passages
    inputs = {"model": opened.manifest.fingerprint, "questions": table.fingerprint}
    corpus = None
    if not config.closed_book:
        corpus = _open_corpus(passages, index, opened, num_passages, config.recall_at)
        inputs |= {"passages": corpus.passages.fingerprint, "index": corpus.index.fingerprint}
    run = Run(used, opened, corpus, config, 0 if corpus is None else num_passages, device, dtype, skipped)
    return produce(
        predictions,
        kind="predictions",
        stage="evaluate",
        stage_version=STAGE_VERSION,
        inputs=inputs,
        config={
            **dataclasses.asdict(config),
            "num_passages": run.num_passages,
            "recall_at": sorted(config.recall_at) if corpus else [],
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        },
        build=lambda folder: _build(folder, run),
    )


def _open_corpus(
    passages: Location, index: Location, model: Model, num_passages: int, recall_at: Sequence[int]
) -> Corpus:
    opened = open_index(index, passage_encoder=model.fingerprints["passage_encoder"])
    lookup = PassageLookup(passages)
    if opened.passages_fingerprint != lookup.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {opened.passages_fingerprint}, but {passages} is {lookup.fingerprint}"
        )
    for name, k in (("num_passages", num_passages), ("recall_at", max(recall_at))):
        if k > opened.num_passages:
            raise DataError(
                f"{index}: the corpus has {opened.num_passages} passages, but config.{name} asks for {k} of them"
            )
    return Corpus(lookup, opened)


def _build(folder: Path, run: Run) -> Contents:
    task = task_of(run.questions)
    name = f"{run.config.split}.parquet"
    watch = Stopwatch()
    done: list[dict[str, Any]] = []
    with TableWriter(folder / name, predictions_schema([*task.metrics, *RANKS])) as writer:
        for rows in predict(
            run.questions,
            task=task,
            retriever=_retriever(run),
            read=_read_answers(run),
            batch_size=_batch_size(run),
            watch=watch,
        ):
            writer.write(rows)
            done += ({key: row[key] for key in (*task.metrics, *RANKS)} for row in rows)
    cutoffs = sorted(run.config.recall_at) if run.corpus else []
    metrics = summarise(done, run.questions, task=task, cutoffs=cutoffs)
    write_json(folder / "metrics.json", metrics)
    return Contents(
        rows={name: len(done)},
        counts={"questions": len(done), **run.skipped},
        details={
            "task": run.questions[0].task,
            "split": run.config.split,
            "closed_book": run.config.closed_book,
            "num_passages": run.num_passages,
            "corpus_passages": run.corpus.index.num_passages if run.corpus else 0,
            "fingerprints": dict(run.model.fingerprints),
        },
        timings=watch.per_question_ms(len(done)),
    )


def _batch_size(run: Run) -> int:
    tokens = max(run.num_passages, 1) * run.model.reader.max_input_tokens
    return max(1, min(run.config.batch_size, run.config.max_batch_tokens // tokens))


def _retriever(run: Run) -> Retriever | None:
    if run.corpus is None:
        return None
    settings = run.model.retriever
    encoder = Encoder.load(run.model.question_encoder_folder, settings, device=run.device, dtype=run.dtype)

    def encode(questions: Sequence[str]) -> np.ndarray:
        return embed_questions(encoder, settings, questions)

    return Retriever(
        encode=encode,
        index=run.corpus.index,
        fetch=run.corpus.passages.get,
        num_retrieved=max(run.num_passages, *run.config.recall_at),
        num_read=run.num_passages,
    )


def _read_answers(run: Run) -> ReadAnswers:
    reader = FusionReader.load(run.model.reader_folder, run.model.reader, device=run.device, dtype=run.dtype)

    def read(questions: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[list[Candidate]]:
        return list(generate_answers(reader, questions, passages, batch_size=len(questions)))

    return read
