"""The training loop: choose questions, retrieve with the current encoders, update, log, checkpoint, refresh the index.

Every process of a run goes through it in step: a request to stop that one of them hears is one to all.
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

from ralm import tracking
from ralm.errors import ConfigError
from ralm.log import progress
from ralm.training.batches import Batches
from ralm.training.config import TrainingConfig
from ralm.training.examples import TrainingSet
from ralm.training.learner import Learner
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

    Every process of the run has to call it; the result is the same in all of them.

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
    world = learner.world
    done = load_checkpoint(checkpoints, weights=learner.weights, optimizer=learner.optimizer, world=world)
    start, log, evaluations = done.step, list(done.log), list(done.evaluations)
    if start:
        logger.info("train: going on after update %d of %d", start, config.num_steps)
    if refresher is not None:
        refresher.reopen(done.index_step)
    if learner.loss_scale is not None and done.loss_scale is not None:
        learner.loss_scale.value, learner.loss_scale.num_clean = done.loss_scale

    saved = done

    def save(step: int) -> None:
        nonlocal saved
        scale = learner.loss_scale
        state = Progress(
            step=step,
            log=list(log),
            evaluations=list(evaluations),
            index_step=refresher.step if refresher is not None else 0,
            loss_scale=None if scale is None else (scale.value, scale.num_clean),
        )
        if state == saved:
            return
        needed = save_checkpoint(checkpoints, state, weights=learner.weights, optimizer=learner.optimizer, world=world)
        if refresher is not None:
            refresher.keep_only(needed)
        saved = state

    def end_early(step: int) -> None:
        save(step)
        logger.warning("train: stopped after update %d of %d; run the same command to go on", step, config.num_steps)
        raise KeyboardInterrupt

    due = parse_refresh_schedule(config.refresh_schedule)

    def renews(step: int) -> bool:
        is_newer = step > config.freeze_retriever_steps  # until then the encoder is the index's own
        return refresher is not None and is_newer and refresher.step != step and refresh_is_due(due, step)

    def evaluates(step: int) -> bool:
        is_asked = bool(evaluations) and evaluations[-1]["step"] == step
        return evaluate is not None and step > 0 and step % config.evaluate_every_steps == 0 and not is_asked

    batches = Batches(learner, examples, refresher, config)
    total = progress(total=config.num_steps, what="train", unit="updates")
    with deferred_stop() as stop, batches, total as bar:
        bar.update(start)
        for step in range(start, config.num_steps + 1):
            if evaluate is not None and evaluates(step):
                save(step)  # a pod that is evicted while this goes on loses nothing else
                batches.settle()
                with learner.parallel.together():
                    evaluations.append({"step": step, **evaluate(learner, refresher)})
                report({f"dev_{name}": value for name, value in evaluations[-1].items()} | {"step": step})
            if world.any(stop.is_set()):
                end_early(step)
            if step == config.num_steps:
                break
            overlap = None
            if refresher is not None and renews(step):
                save(step)
                with learner.parallel.together():
                    overlap = renew_index(learner, step, refresher, batches=batches, config=config, stop=stop)
                if overlap is None:
                    end_early(step)
            with learner.parallel.together():
                batch = batches.take(step)
                if step + 1 < config.num_steps and not renews(step + 1):
                    batches.start(step + 1)
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


def renew_index(
    learner: Learner,
    step: int,
    refresher: IndexRefresher,
    *,
    batches: Batches,
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
        questions = [question for at in coming for question in batches.questions(at)]
        question_BD = learner.embed_questions(questions).float().cpu().numpy()
        before = refresher.index.search(question_BD, config.num_scored)
        if not refresher.refresh(step, embed=learner.embed_passages, is_stopped=stop.is_set):
            return None
        after = refresher.index.search(question_BD, config.num_scored)
    shared = result_overlap(before.passage_ids, after.passage_ids) * len(questions) if questions else 0.0
    found = learner.world.sum({"shared": shared, "questions": len(questions)})
    overlap = found["shared"] / found["questions"]
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
