"""passages + index + model + questions -> trained model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from components.train.config import TrainConfig
from ralm.artifacts.files import Location, remove
from ralm.artifacts.manifest import Manifest, artifact_key
from ralm.artifacts.schemas import TRAINING_LOG
from ralm.artifacts.store import Contents, checkpoint_folder, plain_config, produce
from ralm.artifacts.tables import write_table
from ralm.corpus.lookup import PassageLookup
from ralm.device import best_device, resolve_dtype
from ralm.errors import ArtifactError, ConfigError
from ralm.index.search import Index, open_index
from ralm.model import Model, model_details, open_model, write_reader_config, write_retriever_config
from ralm.reader.fusion import FusionReader
from ralm.retriever.encoder import Encoder
from ralm.tasks.base import open_questions
from ralm.training.examples import Example, make_examples
from ralm.training.learner import Learner
from ralm.training.loop import TrainingResult, train_model

STAGE_VERSION = 1
LOG = "training_log.parquet"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything one training needs, checked."""

    model: Model
    passages: PassageLookup
    index: Index
    examples: Sequence[Example]
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    checkpoints: Path


def train(
    *,
    passages: Location,
    index: Location,
    model: Location,
    questions: Location,
    trained: Location,
    config: TrainConfig = TrainConfig(),  # noqa: B008
) -> Manifest:
    """Train reader and retriever together, with retrieval in the loop.

    A killed or stopped run goes on from its last checkpoint when the same command is given again, and ends with the
    same bytes as one that was left alone.

    Args:
        passages: Passages artifact that the index was made from.
        index: Index of these passages by the model's passage encoder.
        model: Model artifact to start from.
        questions: Questions artifact with answers.
        trained: Output folder: a model artifact with the table training_log.parquet beside the weights.
        config: What learns, from what, for how long, how fast.

    Returns:
        The manifest of the trained model; milliseconds of the parts of an update are in timings.json.

    Raises:
        ArtifactError: an input is unfinished, or passages, index and model do not belong together.
        ConfigError: more passages per question than there are.
        DataError: the split is missing, empty, or has questions without answers.
    """
    opened = open_model(model)
    table, rows = open_questions(questions, config.split, config.max_questions)
    corpus, searched = _open_corpus(passages, index, opened, config)
    device = best_device()
    dtype = resolve_dtype(config.precision, device)
    inputs = {
        "passages": corpus.fingerprint,
        "index": searched.fingerprint,
        "model": opened.manifest.fingerprint,
        "questions": table.fingerprint,
    }
    plain = _plain_config(config, dtype)
    key = artifact_key(stage="train", stage_version=STAGE_VERSION, inputs=inputs, config=plain, seed=config.seed)
    checkpoints = checkpoint_folder(key)
    run = Run(opened, corpus, searched, make_examples(rows), config, device, dtype, checkpoints)
    manifest = produce(
        trained,
        kind="model",
        stage="train",
        stage_version=STAGE_VERSION,
        inputs=inputs,
        config=plain,
        seed=config.seed,
        build=lambda folder: _build(folder, run),
    )
    remove(checkpoints)
    return manifest


def _plain_config(config: TrainConfig, dtype: torch.dtype) -> dict[str, object]:
    """What changes the result: no checkpoint interval, and the number format that was chosen."""
    plain = plain_config(config)
    del plain["checkpoint_every_steps"]
    return {**plain, "num_retrieved": config.num_scored, "precision": "bf16" if dtype == torch.bfloat16 else "fp32"}


def _open_corpus(passages: Location, index: Location, model: Model, config: TrainConfig) -> tuple[PassageLookup, Index]:
    opened = open_index(index, passage_encoder=model.fingerprints["passage_encoder"])
    lookup = PassageLookup(passages)
    if opened.passages_fingerprint != lookup.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {opened.passages_fingerprint}, but {passages} is {lookup.fingerprint}"
        )
    if not config.closed_book and config.num_scored > opened.num_passages:
        raise ConfigError(
            f"{index}: the corpus has {opened.num_passages} passages, fewer than the {config.num_scored} that "
            "num_passages and num_retrieved ask for"
        )
    return lookup, opened


def _build(folder: Path, run: Run) -> Contents:
    learner = _load_learner(run)
    result = train_model(
        learner,
        index=run.index,
        passages=run.passages,
        examples=run.examples,
        config=run.config,
        checkpoints=run.checkpoints,
    )
    _write_model(folder, learner, run)
    num_rows = write_table(folder / LOG, result.log, TRAINING_LOG)
    return Contents(
        rows={LOG: num_rows},
        counts={"questions": len(run.examples), "steps": num_rows},
        details={**model_details(folder), "training": _summarise(result)},
        timings=result.timings,
    )


def _load_learner(run: Run) -> Learner:
    """The models in fp32: what learns, and a frozen question encoder where only the reader does."""
    model, config = run.model, run.config
    reader = FusionReader.load(model.reader_folder, model.reader, device=run.device)
    question_encoder, passage_encoder = None, None
    if not config.closed_book:
        question_encoder = _load_encoder(model.question_encoder_folder, run)
    if config.mode == "joint":
        passage_encoder = question_encoder if model.tied else _load_encoder(model.passage_encoder_folder, run)
    return Learner(reader, question_encoder, passage_encoder, config, run.dtype)


def _load_encoder(folder: Path, run: Run) -> Encoder:
    return Encoder.load(folder, run.model.retriever, device=run.device, dtype=torch.float32)


def _write_model(folder: Path, learner: Learner, run: Run) -> None:
    """The trained model; halves of the retriever that did not learn are copied byte for byte."""
    model, config = run.model, run.config
    learner.reader.save(folder / "reader")
    num_passages = model.reader.num_passages if config.closed_book else config.num_passages
    write_reader_config(folder, dataclasses.replace(model.reader, num_passages=num_passages))
    is_tied = model.tied and config.mode != "query_side"
    if learner.passage_encoder is not None:
        learner.passage_encoder.save(folder / "retriever" / "passage")
    else:
        shutil.copytree(model.passage_encoder_folder, folder / "retriever" / "passage", copy_function=shutil.copyfile)
    if not is_tied and config.trains_retriever and learner.question_encoder is not None:
        learner.question_encoder.save(folder / "retriever" / "question")
    elif not is_tied:
        shutil.copytree(model.question_encoder_folder, folder / "retriever" / "question", copy_function=shutil.copyfile)
    write_retriever_config(folder, model.retriever, tied=is_tied)


def _summarise(result: TrainingResult) -> dict[str, float | None]:
    last = result.log[-1]
    return {"reader_loss": last["reader_loss"], "retriever_loss": last["retriever_loss"]}
