"""passages + index + model + questions -> trained model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from components.train.config import TrainConfig
from ralm import tracking
from ralm.artifacts.files import Location, join, remove
from ralm.artifacts.manifest import Manifest, artifact_key, open_artifact
from ralm.artifacts.schemas import TRAINING_LOG
from ralm.artifacts.store import Contents, checkpoint_folder, plain_config, produce, store_uri, take_finished
from ralm.artifacts.tables import write_table
from ralm.corpus.lookup import PassageLookup
from ralm.device import best_device, count_gpus, precision_name, resolve_dtype
from ralm.distributed import ALONE, World, join_world, leaving, naming_lost_peers
from ralm.errors import ArtifactError, ConfigError
from ralm.evaluation.passage_sources import check_file_passages
from ralm.index.search import check_index, open_index
from ralm.launch import ENDPOINT, run_workers
from ralm.log import is_distributed_worker
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
from ralm.training.parallel import whole
from ralm.training.refresh import IndexRefresher

STAGE_VERSION = 3
LOG = "training_log.parquet"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything one training needs, checked."""

    model: Model
    corpus: tuple[Location, Location] | None
    """Passages and their index; None where nothing is searched."""
    questions: list[Question]
    evaluate: Evaluate | None
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    inputs: dict[str, str]
    """Fingerprints of the inputs."""

    @property
    def plain_config(self) -> dict[str, object]:
        """What changes the result: no checkpoint interval, no number of processes, the number format as chosen."""
        plain = plain_config(self.config)
        del plain["checkpoint_every_steps"]
        if self.dtype != torch.bfloat16:  # in bf16 split weights also make the sums between layers bf16
            del plain["sharding"]
        return {**plain, "num_retrieved": self.config.num_scored, "precision": precision_name(self.dtype)}

    @property
    def key(self) -> str:
        """Name of the trained model in the store, and of the folder of its checkpoints."""
        return artifact_key(
            stage="train",
            stage_version=STAGE_VERSION,
            inputs=self.inputs,
            config=self.plain_config,
            seed=self.config.seed,
        )


def train(
    *,
    model: Location,
    questions: Location,
    trained: Location,
    passages: Location = "",
    index: Location = "",
    num_processes: int = 1,
    nodes: int = 1,
    config: TrainConfig = TrainConfig(),  # noqa: B008
) -> Manifest:
    """Train reader and retriever together, with retrieval in the loop.

    A killed or stopped run goes on from its last checkpoint when the same command is given again, and ends with the
    same bytes as one that was left alone. The processes of a distributed run share each batch and the index; their
    number may be another when it goes on.

    Args:
        model: Model artifact to start from.
        questions: Questions artifact with answers.
        trained: Output folder: a model artifact with the table training_log.parquet beside the weights.
        passages: Passages artifact that the index was made from; not used in closed book and with file passages.
        index: Index of these passages by the model's passage encoder; not used where passages are not.
        num_processes: Worker processes to start on each node, one for each GPU where there are some; under torchrun its
            own number counts.
        nodes: Machines that take part; in a Kubernetes cluster they become a TrainJob, elsewhere the same command has
            to run on each of them with RALM_RENDEZVOUS=HOST:PORT set.
        config: What learns, from what, for how long, how fast.

    Returns:
        The manifest of the trained model; milliseconds of the parts of an update are in timings.json.

    Raises:
        ArtifactError: an input is unfinished, or passages, index and model do not belong together.
        ConfigError: more passages per question than there are, or numbers of processes that cannot be.
        DataError: the split is missing, empty, or has questions without answers.
        WorkerError: a process of a distributed run went down.
    """
    run = _check(model, questions, passages, index, config)
    if is_distributed_worker():
        return _train_together(run, trained)
    for name, count in (("num_processes", num_processes), ("nodes", nodes)):
        if count < 1:
            raise ConfigError(f"{name}: expected at least 1, found {count}")
    if num_processes * nodes == 1:
        return _produce(run, trained, ALONE)
    arguments = {"model": model, "questions": questions, "passages": passages, "index": index}
    return _launch(run, arguments, trained, num_processes=num_processes, nodes=nodes)


def _check(model: Location, questions: Location, passages: Location, index: Location, config: TrainConfig) -> Run:
    opened = open_model(model)
    table, rows = open_questions(questions, config.split, config.max_questions)
    used, _ = usable_questions(rows, config.task, is_learnt=True)
    if config.file_passages:
        check_file_passages(used)
    device = best_device()
    inputs = {"model": opened.manifest.fingerprint, "questions": table.fingerprint}
    if config.retrieves:
        inputs |= _check_corpus(passages, index, opened, config)
    corpus = (passages, index) if config.retrieves else None
    dtype = resolve_dtype(config.precision, device)
    return Run(opened, corpus, rows, _evaluation(questions, config), config, device, dtype, inputs)


def _launch(run: Run, arguments: dict[str, Location], trained: Location, *, num_processes: int, nodes: int) -> Manifest:
    """Have worker processes do it, here or as a job of the cluster, unless it was done before."""
    if nodes > 1 and "KUBERNETES_SERVICE_HOST" in os.environ and ENDPOINT not in os.environ:
        from components.train.job import train_as_job

        config = json.dumps(plain_config(run.config))
        return train_as_job({**arguments, "trained": trained}, config=config, num_processes=num_processes, nodes=nodes)
    if (manifest := take_finished(trained, "model", run.key)) is not None:
        return manifest
    if run.device.type == "cuda" and num_processes > count_gpus():
        raise ConfigError(
            f"num_processes: expected at most {count_gpus()}, the GPUs of this node, found {num_processes}"
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments["trained"] = str(Path(folder) / "trained")
        job = {"arguments": arguments, "config": plain_config(run.config)}
        with tracking.resumed_by_workers():
            run_workers("components.train.worker", job, num_processes=num_processes, nodes=nodes)
    manifest = take_finished(trained, "model", run.key)
    if manifest is None:
        raise ArtifactError(f"train: the workers left no model {run.key} in the store; RALM_HOME differs between nodes")
    return dataclasses.replace(manifest, reused=False)


def _train_together(run: Run, trained: Location) -> Manifest:
    """In a worker: the first process makes the artifact, the others compute with it."""
    world = join_world(run.device)
    with naming_lost_peers(world), leaving(run.device):
        if world.is_first:
            manifest = _produce(run, trained, world)
            if manifest.reused:
                world.any(False)
        elif world.any(False):
            _learn(run, world)
        world.barrier()
        if not world.is_first:
            manifest = open_artifact(join(store_uri(), "model", run.key), "model").manifest
    return manifest


def _produce(run: Run, trained: Location, world: World) -> Manifest:
    def build(folder: Path) -> Contents:
        world.any(True)  # the other processes begin
        return _build(folder, run, world)

    manifest = produce(
        trained,
        kind="model",
        stage="train",
        stage_version=STAGE_VERSION,
        inputs=run.inputs,
        config=run.plain_config,
        seed=run.config.seed,
        build=build,
    )
    remove(checkpoint_folder(run.key))
    return manifest


def _evaluation(questions: Location, config: TrainConfig) -> Evaluate | None:
    if not config.evaluate_every_steps:
        return None
    _, rows = open_questions(questions, config.evaluate_split, config.max_evaluate_questions)
    settings = dataclasses.replace(config.task, permutations=config.evaluate_permutations)
    return make_evaluation(rows, settings=settings, config=config)


def _check_corpus(passages: Location, index: Location, model: Model, config: TrainConfig) -> dict[str, str]:
    """Fingerprints of passages and index, which have to belong together; nothing of them is loaded."""
    for name, place in (("passages", passages), ("index", index)):
        if not place:
            raise ConfigError(f"train: no --{name}; it is needed unless closed_book or file_passages is set")
    opened = check_index(index, passage_encoder=model.fingerprints["passage_encoder"])
    corpus = open_artifact(passages, "passages").fingerprint
    if opened.manifest.details["passages"] != corpus:
        raise ArtifactError(
            f"{index}: made from passages {opened.manifest.details['passages']}, but {passages} is {corpus}"
        )
    num_passages = opened.manifest.rows
    if config.num_scored > num_passages:
        raise ConfigError(
            f"{index}: the corpus has {num_passages} passages, fewer than the {config.num_scored} that "
            "num_passages and num_retrieved ask for"
        )
    return {"passages": corpus, "index": opened.fingerprint}


def _learn(run: Run, world: World) -> tuple[Learner, TrainingSet, TrainingResult]:
    """Train; every process of the run does this."""
    refresher = None
    checkpoints = checkpoint_folder(run.key)
    learner = _load_learner(run, world)  # before the index, which takes a part of a GPU's free memory
    if run.corpus is not None:
        passages, place = run.corpus
        made_by = run.model.fingerprints["passage_encoder"]
        index = open_index(place, passage_encoder=made_by, device=run.device, world=world.beside())
        refresher = IndexRefresher(index, PassageLookup(passages), checkpoints)
    examples = _make_examples(learner, run)
    result = train_model(
        learner,
        examples=examples,
        refresher=refresher,
        config=run.config,
        checkpoints=checkpoints,
        evaluate=run.evaluate,
    )
    if run.config.sharding != "none":
        learner = _make_whole(learner, run)
    return learner, examples, result


def _make_whole(learner: Learner, run: Run) -> Learner:
    """The trained models with all their weights in main memory, in the first process; the others help."""
    cpu = dataclasses.replace(run, device=torch.device("cpu"), config=dataclasses.replace(run.config, sharding="none"))
    target = _load_learner(cpu, ALONE) if learner.world.is_first else None
    for name, weight in learner.weights.items():
        full = whole(weight.detach())
        if target is not None:
            with torch.no_grad():
                target.weights[name].copy_(full)
    return learner if target is None else target


def _build(folder: Path, run: Run, world: World) -> Contents:
    learner, examples, result = _learn(run, world)
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


def _load_learner(run: Run, world: World) -> Learner:
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
    return Learner(reader, question_encoder, passage_encoder, config, run.dtype, world)


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
