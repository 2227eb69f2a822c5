"""A decision as a page and as a short text. The page loads nothing from elsewhere and runs no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

from ralm.evaluation.gate import Comparison, Decision, metric_words, points

TEMPLATES: Final = Path(__file__).parent / "templates"
UNITS: Final = {"encode_ms": "encode", "search_ms": "search", "read_ms": "read", "total_ms": "all together"}
SIZES: Final = {"index_bytes": "index in memory", "file_bytes": "files of the index"}


def render_decision(
    decision: Decision, facts: Mapping[str, Any], changes: Mapping[str, float], *, is_html: bool
) -> str:
    """The page (`is_html`) or its text in Markdown.

    Args:
        decision: what was decided.
        facts: what the sides are, by name.
        changes: counts of what changed between the two corpora, by name; may be empty.
        is_html: False for Markdown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("decision.html.j2" if is_html else "decision.md.j2").render(
        verdict="Promoted" if decision.promote else "Refused",
        reason=decision.reason,
        confidence=f"{100 * decision.rule.confidence:g} %",
        tables=[table for table in _tables(decision) if table["rows"]],
        changes=[(name.replace("_", " "), f"{count:,.10g}") for name, count in changes.items()],
        facts=[(name, str(value)) for name, value in facts.items() if value != ""],
        rule=[(name, str(value)) for name, value in decision.to_json()["rule"].items()],
    )


def _tables(decision: Decision) -> list[dict[str, Any]]:
    figures = ("Figure", "Champion", "Challenger", "Points", "At least", "Questions")
    return [
        {"title": "Figures", "columns": figures, "rows": [_row(*item) for item in decision.metrics.items()]},
        {
            "title": "Questions about changed pages",
            "columns": figures,
            "rows": [_row(*item) for item in decision.fresh.items()],
        },
        {
            "title": "Milliseconds per question",
            "columns": ("", "Champion", "Challenger"),
            "rows": _costs(UNITS, decision.latency_ms, "{:,.3f}"),
        },
        {
            "title": "Bytes",
            "columns": ("", "Champion", "Challenger"),
            "rows": _costs(SIZES, decision.memory_bytes, "{:,}"),
        },
    ]


def _row(name: str, found: Comparison) -> list[str]:
    gain = found.difference
    return [
        metric_words(name),
        "" if found.champion is None else f"{found.champion:.4f}",
        f"{found.challenger:.4f}",
        "" if gain is None else points(gain.value),
        "" if gain is None else points(gain.low),
        f"{found.questions:,}",
    ]


def _costs(names: Mapping[str, str], sides: Mapping[str, Mapping[str, float]], form: str) -> list[list[str]]:
    known = {side: sides.get(side, {}) for side in ("champion", "challenger")}
    return [
        [words, *(form.format(side[name]) if name in side else "" for side in known.values())]
        for name, words in names.items()
        if any(name in side for side in known.values())
    ]
