"""predictions before and after training -> one page, merged metrics, one row per question."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from components.report.config import ReportConfig
from ralm.artifacts.files import Location, write_json
from ralm.artifacts.manifest import Artifact, Manifest, open_artifact
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import write_table
from ralm.corpus.lookup import PassageLookup
from ralm.evaluation.compare import (
    Evaluation,
    check_comparable,
    check_passages,
    merge_metrics,
    open_evaluation,
    per_question,
    per_question_schema,
)
from ralm.evaluation.report import Subject, render_html, render_markdown

STAGE_VERSION = 2


def report(
    *,
    before: Location,
    after: Location,
    passages: Location,
    report: Location,
    trained: Location = "",
    closed_book: Location = "",
    config: ReportConfig = ReportConfig(),  # noqa: B008
) -> Manifest:
    """Merge evaluations of the same questions into one self-contained page.

    Args:
        before: Predictions of the model before training.
        after: Predictions of the model after training.
        passages: Passages artifact that both retrieved from.
        report: Output folder: report.html, report.md, metrics.json, per_question.parquet.
        trained: Model artifact of the trained model; its training log gives the loss curves. Empty: none.
        closed_book: Predictions of a reader without passages. Empty: none.
        config: What the page shows.

    Returns:
        The report's manifest.

    Raises:
        ArtifactError: an input is unfinished, or the evaluations asked different questions or other passages.
    """
    runs = {"before": open_evaluation(before), "after": open_evaluation(after)}
    if closed_book:
        runs["closed_book"] = open_evaluation(closed_book)
    lookup = PassageLookup(passages)
    for run in runs.values():
        check_comparable(runs["after"], run)
        check_passages(run, passages, lookup.fingerprint)
    model = open_artifact(trained, "model") if trained else None
    inputs = {name: run.artifact.fingerprint for name, run in runs.items()} | {"passages": lookup.fingerprint}
    if model is not None:
        inputs["trained"] = model.fingerprint
    return produce(
        report,
        kind="report",
        stage="report",
        stage_version=STAGE_VERSION,
        inputs=inputs,
        config=dataclasses.asdict(config),
        seed=config.seed,
        build=lambda folder: _build(folder, runs, model, lookup, config),
    )


def _build(
    folder: Path, runs: dict[str, Evaluation], model: Artifact | None, lookup: PassageLookup, config: ReportConfig
) -> Contents:
    before, after, closed_book = runs["before"], runs["after"], runs.get("closed_book")
    metrics = merge_metrics(before, after, closed_book, resamples=config.resamples, seed=config.seed)
    write_json(folder / "metrics.json", metrics)
    table, schema = per_question(before, after, closed_book), per_question_schema(after.compared)
    rows = write_table(folder / "per_question.parquet", table, schema)
    subject = Subject(before, after, closed_book, model, lookup, metrics)
    page = render_html(subject, title=config.title, max_rows=config.max_rows, max_passages=config.max_passages)
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "report.md").write_text(render_markdown(subject, title=config.title), encoding="utf-8")
    return Contents(
        rows={"per_question.parquet": rows},
        counts={"questions": rows, "questions_in_page": min(rows, config.max_rows)},
    )
