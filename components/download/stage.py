"""The download stage: a source becomes passages, questions or a model."""

from __future__ import annotations

import time
from pathlib import Path

from components.download.config import DownloadConfig
from ralm.artifacts.files import Location
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce
from ralm.corpus.build import write_passages
from ralm.corpus.formats import open_corpus
from ralm.corpus.parallel import available_cores
from ralm.corpus.passages import SplitLimits
from ralm.corpus.questions import find_question_files, write_questions
from ralm.errors import ConfigError
from ralm.sources import source_digest

STAGE_VERSION = 1


def download(
    *,
    source: Location = "",
    passages: Location = "",
    questions: Location = "",
    model: Location = "",
    retriever: Location = "",
    reader: Location = "",
    config: DownloadConfig = DownloadConfig(),  # noqa: B008 - frozen
) -> Manifest:
    """Make passages, questions or a model from a source. Give exactly one of the three outputs.

    Args:
        source: for passages a dump, `wiki:enwiki/latest`, Atlas or own jsonl, DPR tsv, csv, Parquet, a folder of texts;
            for questions a jsonl file or a folder of train, dev and test.jsonl; for a model a bundle of both halves.
            Paths, URLs, `asset:`, `pypi://` and `hf://` are understood.
        passages: output folder for passages.
        questions: output folder for questions.
        model: output folder for a model.
        retriever: source of the model's retriever, instead of a bundle.
        reader: source of the model's reader, instead of a bundle.
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
    if passages:
        return _download_passages(source, passages, config)
    if questions:
        return _download_questions(source, questions, config)
    from ralm.model_build import build_model  # needs torch, which the image for corpora does not carry

    return build_model(model, source=source, retriever=retriever, reader=reader, config=config.model)


def _download_passages(source: Location, passages: Location, config: DownloadConfig) -> Manifest:
    corpus = open_corpus(source, format=config.format, base_url=config.wiki_base_url)
    limits = SplitLimits(config.passage_words)
    workers = config.workers or available_cores()

    def build(folder: Path) -> Contents:
        started_at = time.monotonic()
        batches = corpus.batches(with_infoboxes=config.infoboxes)
        rows, counts = write_passages(folder, batches, limits, workers=workers, source=source)
        elapsed_s = time.monotonic() - started_at
        return Contents(
            rows=rows,
            counts={**corpus.counts, **counts},
            details=corpus.details,
            timings={"passages_per_s": round(counts["passages"] / elapsed_s, 1), "workers": workers},
        )

    return produce(
        passages,
        kind="passages",
        stage="download",
        stage_version=STAGE_VERSION,
        inputs=corpus.inputs,
        config={"format": config.format, "passage_words": config.passage_words, "infoboxes": config.infoboxes},
        build=build,
    )


def _download_questions(source: Location, questions: Location, config: DownloadConfig) -> Manifest:
    files = find_question_files(source, config.split)

    def build(folder: Path) -> Contents:
        rows, counts = write_questions(folder, files)
        return Contents(rows=rows, counts=counts)

    return produce(
        questions,
        kind="questions",
        stage="download",
        stage_version=STAGE_VERSION,
        inputs={split: source_digest(str(path)) for split, path in files.items()},
        config={},
        build=build,
    )
