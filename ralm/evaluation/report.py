"""The report as a page and as a short text: what they show, prepared for the templates beside this file.

All text from users (questions, answers, passages, titles) reaches the page through the templates' escaping or through
`highlight`, which escapes too. The page loads nothing from elsewhere and allows no script but its own, by its hash.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup, escape

from ralm.artifacts.manifest import Artifact
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.evaluation.compare import METRIC_WORDS, Evaluation
from ralm.evaluation.figures import Figure, draw_figures
from ralm.evaluation.normalise import AnswerFinder
from ralm.evaluation.retrieval import holds_answer

TEMPLATES: Final = Path(__file__).parent / "templates"
LABELS: Final = {"before": "before training", "after": "after training", "closed_book": "closed book"}
OUTCOMES: Final = {
    (True, False): ("newly-right", "newly right"),
    (False, True): ("newly-wrong", "newly wrong"),
    (True, True): ("right", "right"),
    (False, False): ("wrong", "wrong"),
}
"""(right after, right before) -> (class name, words)."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the report is about."""

    before: Evaluation
    after: Evaluation
    closed_book: Evaluation | None
    trained: Artifact | None
    passages: PassageLookup
    metrics: Mapping[str, Any]
    """As `compare.merge_metrics` gives them."""

    @property
    def runs(self) -> dict[str, Evaluation]:
        """The evaluations by name."""
        runs = {"before": self.before, "after": self.after, "closed_book": self.closed_book}
        return {name: run for name, run in runs.items() if run is not None}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one run made of one question."""

    label: str
    prediction: str
    is_right: bool
    score: tuple[str, float] | None
    """Name and value of the task's second metric."""
    probability: float | None


@dataclasses.dataclass(frozen=True)
class PassageView:
    """One retrieved passage with its place in each run."""

    title: Markup
    section: str
    text: Markup
    has_answer: bool
    was_read: bool
    places: Sequence[tuple[str, int, float]]
    """(run, rank, score) of each run that retrieved it."""


@dataclasses.dataclass(frozen=True)
class QuestionView:
    """One row of the page's table."""

    number: int
    question_id: str
    question: str
    answers: Sequence[str]
    outcome: str
    outcome_words: str
    is_miss: bool
    verdicts: Mapping[str, Verdict]
    passages: Sequence[PassageView]


def render_html(subject: Subject, *, title: str, max_rows: int, max_passages: int) -> str:
    """The page, complete in itself.

    Args:
        subject: what was evaluated.
        title: heading.
        max_rows: questions in the table, the page says so where there are more.
        max_passages: passages shown for a question and run.
    """
    environment = _environment()
    script = environment.get_template("report.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = question_views(subject, max_rows=max_rows, max_passages=max_passages)
    return environment.get_template("report.html.j2").render(
        title=title,
        labels=LABELS,
        script=Markup(script),
        script_digest=digest,
        tiles=headline_tiles(subject),
        figures=[_figure_markup(figure) for figure in draw_figures(subject.runs, subject.trained)],
        facts=fact_rows(subject),
        runs={name: LABELS[name] for name in subject.runs},
        settings=_flat(subject.trained.manifest.config) if subject.trained else {},
        questions=questions,
        filters=count_outcomes(questions),
        num_questions=len(subject.after.rows),
        num_read=subject.after.num_read,
        num_passages=subject.passages.num_passages,
        max_passages=max_passages,
        split=subject.after.details["split"],
    )


def render_markdown(subject: Subject, *, title: str) -> str:
    """A short summary: the headline numbers and what was compared."""
    return (
        _environment(is_html=False)
        .get_template("report.md.j2")
        .render(
            title=title,
            tiles=headline_tiles(subject),
            runs={LABELS[name]: run for name, run in subject.runs.items()},
            names=sorted(_numbers(subject.after.metrics), key=_in_words_and_numbers),
            num_questions=len(subject.after.rows),
            num_passages=subject.passages.num_passages,
            split=subject.after.details["split"],
        )
    )


def headline_tiles(subject: Subject) -> list[dict[str, str]]:
    """The headline numbers: name, value, note, and for scores the gain with its interval and trend."""
    tiles = []
    first, *_ = compared = subject.after.compared[:2]
    for name in compared:
        words = METRIC_WORDS.get(name, name)
        note = f"{percent(subject.before.metrics[name])} before training"
        value = percent(subject.after.metrics[name])
        tiles.append({"name": words, "value": value, "note": note, **_gain(subject.metrics["difference"][name], "")})
    if subject.closed_book is not None:
        gain = _gain(subject.metrics["difference_closed_book"][first], " with passages")
        value = percent(subject.closed_book.metrics[first])
        note = f"{METRIC_WORDS.get(first, first).lower()} without passages"
        tiles.append({"name": "Closed book", "value": value, "note": note, **gain})
    for prefix, kind in (("recall_title_at_", "gold page"), ("recall_at_", "answer")):
        cutoffs = [k for k in cutoffs_of(subject.after.metrics, prefix) if k <= 10]
        if cutoffs:
            name = f"{prefix}{cutoffs[-1]}"
            before = subject.before.metrics.get(name)
            note = f"{percent(before)} before training" if before is not None else ""
            value = percent(subject.after.metrics[name])
            tiles.append({"name": f"Recall@{cutoffs[-1]}, {kind}", "value": value, "note": note, "gain": ""})
    return tiles


def _gain(difference: Mapping[str, float], words: str) -> dict[str, str]:
    low, high = difference["low"], difference["high"]
    return {
        "gain": f"{points(difference['value'])} points{words}",
        "interval": f"{points(low)} to {points(high)}",
        "trend": "up" if low > 0 else "down" if high < 0 else "level",
    }


def question_views(subject: Subject, *, max_rows: int, max_passages: int) -> list[QuestionView]:
    """The rows of the page's table, in the order of the questions."""
    views = []
    for number, row in enumerate(subject.after.rows[:max_rows]):
        verdicts = {name: _verdict(LABELS[name], run, number) for name, run in subject.runs.items()}
        outcome, words = OUTCOMES[verdicts["after"].is_right, verdicts["before"].is_right]
        rank, num_read = row["answer_rank"], subject.after.num_read
        views.append(
            QuestionView(
                number=number + 1,
                question_id=row["question_id"],
                question=row["question"],
                answers=row["answers"],
                outcome=outcome,
                outcome_words=words,
                is_miss=num_read > 0 and (rank is None or rank > num_read),
                verdicts=verdicts,
                passages=_passage_views(subject, number, max_passages),
            )
        )
    return views


def count_outcomes(questions: Sequence[QuestionView]) -> list[tuple[str, str, int]]:
    """(key, words, number of questions) of each filter of the table."""
    counts = {key: sum(view.outcome == key for view in questions) for key, _ in OUTCOMES.values()}
    return [
        ("all", "All", len(questions)),
        ("newly-right", "Newly right", counts["newly-right"]),
        ("newly-wrong", "Newly wrong", counts["newly-wrong"]),
        ("right", "Right", counts["right"] + counts["newly-right"]),
        ("wrong", "Wrong", counts["wrong"] + counts["newly-wrong"]),
        ("miss", "Retrieval miss", sum(view.is_miss for view in questions)),
    ]


def fact_rows(subject: Subject) -> list[tuple[str, list[str]]]:
    """What ran: (name, value in each run); empty where it does not apply."""
    manifests = [run.artifact.manifest for run in subject.runs.values()]
    rows = [
        ("split", [str(manifest.details["split"]) for manifest in manifests]),
        ("questions asked", [f"{len(run.rows):,}" for run in subject.runs.values()]),
        ("passages in the corpus", [_count(manifest.details["corpus_passages"]) for manifest in manifests]),
        ("passages read for a question", [_count(manifest.details["num_passages"]) for manifest in manifests]),
        ("precision", [str(manifest.config["precision"]) for manifest in manifests]),
    ]
    for name in ("reader", "question_encoder", "passage_encoder"):
        rows.append((name.replace("_", " "), [manifest.details["fingerprints"][name] for manifest in manifests]))
    for name in ("model", "index", "passages", "questions"):
        rows.append((f"{name} artifact", [manifest.inputs.get(name, "") for manifest in manifests]))
    return rows


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def highlight(text: str, finder: AnswerFinder) -> Markup:
    """Escaped text with each answer in a `mark` element.

    Example:
        >>> str(highlight("1 < 2 & so on", AnswerFinder(["2"])))
        '1 &lt; <mark>2</mark> &amp; so on'
    """
    parts, position = [], 0
    for start, end in finder.spans(text):
        parts += [escape(text[position:start]), Markup("<mark>%s</mark>") % text[start:end]]
        position = end
    return Markup("").join([*parts, escape(text[position:])])


def cutoffs_of(metrics: Mapping[str, float], prefix: str) -> list[int]:
    """The k of all metrics named PREFIXk, ascending."""
    return sorted(int(name.removeprefix(prefix)) for name in metrics if name.startswith(prefix))


def percent(value: float) -> str:
    """A fraction for people.

    Example:
        >>> percent(0.285)
        '28.5 %'
    """
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of fractions in percentage points, always with its sign (a true minus sign).

    Example:
        >>> points(0.031), points(-0.2), points(-0.0)
        ('+3.1', '−20.0', '0.0')
    """
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are one number, without the count of questions."""
    return [name for name, value in metrics.items() if name != "num_questions" and not isinstance(value, Mapping)]


def _in_words_and_numbers(name: str) -> tuple[str, int]:
    """Sort key that puts recall_at_5 before recall_at_10."""
    words = name.rstrip("0123456789")
    return words, int(name[len(words) :] or 0)


def _verdict(label: str, run: Evaluation, number: int) -> Verdict:
    row = run.rows[number]
    first, second = (*run.compared, "")[:2]
    likely = row["candidates"][0]["log_probability"] if row["candidates"] else None
    return Verdict(
        label=label,
        prediction=row["prediction"],
        is_right=row[first] == 1.0,
        score=(METRIC_WORDS.get(second, second), row[second]) if row.get(second) is not None else None,
        probability=None if likely is None else math.exp(min(likely, 0.0)),
    )


def _passage_views(subject: Subject, number: int, max_passages: int) -> list[PassageView]:
    """The best passages after training, then those that only the run before had among its best."""
    places: dict[int, list[tuple[str, int, float]]] = {}
    shown: dict[int, None] = {}
    for name, run in (("after", subject.after), ("before", subject.before)):
        row = run.rows[number]
        found = list(zip(row["passage_ids"], row["scores"], strict=False))  # passages of a row itself have no score
        for rank, (passage_id, score) in enumerate(found, start=1):
            places.setdefault(passage_id, []).append((name, rank, score))
        shown |= dict.fromkeys(passage_id for passage_id, _ in found[:max_passages])
    finder = AnswerFinder(subject.after.rows[number]["answers"])
    return [
        _passage_view(passage, finder, places[passage.passage_id], subject.after.num_read)
        for passage in subject.passages.get(list(shown))
    ]


def _passage_view(
    passage: Passage, finder: AnswerFinder, places: Sequence[tuple[str, int, float]], num_read: int
) -> PassageView:
    return PassageView(
        title=highlight(passage.title, finder),
        section=passage.section,
        text=highlight(passage.text, finder),
        has_answer=holds_answer(passage, finder),
        was_read=any(name == "after" and rank <= num_read for name, rank, _ in places),
        places=places,
    )


def _figure_markup(figure: Figure) -> dict[str, Any]:
    return {**dataclasses.asdict(figure), "svg": Markup(figure.svg)}  # charts.py escapes its texts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in sorted(values.items()):
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _environment(*, is_html: bool = True) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "points": points}
    return environment
