"""The training loop: choose questions, retrieve with the current question encoder, update, log, checkpoint.

Retrieval of the next update is not started during the present one: while the question encoder learns, its result
would be that of an older encoder.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ralm import tracking
from ralm.corpus.lookup import PassageLookup
from ralm.errors import ConfigError
from ralm.index.search import Index
from ralm.log import progress
from ralm.training.config import TrainingConfig
from ralm.training.examples import Example, batch_rows, choose_targets
from ralm.training.learner import Batch, Learner
from ralm.training.state import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves beside the weights of its learner."""

    log: list[dict[str, Any]]
    """A row of the training log for each update."""
    timings: dict[str, float]
    """Mean wall time of the parts of an update, in milliseconds."""


def train_model(
    learner: Learner,
    *,
    index: Index,
    passages: PassageLookup,
    examples: Sequence[Example],
    config: TrainingConfig,
    checkpoints: Path,
) -> TrainingResult:
    """Train until `config.num_steps` updates are done, from the newest checkpoint where there is one.

    Args:
        learner: the models; changed in place.
        index: made by the model's passage encoder.
        passages: the corpus of the index.
        examples: questions with targets.
        config: the settings.
        checkpoints: folder of this run's checkpoints.

    Raises:
        ConfigError: the index has fewer passages than are to be retrieved.
        KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint was written.
    """
    if not config.closed_book and index.num_passages < config.num_scored:
        raise ConfigError(
            f"num_passages, num_retrieved: expected at most the {index.num_passages} passages of the index, "
            f"found {config.num_scored}"
        )
    start, log = load_checkpoint(checkpoints, weights=learner.weights, optimizer=learner.optimizer)
    if start:
        logger.info("train: going on after update %d of %d", start, config.num_steps)

    def save(done: int) -> None:
        save_checkpoint(checkpoints, step=done, weights=learner.weights, optimizer=learner.optimizer, log=log)

    with deferred_stop() as stop, progress(total=config.num_steps, what="train", unit="updates") as bar:
        bar.update(start)
        for step in range(start, config.num_steps):
            batch = make_batch(learner, step, index=index, passages=passages, examples=examples, config=config)
            log.append(learner.update(batch, step))
            report(log[-1])
            bar.update(1, note=f"reader loss {log[-1]['reader_loss']:.3f}")
            done = step + 1
            is_stopped = stop.is_set()
            if is_stopped or (done % config.checkpoint_every_steps == 0 and done < config.num_steps):
                save(done)
            if is_stopped:
                logger.warning(
                    "train: stopped after update %d of %d; run the same command to go on", done, config.num_steps
                )
                raise KeyboardInterrupt
    updates = max(1, config.num_steps - start)
    timings = {f"{name}_ms": 1000 * elapsed / updates for name, elapsed in learner.timer.elapsed_s.items()}
    return TrainingResult(log=log, timings=timings)


def make_batch(
    learner: Learner,
    step: int,
    *,
    index: Index,
    passages: PassageLookup,
    examples: Sequence[Example],
    config: TrainingConfig,
) -> Batch:
    """Choose the questions of an update and retrieve their passages with the question encoder as it is now."""
    rows = batch_rows(step, num_rows=len(examples), batch_size=config.batch_size, seed=config.seed)
    chosen = [examples[row] for row in rows]
    questions = [example.question for example in chosen]
    targets = choose_targets(chosen, choice=config.target_choice, seed=config.seed, step=step)
    if config.closed_book:
        return Batch(questions=questions, targets=targets, passages=[[] for _ in questions], vectors=None)
    with learner.timer.part("search"):
        question_BD = learner.embed_questions(questions).float().cpu().numpy()
        _, row_BR = index.search(question_BD, config.num_scored)
        found = passages.get(index.passage_ids[row_BR.reshape(-1)])
        size = config.num_scored
        grouped = [found[start : start + size] for start in range(0, len(found), size)]
        is_query_side = config.mode == "query_side"
        vector_BRD = torch.from_numpy(index.vectors(row_BR)).to(learner.reader.device) if is_query_side else None
    return Batch(questions=questions, targets=targets, passages=grouped, vectors=vector_BRD)


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
