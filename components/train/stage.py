"""passages + index + model + questions -> trained model."""

from __future__ import annotations

import dataclasses
import shutil
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
from ralm.evaluation.passage_sources import check_file_passages
from ralm.index.search import Index, open_index
from ralm.model import Model, model_details, open_model, write_reader_config, write_retriever_config
from ralm.reader.fusion import FusionReader
from ralm.retriever.encoder import Encoder
from ralm.tasks.base import Question, open_questions
from ralm.tasks.catalog import task_of, usable_questions
from ralm.tasks.formats import task_formats
from ralm.training.evaluation import make_evaluation
from ralm.training.examples import TrainingSet, make_training_set
from ralm.training.learner import Learner
from ralm.training.loop import Evaluate, TrainingResult, train_model
from ralm.training.refresh import IndexRefresher

STAGE_VERSION = 2
LOG = "training_log.parquet"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything one training needs, checked."""

    model: Model
    refresher: IndexRefresher | None
    questions: list[Question]
    evaluate: Evaluate | None
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    checkpoints: Path


def train(
    *,
    model: Location,
    questions: Location,
    trained: Location,
    passages: Location = "",
    index: Location = "",
    config: TrainConfig = TrainConfig(),  # noqa: B008
) -> Manifest:
    """Train reader and retriever together, with retrieval in the loop.

    A killed or stopped run goes on from its last checkpoint when the same command is given again, and ends with the
    same bytes as one that was left alone.

    Args:
        model: Model artifact to start from.
        questions: Questions artifact with answers.
        trained: Output folder: a model artifact with the table training_log.parquet beside the weights.
        passages: Passages artifact that the index was made from; not used in closed book and with file passages.
        index: Index of these passages by the model's passage encoder; not used where passages are not.
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
    used, _ = usable_questions(rows, config.task, is_learnt=True)
    if config.file_passages:
        check_file_passages(used)
    device = best_device()
    dtype = resolve_dtype(config.precision, device)
    inputs = {"model": opened.manifest.fingerprint, "questions": table.fingerprint}
    corpus = _open_corpus(passages, index, opened, config) if config.retrieves else None
    if corpus is not None:
        inputs |= {"passages": corpus[1].fingerprint, "index": corpus[0].fingerprint}
    plain = _plain_config(config, dtype)
    key = artifact_key(stage="train", stage_version=STAGE_VERSION, inputs=inputs, config=plain, seed=config.seed)
    checkpoints = checkpoint_folder(key)
    refresher = None if corpus is None else IndexRefresher(*corpus, checkpoints)
    run = Run(opened, refresher, rows, _evaluation(questions, config), config, device, dtype, checkpoints)
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


def _evaluation(questions: Location, config: TrainConfig) -> Evaluate | None:
    if not config.evaluate_every_steps:
        return None
    _, rows = open_questions(questions, config.evaluate_split, config.max_evaluate_questions)
    settings = dataclasses.replace(config.task, permutations=config.evaluate_permutations)
    return make_evaluation(rows, settings=settings, config=config)


def _open_corpus(passages: Location, index: Location, model: Model, config: TrainConfig) -> tuple[Index, PassageLookup]:
    for name, place in (("passages", passages), ("index", index)):
        if not place:
            raise ConfigError(f"train: no --{name}; it is needed unless closed_book or file_passages is set")
    opened = open_index(index, passage_encoder=model.fingerprints["passage_encoder"])
    lookup = PassageLookup(passages)
    if opened.passages_fingerprint != lookup.fingerprint:
        raise ArtifactError(
            f"{index}: made from passages {opened.passages_fingerprint}, but {passages} is {lookup.fingerprint}"
        )
    if config.num_scored > opened.num_passages:
        raise ConfigError(
            f"{index}: the corpus has {opened.num_passages} passages, fewer than the {config.num_scored} that "
            "num_passages and num_retrieved ask for"
        )
    return opened, lookup


def _build(folder: Path, run: Run) -> Contents:
    learner = _load_learner(run)
    examples = _make_examples(learner, run)
    result = train_model(
        learner,
        examples=examples,
        refresher=run.refresher,
        config=run.config,
        checkpoints=run.checkpoints,
        evaluate=run.evaluate,
    )
    _write_model(folder, learner, run)
    num_rows = write_table(folder / LOG, _log_rows(result), TRAINING_LOG)
    return Contents(
        rows={LOG: num_rows},
        counts={"questions": len(run.questions), "examples": len(examples), "steps": num_rows, **examples.skipped},
        details={**model_details(folder), "training": _summarise(result), "evaluations": result.evaluations},
        timings=result.timings,
    )


def _make_examples(learner: Learner, run: Run) -> TrainingSet:
    return make_training_set(
        run.questions,
        settings=run.config.task,
        tokenizer=learner.reader.tokenizer,
        max_input_tokens=learner.reader.config.max_input_tokens,
        target_choice=run.config.target_choice,
        seed=run.config.seed,
        question_format=learner.reader.config.question_format,
    )


def _log_rows(result: TrainingResult) -> list[dict[str, object]]:
    """The columns of the table; further numbers of an update are in the tracking run alone."""
    return [{name: row[name] for name in TRAINING_LOG.names} for row in result.log]


def _load_learner(run: Run) -> Learner:
    """The models in fp32: what learns, and a frozen question encoder where only the reader does."""
    model, config = run.model, run.config
    formats, retriever = task_formats(task_of(run.questions), model.reader, model.retriever)
    reader = FusionReader.load(model.reader_folder, formats, device=run.device)

    def load_encoder(folder: Path) -> Encoder:
        return Encoder.load(folder, retriever, device=run.device, dtype=torch.float32)

    question_encoder, passage_encoder = None, None
    if config.retrieves:
        question_encoder = load_encoder(model.question_encoder_folder)
    if config.mode == "joint":
        passage_encoder = question_encoder if model.tied else load_encoder(model.passage_encoder_folder)
    return Learner(reader, question_encoder, passage_encoder, config, run.dtype)


def _write_model(folder: Path, learner: Learner, run: Run) -> None:
    """The trained model; halves of the retriever that did not learn are copied byte for byte."""
    model, config = run.model, run.config
    learner.reader.save(folder / "reader")
    num_passages = config.num_passages if config.retrieves else model.reader.num_passages
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
    last = result.log[-1] if result.log else {}
    return {name: last.get(name) for name in ("reader_loss", "retriever_loss")}
