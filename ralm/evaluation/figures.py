"""The figures of the report: scores side by side, recall over the number of passages, loss over training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ralm.artifacts.manifest import Artifact
from ralm.artifacts.tables import read_table
from ralm.evaluation.charts import Axis, Line, bar_chart, line_chart, nice_ticks, percent_axis, value_axis
from ralm.evaluation.compare import METRIC_WORDS, Evaluation

TRAINING_LOG: Final = "training_log.parquet"
RUN_WORDS: Final = {"before": "before", "after": "after", "closed_book": "closed book"}
RECALL_KINDS: Final = (("recall_at_", "answer", "solid"), ("recall_title_at_", "page", "dashed"))
MAX_SCORES: Final = 3
LOSSES: Final = (("reader_loss", "Reader loss"), ("retriever_loss", "Retriever loss"))


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart with its words."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]]
    """(class names, words)."""
    note: str


def draw_figures(runs: Mapping[str, Evaluation], trained: Artifact | None) -> list[Figure]:
    """All figures there is data for."""
    figures = [_scores(runs)]
    if any(_cutoffs(run) for run in runs.values()):
        figures.append(_recall({name: run for name, run in runs.items() if _cutoffs(run)}))
    if trained is not None and trained.has(TRAINING_LOG):
        figures += _losses(trained)
    return figures


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values (fewer at the start).

    Example:
        >>> smooth([4.0, 2.0, 0.0], 2)
        [4.0, 3.0, 1.0]
    """
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def _scores(runs: Mapping[str, Evaluation]) -> Figure:
    shown = runs["after"].compared[:MAX_SCORES]
    names = [METRIC_WORDS.get(name, name) for name in shown]
    bars = [(RUN_WORDS[name], name, [run.metrics[metric] for metric in shown]) for name, run in runs.items()]
    words = "; ".join(
        f"{label}: {', '.join(f'{name} {value:.3f}' for name, value in zip(names, values, strict=True))}"
        for label, _, values in bars
    )
    highest = max(value for _, _, values in bars for value in values)
    axis = percent_axis("", min(1.0, 1.12 * highest))
    return Figure(
        title="Scores",
        svg=bar_chart(names, bars, axis, f"Bars. {words}."),
        legend=[(f"box {name}", label) for label, name, _ in bars],
        note="Mean over all questions, in per cent.",
    )


def _recall(runs: Mapping[str, Evaluation]) -> Figure:
    lines, cutoffs = [], sorted({k for run in runs.values() for k in _cutoffs(run)})
    for name, run in runs.items():
        for prefix, kind, style in RECALL_KINDS:
            ks = [k for k in cutoffs if f"{prefix}{k}" in run.metrics]
            if ks:
                label = f"{kind}, {RUN_WORDS[name]}"
                lines.append(Line(label, f"{name} {style}", ks, [run.metrics[f"{prefix}{k}"] for k in ks]))
    words = "; ".join(_in_words(line) for line in lines)
    low, high = cutoffs[0], cutoffs[-1]
    x_axis = Axis(low, high, [(k, str(k)) for k in cutoffs], "passages retrieved (k)", is_logarithmic=low < high)
    is_equal = len({tuple(sorted(_recalls(run).items())) for run in runs.values()}) == 1 and len(runs) > 1
    note = (
        "Share of questions for which one of the best k passages holds an answer (solid) or is of a gold page (dashed)."
    )
    return Figure(
        title="Recall",
        svg=line_chart(lines, x_axis, percent_axis("recall"), f"Recall curves. {words}."),
        legend=[(f"stroke {line.style}", line.label) for line in lines],
        note=f"{note} Training did not change retrieval: the curves coincide." if is_equal else note,
    )


def _losses(trained: Artifact) -> list[Figure]:
    log = read_table(trained.file(TRAINING_LOG), "training_log/2").to_pydict()
    figures = []
    for column, title in LOSSES:
        pairs = [(step, loss) for step, loss in zip(log["step"], log[column], strict=True) if loss is not None]
        if not pairs:
            continue
        steps, losses = [step for step, _ in pairs], [loss for _, loss in pairs]
        window = max(1, min(len(losses) // 4, 4), len(losses) // 10)
        lines = [Line("each step", "raw", steps, losses, has_dots=False)]
        legend = [("stroke raw", "each step")]
        if window > 1:
            mean = f"mean of {window} steps"
            lines.append(Line(mean, "after solid", steps, smooth(losses, window), has_dots=False))
            legend.append(("stroke after solid", mean))
        ticks = [tick for tick in nice_ticks(steps[0], steps[-1]) if steps[0] <= tick <= steps[-1]]
        x_axis = Axis(steps[0], steps[-1], [(tick, f"{tick:g}") for tick in ticks], "training step")
        words = f"{title} over {len(steps)} steps, from {losses[0]:.3f} to {losses[-1]:.3f}."
        figures.append(Figure(title, line_chart(lines, x_axis, value_axis(losses, "loss"), words), legend, note=words))
    return figures


def _in_words(line: Line) -> str:
    values = ", ".join(f"{y:.2f} at {x}" for x, y in zip(line.x, line.y, strict=True))
    return f"{line.label}: {values}"


def _recalls(run: Evaluation) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if name.startswith(("recall_at_", "recall_title_at_"))}


def _cutoffs(run: Evaluation) -> set[int]:
    return {int(name.rpartition("_")[2]) for name in _recalls(run)}
