"""The download stage: a source becomes passages, questions or a model."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.download.config import DownloadConfig
from ralm.artifacts.files import Location, sha256_file
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.store import Contents, produce
from ralm.corpus.build import write_passages
from ralm.corpus.cleaned import CleanedPages
from ralm.corpus.formats import open_corpus
from ralm.corpus.parallel import available_cores
from ralm.corpus.passages import SplitLimits
from ralm.errors import ConfigError
from ralm.question_sets import pretraining
from ralm.question_sets.catalog import PREFIX as DATASET_PREFIX
from ralm.question_sets.json_lines import find_question_files, write_questions
from ralm.question_sets.prepare import open_dataset
from ralm.question_sets.rows import choose_shots, read_shots, write_shots, write_splits
from ralm.sources import fetch_file, source_digest

logger = logging.getLogger(__name__)
STAGE_VERSION = 2


def download(
    *,
    source: Location = "",
    passages: Location = "",
    questions: Location = "",
    model: Location = "",
    retriever: Location = "",
    reader: Location = "",
    corpus: Location = "",
    previous: Location = "",
    config: DownloadConfig = DownloadConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Make passages, questions or a model from a source. Give exactly one of the three outputs.

    Args:
        source: for passages a dump, `wiki:enwiki/latest`, Atlas or own jsonl, DPR tsv, csv, Parquet, a folder of texts;
            for questions a jsonl file, a folder of train, dev and test.jsonl, `dataset:NAME` or `corpus:TASK`; for a
            model a bundle of both halves. Paths, URLs, `asset:`, `atlas:`, `pypi://` and `hf://` are understood.
        passages: output folder for passages.
        questions: output folder for questions.
        model: output folder for a model.
        retriever: source of the model's retriever, instead of a bundle.
        reader: source of the model's reader, instead of a bundle.
        corpus: passages artifact that `corpus:TASK` questions are made from; others do not look at it.
        previous: passages artifact of an earlier dump; pages with the same revision are taken from it. It changes the
            speed, not the result.
        config: settings.

    Raises:
        ConfigError: none or several outputs, no source, or a source in the wrong place.
        DataError: the source is missing, damaged or not in its format; the message names the place.
    """
    outputs = {"passages": passages, "questions": questions, "model": model}
    given = [name for name, place in outputs.items() if place]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"download: expected exactly one of --passages, --questions and --model, found {found}")
    if not model and (retriever or reader):
        raise ConfigError(f"download: --retriever and --reader go with --model, found --{given[0]}")
    if not source and not model:
        raise ConfigError("download: no source; give --source")
    if corpus and not questions:
        raise ConfigError(f"download: --corpus goes with --questions, found --{given[0]}")
    if previous and not passages:
        raise ConfigError(f"download: --previous goes with --passages, found --{given[0]}")
    if passages:
        return _download_passages(source, passages, previous, config)
    if questions:
        return _download_questions(source, questions, corpus, config)
    from ralm.model_build import build_model  # needs torch, which the image for corpora does not carry

    return build_model(model, source=source, retriever=retriever, reader=reader, config=config.model)


def _download_passages(source: Location, passages: Location, previous: Location, config: DownloadConfig) -> Manifest:
    corpus = open_corpus(
        source,
        format=config.format,
        base_url=config.wiki_base_url,
        atlas_url=config.atlas_base_url,
        with_infoboxes=config.infoboxes,
    )
    settings = {name: getattr(config, name) for name in ("format", "passage_words", "max_passages", "infoboxes")}
    limits = SplitLimits(config.passage_words)
    workers = config.workers or available_cores()

    def build(folder: Path) -> Contents:
        started_at = time.monotonic()
        corpus.before = _cleaned_pages(previous, settings) if previous else None
        batches = corpus.batches(with_infoboxes=config.infoboxes)
        rows, counts = write_passages(
            folder, batches, limits, workers=workers, source=source, max_passages=config.max_passages
        )
        elapsed_s = time.monotonic() - started_at
        return Contents(
            rows=rows,
            counts={**({} if counts["passages"] == config.max_passages else corpus.counts), **counts},
            details=corpus.details,
            timings={
                "passages_per_s": round(counts["passages"] / elapsed_s, 1),
                "workers": workers,
                "pages_taken_over": corpus.before.num_found if corpus.before else 0,
            },
        )

    return produce(
        passages,
        kind="passages",
        stage="download",
        stage_version=STAGE_VERSION,
        inputs=corpus.inputs,
        config=settings,
        build=build,
    )


def _cleaned_pages(previous: Location, settings: Mapping[str, Any]) -> CleanedPages | None:
    """The pages of an earlier artifact, if this code made it with the same settings."""
    manifest = open_artifact(previous, "passages").manifest
    made = {name: manifest.config.get(name) for name in settings} | {"format": settings["format"]}
    if (manifest.stage, manifest.stage_version, made) != ("download", STAGE_VERSION, settings):
        logger.info("%s: made by other code or with other settings; every page is cleaned anew", previous)
        return None
    if settings["max_passages"] is not None:  # the last page may be cut short
        return None
    if manifest.counts["repeated_passages"]:  # their ids depend on the whole corpus
        logger.info("%s: holds repeated passages; every page is cleaned anew", previous)
        return None
    return CleanedPages(previous)


def _download_questions(source: Location, questions: Location, corpus: Location, config: DownloadConfig) -> Manifest:
    plan = _plan_questions(source, corpus, config)
    inputs, settings = dict(plan.inputs), dict(plan.config)
    shots: list[int] = []
    if config.shots:
        path = fetch_file(config.shots)
        shots, inputs["shots"] = read_shots(path), sha256_file(path)
    elif config.num_shots:
        settings |= {"num_shots": config.num_shots, "seed": config.seed}

    def build(folder: Path) -> Contents:
        rows, counts = plan.write(folder)
        num_rows = rows.get("train.parquet", 0)
        chosen = shots or choose_shots(num_rows, config.num_shots, config.seed)
        if chosen:
            rows |= write_shots(folder, rows, chosen)
        return Contents(rows=rows, counts=counts, details=plan.details)

    return produce(
        questions,
        kind="questions",
        stage="download",
        stage_version=STAGE_VERSION,
        inputs=inputs,
        config=settings,
        build=build,
    )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a question source needs and how it is written."""

    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    write: Callable[[Path], tuple[dict[str, int], Counter[str]]]
    details: Mapping[str, str] = field(default_factory=dict)


def _plan_questions(source: Location, corpus: Location, config: DownloadConfig) -> _Plan:
    if source.startswith(pretraining.PREFIX):
        return _plan_pretraining(pretraining.parse_source(source), corpus, config)
    if source.startswith(DATASET_PREFIX):
        found = open_dataset(source, files=config.files, base_url=config.datasets_base_url, dev_split=config.dev_split)
        return _Plan(
            inputs=found.inputs,
            config=found.config,
            details=found.details,
            write=lambda folder: write_splits(folder, found.splits()),
        )
    files = find_question_files(source, config.split)
    return _Plan(
        inputs={split: source_digest(str(path)) for split, path in files.items()},
        config={},
        write=lambda folder: write_questions(folder, files),
    )


def _plan_pretraining(task: str, corpus: Location, config: DownloadConfig) -> _Plan:
    if not corpus:
        raise ConfigError(f"download: corpus:{task} is made from passages; give --corpus")
    passages = open_artifact(corpus, "passages")
    settings = {name: getattr(config, name) for name in ("num_test", "num_dev", "seed", "infoboxes")}
    return _Plan(
        inputs={"corpus": passages.fingerprint},
        config={"source": f"corpus:{task}", **settings},
        write=lambda folder: pretraining.write_pretraining(folder, passages, task, **settings),
    )
