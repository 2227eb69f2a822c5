"""questions + model + index -> predictions and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.evaluate.config import EvaluateConfig
from ralm.artifacts.files import Location, write_json
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.schemas import predictions_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.device import best_device, resolve_dtype
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.evaluation.passage_sources import (
    FilePassages,
    NoPassages,
    PassageSource,
    SearchedPassages,
    check_file_passages,
)
from ralm.evaluation.predict import EVAL_LOSS, RANKS, ReadAnswers, predict, summarise
from ralm.evaluation.stopwatch import Stopwatch
from ralm.index.search import Index, open_index
from ralm.log import progress
from ralm.model import Model, open_model
from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import Reading, generate_answers
from ralm.reader.prompts import PassageText
from ralm.reader.tokenizer import load_tokenizer
from ralm.retrieval import PassageRetriever, Rerank
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.embed import embed_questions, embed_texts
from ralm.retriever.encoder import Encoder
from ralm.tasks.base import Question, Task, Tools, open_questions
from ralm.tasks.catalog import task_of, usable_questions
from ralm.tasks.formats import task_formats

STAGE_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The passages to retrieve from and their index."""

    passages: PassageLookup
    index: Index


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything one evaluation needs, checked."""

    questions: Sequence[Question]
    skipped: dict[str, int]
    task: Task
    model: Model
    reader: ReaderConfig
    retriever: RetrieverConfig
    corpus: Corpus | None
    config: EvaluateConfig
    num_passages: int
    cutoffs: list[int]
    device: torch.device
    dtype: torch.dtype


def evaluate(
    *,
    model: Location,
    questions: Location,
    predictions: Location,
    passages: Location = "",
    index: Location = "",
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
) -> Manifest:
    """Answer questions with retrieved passages and score the answers and the retrieval.

    Args:
        model: Model artifact: retriever and reader.
        questions: Questions artifact.
        predictions: Output folder: one table named after the split, and metrics.json with fractions between 0 and 1.
        passages: Passages artifact that the index was made from; not used in closed book and with file passages.
        index: Index of these passages by the model's passage encoder; not used where passages are not.
        config: Which questions, which passages, which cut-offs.

    Returns:
        The manifest of the predictions; milliseconds per question are in timings.json.

    Raises:
        ArtifactError: an input is unfinished, or passages, index and model do not belong together.
        ConfigError: a needed input is not named.
        DataError: the corpus has fewer passages than are asked for, or the questions cannot be asked.
    """
    opened = open_model(model)
    table, rows = open_questions(questions, config.split, config.max_questions)
    used, skipped = usable_questions(rows, config.task)
    device = best_device()
    dtype = resolve_dtype(config.precision, device)
    num_passages = opened.reader.num_passages if config.num_passages == "auto" else config.num_passages
    inputs = {"model": opened.manifest.fingerprint, "questions": table.fingerprint}
    corpus = None
    if config.retrieves:
        corpus = _open_corpus(passages, index, opened, num_passages, config)
        inputs |= {"passages": corpus.passages.fingerprint, "index": corpus.index.fingerprint}
    if config.file_passages:
        check_file_passages(used)
    task = task_of(used)
    reader, retriever = task_formats(task, opened.reader, opened.retriever)
    if config.max_input_tokens != "auto":
        reader = dataclasses.replace(reader, max_input_tokens=config.max_input_tokens)
    num_read = 0 if config.closed_book else num_passages
    cutoffs = config.cutoffs(corpus.index.num_passages if corpus else None)
    run = Run(used, skipped, task, opened, reader, retriever, corpus, config, num_read, cutoffs, device, dtype)
    return produce(
        predictions,
        kind="predictions",
        stage="evaluate",
        stage_version=STAGE_VERSION,
        inputs=inputs,
        config={
            **dataclasses.asdict(config),
            "num_passages": num_read,
            "max_input_tokens": reader.max_input_tokens,
            "recall_at": cutoffs,
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        },
        seed=config.seed,
        build=lambda folder: _build(folder, run),
    )


def _open_corpus(
    passages: Location, index: Location, model: Model, num_passages: int, config: EvaluateConfig
) -> Corpus:
    for name, place in (("passages", passages), ("index", index)):
        if not place:
            raise ConfigError(f"evaluate: no --{name}; it is needed unless closed_book or file_passages is set")
    encoder = model.fingerprints["passage_encoder"]
    if config.num_reranked:  # an index by an older encoder only proposes
        encoder = open_artifact(index, "index").manifest.details["passage_encoder"]
    opened = open_index(index, passage_encoder=encoder)
    lookup = PassageLookup(passages)
    if opened.passages_fingerprint != lookup.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {opened.passages_fingerprint}, but {passages} is {lookup.fingerprint}"
        )
    most = max(config.cutoffs(opened.num_passages))
    for name, k in (("num_passages", num_passages), ("recall_at", most)):
        if k > opened.num_passages:
            raise DataError(
                f"{index}: the corpus has {opened.num_passages} passages, but config.{name} asks for {k} of them"
            )
    return Corpus(lookup, opened)


def _build(folder: Path, run: Run) -> Contents:
    name = f"{run.config.split}.parquet"
    columns = [*run.task.metrics, EVAL_LOSS, *RANKS]
    watch = Stopwatch()
    done: list[dict[str, Any]] = []
    reader = None if run.config.retrieve_only else _load_reader(run)
    with TableWriter(folder / name, predictions_schema(columns)) as writer:
        for rows in predict(
            run.questions,
            task=run.task,
            tools=_tools(run, reader),
            seed=run.config.seed,
            source=_passage_source(run, watch),
            read=None if reader is None else _read_answers(run, reader),
            batch_size=_batch_size(run),
            watch=watch,
        ):
            writer.write(rows)
            done += ({key: row[key] for key in columns} for row in rows)
    write_json(folder / "metrics.json", summarise(done, run.questions, task=run.task, cutoffs=run.cutoffs))
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
    tokens = max(run.num_passages, 1) * run.reader.max_input_tokens
    return max(1, min(run.config.batch_size, run.config.max_batch_tokens // tokens))


def _tools(run: Run, reader: FusionReader | None) -> Tools:
    return Tools(
        settings=run.config.task,
        tokenizer=load_tokenizer(run.model.reader_folder) if reader is None else reader.tokenizer,
        max_input_tokens=run.reader.max_input_tokens,
        question_format=run.reader.question_format,
    )


def _passage_source(run: Run, watch: Stopwatch) -> PassageSource:
    if run.config.file_passages:
        return FilePassages(run.num_passages)
    if run.corpus is None:
        return NoPassages()
    encoder = _load_encoder(run, run.model.question_encoder_folder)

    def embed(queries: Sequence[str]) -> np.ndarray:
        return embed_questions(encoder, run.retriever, queries)

    searcher = PassageRetriever(
        run.corpus.index,
        run.corpus.passages,
        overretrieve_ratio=run.config.overretrieve_ratio,
        rerank=_rerank(run) if run.config.num_reranked else None,
    )
    num_retrieved = max(run.num_passages, *run.cutoffs)
    return SearchedPassages(embed, searcher, num_retrieved, run.num_passages, watch)


def _rerank(run: Run) -> Rerank:
    encoder = _load_encoder(run, run.model.passage_encoder_folder)
    bar = progress(total=None, what="rerank", unit="passages")

    def embed(passages: Sequence[Passage]) -> np.ndarray:
        texts = [run.retriever.format_passage(passage.title, passage.section, passage.text) for passage in passages]
        return embed_texts(encoder, texts, max_tokens=run.retriever.max_passage_tokens, bar=bar)

    return Rerank(run.config.num_reranked, embed)


def _load_encoder(run: Run, folder: Path) -> Encoder:
    return Encoder.load(folder, run.retriever, device=run.device, dtype=run.dtype)


def _load_reader(run: Run) -> FusionReader:
    return FusionReader.load(run.model.reader_folder, run.reader, device=run.device, dtype=run.dtype)


def _read_answers(run: Run, reader: FusionReader) -> ReadAnswers:
    def read(
        queries: Sequence[str],
        passages: Sequence[Sequence[PassageText]],
        *,
        options: Sequence[Sequence[str]] | None,
        targets: Sequence[str | None] | None,
    ) -> Iterable[Reading]:
        return generate_answers(
            reader,
            queries,
            passages,
            generation=run.config.generation,
            batch_size=len(queries),
            options=options,
            targets=targets,
        )

    return read
