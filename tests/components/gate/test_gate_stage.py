from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.gate.config import GateConfig
from components.gate.stage import gate
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.evaluation.compare import open_evaluation
from ralm.evaluation.contender import question_scores
from ralm.tracking import flatten
from tests.evaluations import Pairs, write_changes, write_evaluation

QUICK = GateConfig(resamples=500)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


class Decided:
    """A decision of a challenger with one more right answer, and what it left."""

    def __init__(self, pairs: Pairs, **more: str) -> None:
        self.folder = pairs.folder / "decision"
        self.places = {
            "champion": pairs.predictions(
                "old",
                [1.0, 0.0, 0.0, 1.0] * 5,
            ),
            "challenger": pairs.predictions("newer", [1.0, 0.0, 1.0, 1.0] * 5),
            "champion_index": pairs.parts("old")["index"],
            "challenger_index": pairs.parts("newer")["index"],
            **more,
        }

    def decide(self, config: GateConfig = QUICK, **more: str) -> Manifest:
        return gate(decision=str(self.folder), champion_version="3", config=config, **{**self.places, **more})

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


def test_the_decision_says_what_it_rests_on(pairs: Pairs) -> None:
    decided = Decided(pairs)
    manifest = decided.decide()
    assert (manifest.kind, manifest.counts) == ("decision", {"questions": 20})
    assert manifest.details["promote"] is True
    found = json.loads(decided.read("decision.json"))
    assert found["champion_version"] == "3"
    assert found["reason"] == manifest.details["reason"]
    assert found["reason"].startswith("Exact match of the challenger 75.00 %, of the champion 50.00 % on 20 questions")
    assert found["inputs"]["champion"]["index"] == open_artifact(decided.places["champion_index"], "index").fingerprint
    assert found["rule"]["max_loss"] == 0.01
    for side in ("champion", "challenger"):
        opened = open_artifact(found["places"][side]["predictions"], "predictions")
        assert opened.fingerprint == manifest.inputs[side]
    numbers = flatten(json.loads(decided.read("metrics.json")))
    assert numbers["promote"] == 1
    assert numbers["gain.exact_match"] == 0.25
    assert numbers["champion.recall_at_5"] == 1.0
    assert numbers["memory_bytes.challenger.index_bytes"] == 30 * 64
    assert 0 < numbers["gain_at_least.exact_match"] < 0.25


def test_an_equal_decision_is_reused_and_another_rule_decides_anew(pairs: Pairs) -> None:
    decided = Decided(pairs)
    assert not decided.decide().reused
    assert decided.decide().reused
    strict = decided.decide(GateConfig(resamples=500, max_latency_ratio=0.0, confidence=0.99))
    assert not strict.reused


def test_the_first_version_needs_no_champion(pairs: Pairs) -> None:
    manifest = gate(challenger=pairs.predictions("first", [1.0]), decision=str(pairs.folder / "decision"), config=QUICK)
    assert manifest.details == {
        "promote": True,
        "reason": "the first version: Exact match 100.00 %",
        "champion_version": "",
    }


def test_what_belongs_to_a_champion_needs_one(pairs: Pairs) -> None:
    with pytest.raises(ConfigError, match="no --champion, but its version"):
        Decided(pairs).decide(champion="", champion_index="")


def test_fresh_facts_and_changes_are_on_the_pages(pairs: Pairs) -> None:
    fresh = {name: write_evaluation(pairs.folder / f"fresh-{name}", [1.0] * 7) for name in ("a", "b")}
    changes = write_changes(pairs.folder / "changes", {"passages": {"added": 12345}, "wiki": "x", "is_new": True})
    decided = Decided(pairs, fresh_champion=fresh["a"], fresh_challenger=fresh["b"], changes=changes)
    decided.decide()
    for name in ("decision.md", "decision.html"):
        text = decided.read(name)
        assert "Questions about changed pages" in text
        assert "passages.added" in text
        assert "12,345" in text
        assert "Exact match" in text
    assert json.loads(decided.read("decision.json"))["changes"] == {"passages.added": 12345}
    assert json.loads(decided.read("metrics.json"))["fresh.gain.exact_match"] == 0.0


def test_the_page_is_small_complete_and_escaped(pairs: Pairs) -> None:
    changes = write_changes(pairs.folder / "changes", {"<script>alert(1)</script>": 1})
    decided = Decided(pairs, changes=changes)
    decided.decide()
    page = decided.read("decision.html")
    seen: list[str] = []
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert open_tags == []
    assert "script" not in seen
    assert "&lt;script&gt;alert(1)" in page
    assert len(page) < 10_000


def test_markdown_tables_are_whole(pairs: Pairs) -> None:
    decided = Decided(pairs)
    decided.decide()
    tables = [line for line in decided.read("decision.md").splitlines() if line.startswith("|")]
    assert tables[0] == "| Figure | Champion | Challenger | Points | At least | Questions |"
    assert tables[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert tables[2].startswith("| Exact match | 0.5000 | 0.7500 | +25.00 |")
    assert {line.count("|") for line in tables} == {7, 4}


def test_evaluations_of_other_questions_are_refused(pairs: Pairs) -> None:
    with pytest.raises(ArtifactError, match="expected the same questions"):
        Decided(pairs).decide(champion=write_evaluation(pairs.folder / "other", [1.0]), champion_index="")


@pytest.mark.parametrize("name", ["qa", "kilt", "kilt/fever"])
def test_figures_by_question_have_the_means_of_a_real_evaluation(
    name: str,
    tmp_path: Path,
    tiny_model: str,
    toy_index: str,
    toy_passages: str,
    task_questions: Callable[[str], str],
) -> None:
    predictions = str(tmp_path / "predictions")
    evaluate(
        model=tiny_model,
        index=toy_index,
        passages=toy_passages,
        questions=task_questions(name),
        predictions=predictions,
        config=EvaluateConfig(split="dev", num_passages=2, recall_at=(1, 3, 20), max_questions=12),
    )
    opened = open_evaluation(predictions)
    found = {column: [x for x in values if x is not None] for column, values in question_scores(opened).items()}
    means = {column: sum(values) / len(values) for column, values in found.items() if values}
    assert means == pytest.approx({column: opened.metrics[column] for column in means})
    missed = {"num_questions", "eval_loss", "groups"}
    assert set(opened.metrics) - set(means) <= missed
    manifest = gate(champion=predictions, challenger=predictions, decision=str(tmp_path / "decision"), config=QUICK)
    assert manifest.details["promote"]
    assert flatten(json.loads((tmp_path / "decision" / "metrics.json").read_text()))["latency_ms.champion.total_ms"] > 0
