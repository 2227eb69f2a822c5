"""The training loop: choose questions, retrieve with the current encoders, update, log, checkpoint, refresh the index.

Retrieval of the next update is not started during the present one: while the question encoder learns, its result
would be that of an older encoder.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ralm import tracking
from ralm.errors import ConfigError
from ralm.log import progress
from ralm.retrieval import PassageRetriever, Rerank
from ralm.training.config import TrainingConfig
from ralm.training.examples import TrainingSet
from ralm.training.learner import Batch, Learner
from ralm.training.refresh import IndexRefresher, result_overlap
from ralm.training.refresh_schedule import parse_refresh_schedule, refresh_is_due
from ralm.training.state import Progress, load_checkpoint, save_checkpoint

OVERLAP_QUESTIONS = 64
logger = logging.getLogger(__name__)

Evaluate = Callable[[Learner, IndexRefresher | None], dict[str, float]]
"""Metrics of the models as they are, on questions that are not learnt."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves beside the weights of its learner."""

    log: list[dict[str, Any]]
    """A row of the training log for each update."""
    evaluations: list[dict[str, float]]
    """Metrics on the way, each with the number of updates done as `step`."""
    timings: dict[str, float]
    """Mean wall time of the parts of an update, in milliseconds."""


def train_model(
    learner: Learner,
    *,
    examples: TrainingSet,
    refresher: IndexRefresher | None,
    config: TrainingConfig,
    checkpoints: Path,
    evaluate: Evaluate | None = None,
) -> TrainingResult:
    """Train until `config.num_steps` updates are done, from the newest checkpoint where there is one.

    Args:
        learner: the models; changed in place.
        examples: what is learnt.
        refresher: the index of the model's passage encoder; None where nothing is retrieved.
        config: the settings.
        checkpoints: folder of this run's checkpoints.
        evaluate: asked every `config.evaluate_every_steps` updates.

    Raises:
        ConfigError: the index has fewer passages than are to be retrieved.
        KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint was written.
    """
    _check_size(refresher, config)
    done = load_checkpoint(checkpoints, weights=learner.weights, optimizer=learner.optimizer)
    start, log, evaluations = done.step, list(done.log), list(done.evaluations)
    if start:
        logger.info("train: going on after update %d of %d", start, config.num_steps)
    if refresher is not None:
        refresher.reopen(done.index_step)

    saved = done

    def save(step: int) -> None:
        nonlocal saved
        index_step = refresher.step if refresher is not None else 0
        state = Progress(step, list(log), list(evaluations), index_step)
        if state == saved:
            return
        needed = save_checkpoint(checkpoints, state, weights=learner.weights, optimizer=learner.optimizer)
        if refresher is not None:
            refresher.keep_only(needed)
        saved = state

    def end_early(step: int) -> None:
        save(step)
        logger.warning("train: stopped after update %d of %d; run the same command to go on", step, config.num_steps)
        raise KeyboardInterrupt

    due = parse_refresh_schedule(config.refresh_schedule)
    with deferred_stop() as stop, progress(total=config.num_steps, what="train", unit="updates") as bar:
        bar.update(start)
        for step in range(start, config.num_steps + 1):
            is_asked = bool(evaluations) and evaluations[-1]["step"] == step
            if evaluate is not None and step and step % config.evaluate_every_steps == 0 and not is_asked:
                save(step)  # a pod that is evicted while this goes on loses nothing else
                evaluations.append({"step": step, **evaluate(learner, refresher)})
                report({f"dev_{name}": value for name, value in evaluations[-1].items()} | {"step": step})
            if stop.is_set():
                end_early(step)
            if step == config.num_steps:
                break
            overlap = None
            is_newer = step > config.freeze_retriever_steps  # until then the encoder is the index's own
            if refresher is not None and is_newer and refresher.step != step and refresh_is_due(due, step):
                save(step)
                overlap = renew_index(learner, step, refresher, examples=examples, config=config, stop=stop)
                if overlap is None:
                    end_early(step)
            batch = make_batch(learner, step, refresher=refresher, examples=examples, config=config)
            row = {**learner.update(batch, step), "index_overlap": overlap}
            log.append(row)
            report(row)
            bar.update(1, note=f"reader loss {row['reader_loss']:.3f}")
            if (step + 1) % config.checkpoint_every_steps == 0 and step + 1 < config.num_steps:
                save(step + 1)
    updates = max(1, config.num_steps - start)
    timings = {f"{name}_ms": 1000 * elapsed / updates for name, elapsed in learner.timer.elapsed_s.items()}
    return TrainingResult(log, evaluations, timings)


def _check_size(refresher: IndexRefresher | None, config: TrainingConfig) -> None:
    if refresher is not None and refresher.index.num_passages < config.num_scored:
        raise ConfigError(
            f"num_passages, num_retrieved: expected at most the {refresher.index.num_passages} passages of the index, "
            f"found {config.num_scored}"
        )


def make_batch(
    learner: Learner, step: int, *, refresher: IndexRefresher | None, examples: TrainingSet, config: TrainingConfig
) -> Batch:
    """Choose the questions of an update and find their passages with the question encoder as it is now."""
    chosen = examples.batch(step, config.batch_size)
    questions, targets = [example.question for example in chosen], [example.target for example in chosen]
    if refresher is None:
        given = [list(example.passages[: config.num_passages]) for example in chosen]
        return Batch(questions, targets, given if config.file_passages else [[] for _ in questions], None)
    with learner.timer.part("search"):
        question_BD = learner.embed_questions(questions).float().cpu().numpy()
        found = make_retriever(learner, refresher, config).find(
            question_BD, config.num_scored, [example.source_id for example in chosen]
        )
        vector_BRD = None
        if config.mode == "query_side":
            vector_BRD = torch.from_numpy(refresher.index.vectors(found.rows)).to(learner.reader.device)
    return Batch(questions, targets, found.passages, vector_BRD)


def make_retriever(learner: Learner, refresher: IndexRefresher, config: TrainingConfig) -> PassageRetriever:
    """Search in the index in use, scored again by the passage encoder as it is now where that is wanted."""
    rerank = Rerank(config.num_reranked, learner.embed_passages) if config.num_reranked else None
    return PassageRetriever(
        refresher.index, refresher.passages, overretrieve_ratio=config.overretrieve_ratio, rerank=rerank
    )


def renew_index(
    learner: Learner,
    step: int,
    refresher: IndexRefresher,
    *,
    examples: TrainingSet,
    config: TrainingConfig,
    stop: threading.Event,
) -> float | None:
    """Make the index anew, and compare what both indices find for the questions that come next.

    Returns:
        The share of results that the old and the new index have in common; None if the run is to stop: the old index is
        then still in use.
    """
    with learner.timer.part("refresh"):
        coming = range(step, step + -(-OVERLAP_QUESTIONS // config.batch_size))
        questions = [example.question for at in coming for example in examples.batch(at, config.batch_size)]
        question_BD = learner.embed_questions(questions).float().cpu().numpy()
        ids_N = refresher.index.passage_ids
        _, before_BR = refresher.index.search(question_BD, config.num_scored)
        if not refresher.refresh(step, embed=learner.embed_passages, is_stopped=stop.is_set):
            return None
        _, after_BR = refresher.index.search(question_BD, config.num_scored)
    overlap = result_overlap(ids_N[before_BR], ids_N[after_BR])
    logger.info("train: index renewed before update %d; %.0f %% of its results are as before", step + 1, 100 * overlap)
    return overlap


def report(row: dict[str, Any]) -> None:
    """Send the numbers of an update to the tracking run."""
    metrics = {name: value for name, value in row.items() if name != "step" and value is not None}
    tracking.log_metrics(metrics, step=row["step"])


@contextmanager
def deferred_stop() -> Iterator[threading.Event]:
    """Inside, SIGTERM and SIGINT only set the event, so that the update at hand is finished and kept."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def remember(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
