from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.evaluation.config import Rule
from ralm.evaluation.contender import Contender, open_contender, question_scores
from ralm.evaluation.gate import Decision, decide
from tests.evaluations import evaluation, metrics_of, rows_of, write_evaluation, write_part

QUICK = Rule(resamples=1000)


def side(scores: list[float | None], **config: object) -> Contender:
    return Contender(evaluation(rows_of(scores), **config))


def judge(champion: list[float | None], challenger: list[float | None], rule: Rule = QUICK) -> Decision:
    return decide(side(champion), side(challenger), rule)


def with_losses(questions: int, losses: int, gains: int = 0) -> tuple[list[float], list[float]]:
    """Champion and challenger that differ in so many questions."""
    champion = [1.0] * losses + [0.0] * gains + [1.0] * (questions - losses - gains)
    return champion, [0.0] * losses + [1.0] * gains + [1.0] * (questions - losses - gains)


def test_equal_answers_are_promoted_with_an_interval_of_nothing() -> None:
    decision = judge([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], dataclasses.replace(QUICK, max_loss=0.0))
    gain = decision.metrics["exact_match"].difference
    assert gain is not None
    assert (decision.promote, gain.value, gain.low, gain.high) == (True, 0.0, 0.0, 0.0)
    assert decision.reason == (
        "Exact match of the challenger 66.67 %, of the champion 66.67 % on 3 questions: +0.00 points, "
        "with 95 % confidence at least +0.00, allowed is +0.00"
    )


def test_the_bound_is_that_of_the_normal_approximation_where_questions_are_many() -> None:
    champion, challenger = with_losses(4000, losses=300, gains=260)
    gain = judge(champion, challenger, Rule(confidence=0.9)).metrics["exact_match"].difference
    assert gain is not None
    difference = np.subtract(challenger, champion)
    z_of_90_percent = 1.2815516
    expected = difference.mean() - z_of_90_percent * difference.std() / np.sqrt(len(difference))
    assert gain.low == pytest.approx(expected, abs=2e-4)
    assert gain.value == pytest.approx(-0.01)


def test_a_loss_of_exactly_what_is_allowed_is_seldom_promoted() -> None:
    """The rule's promise: a challenger that really is worse by max_loss passes in 1 - confidence of all cases."""
    generator = np.random.default_rng(5)
    promoted = 0
    for _ in range(200):
        champion = (generator.random(400) < 0.5).astype(float)
        lost = generator.random(400) < 0.2  # of those right: 0.1 of all
        gained = generator.random(400) < 0.1  # of those wrong: 0.05 of all
        challenger = np.where(champion == 1, 1.0 - lost, gained * 1.0)
        rule = Rule(max_loss=0.05, confidence=0.9, resamples=400)
        promoted += judge(champion.tolist(), challenger.tolist(), rule).promote
    assert 0.05 < promoted / 200 < 0.16


def test_few_questions_are_refused_and_so_many_as_it_says_are_enough() -> None:
    refused = judge(*with_losses(100, losses=4, gains=4), Rule(max_loss=0.02))
    assert not refused.promote
    assert refused.needed_questions is not None
    assert refused.needed_questions > 100
    assert f"about {refused.needed_questions:,} questions could tell" in refused.reason
    times = -(-refused.needed_questions // 100) + 1
    more = judge(*with_losses(100 * times, losses=4 * times, gains=4 * times), Rule(max_loss=0.02))
    assert more.promote
    fewer = max(times // 2, 1)
    assert not judge(*with_losses(100 * fewer, 4 * fewer, 4 * fewer), Rule(max_loss=0.02)).promote


def test_a_loss_beyond_what_is_allowed_is_refused_however_many_questions() -> None:
    decision = judge(*with_losses(1000, losses=100))
    assert (decision.promote, decision.needed_questions) == (False, None)
    assert "refused: it loses more than is allowed, or as much" in decision.reason


def test_a_loss_that_is_the_same_everywhere_may_be_as_great_as_is_allowed() -> None:
    assert judge([1.0] * 5, [0.9] * 5, dataclasses.replace(QUICK, max_loss=0.1)).promote
    assert not judge([1.0] * 5, [0.89] * 5, dataclasses.replace(QUICK, max_loss=0.1)).promote


def test_equal_seeds_decide_equally() -> None:
    generator = np.random.default_rng(3)
    scores = generator.random(60).tolist(), generator.random(60).tolist()
    assert judge(*scores) == judge(*scores)
    other, same = (judge(*scores, dataclasses.replace(QUICK, seed=seed)).metrics["f1"].difference for seed in (1, 0))
    assert other != same


def test_questions_without_a_score_on_one_side_do_not_count() -> None:
    decision = judge([1.0, None, 1.0, 0.0], [1.0, 1.0, None, 0.0])
    assert decision.metrics["exact_match"].questions == 2


def test_figures_of_retrieval_are_those_of_the_evaluation() -> None:
    rows = rows_of([1.0] * 4, ranks=[1, 3, None, 9])
    found = question_scores(evaluation(rows))
    means = {name: np.mean([value for value in values if value is not None]) for name, values in found.items()}
    expected = metrics_of(rows)
    assert set(means) == {
        "exact_match",
        "f1",
        "recall_at_1",
        "recall_at_5",
        "mrr",
        "recall_title_at_1",
        "recall_title_at_5",
    }
    assert means == pytest.approx({name: expected[name] for name in means})


def test_claims_do_not_count_for_recall() -> None:
    rows = [{**row, "answers": ["SUPPORTS"]} if number else row for number, row in enumerate(rows_of([1.0] * 3))]
    rows = [{**row, "metadata": row["metadata"].replace('"task": "qa"', '"task": "kilt"')} for row in rows]
    rows = [{**row, "accuracy": 1.0, "rouge_l": 1.0} for row in rows]
    found = question_scores(evaluation(rows, task="kilt"))
    assert found["recall_at_1"] == [1.0, None, None]
    assert found["mrr"] == [1.0, None, None]


def test_another_figure_may_decide() -> None:
    rule = dataclasses.replace(QUICK, metric="recall_at_5")
    before = Contender(evaluation(rows_of([0.0] * 20, ranks=[1] * 20)))
    after = Contender(evaluation(rows_of([1.0] * 20, ranks=[None] * 20)))
    decision = decide(before, after, rule)
    assert (decision.promote, decision.metric) == (False, "recall_at_5")
    assert decision.reason.startswith("recall@5 of the challenger 0.00 %, of the champion 100.00 %")
    with pytest.raises(ConfigError, match="metric: expected one of exact_match, f1, .*, found 'rouge_l'"):
        decide(before, after, Rule(metric="rouge_l"))


def test_recall_that_only_one_side_has_is_left_out() -> None:
    champion = evaluation(rows_of([1.0]))
    small = dataclasses.replace(champion, metrics={k: v for k, v in champion.metrics.items() if not k.endswith("_5")})
    assert "recall_at_5" not in decide(Contender(small), side([1.0]), QUICK).metrics


def test_the_first_version_is_promoted() -> None:
    decision = decide(None, side([1.0, 0.0]), QUICK)
    assert (decision.promote, decision.reason) == (True, "the first version: Exact match 50.00 %")
    assert decision.metrics["exact_match"].difference is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_passages": 3}, "in the same way, found num_passages 2 and 3"),
        ({"closed_book": True}, "found closed_book None and True"),
        ({"precision": "bf16"}, "found precision fp32 and bf16"),
    ],
)
def test_questions_asked_in_another_way_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        decide(side([1.0]), side([1.0], **changed), QUICK)


def test_how_fast_they_were_asked_does_not_matter() -> None:
    assert decide(side([1.0]), side([1.0], batch_size=64, recall_at=[1]), QUICK).promote


def test_other_questions_or_answers_are_refused() -> None:
    with pytest.raises(ArtifactError, match="expected the same questions, found 1 and 2 questions"):
        judge([1.0], [1.0, 1.0])
    other = [{**row, "answers": ["silver"]} for row in rows_of([1.0])]
    with pytest.raises(ArtifactError, match=r"the same answers to question 'q0', found \['amber'\] and \['silver'\]"):
        decide(side([1.0]), Contender(evaluation(other)), QUICK)


def test_fresh_facts_have_to_be_as_good() -> None:
    def with_fresh(scores: list[float], fresh: list[float]) -> Contender:
        return Contender(evaluation(rows_of(scores)), fresh=evaluation(rows_of(fresh)))

    before = with_fresh([1.0] * 9, [0.0, 1.0, 1.0])
    worse = decide(before, with_fresh([1.0] * 9, [0.0, 0.0, 1.0]), QUICK)
    assert not worse.promote
    assert "3 questions about changed pages it gains -33.33 points of Exact match, expected at least" in worse.reason
    assert worse.fresh["exact_match"].questions == 3
    equal = with_fresh([1.0] * 9, [1.0, 0.0, 1.0])
    assert decide(before, equal, QUICK).promote
    assert not decide(before, equal, dataclasses.replace(QUICK, min_fresh_gain=0.1)).promote
    with pytest.raises(ArtifactError, match="no evaluation of fresh facts beside it"):
        decide(before, side([1.0] * 9), QUICK)
    with pytest.raises(ArtifactError, match="no evaluation of fresh facts beside it"):
        decide(side([1.0] * 9), before, QUICK)


def test_guards_of_latency_and_memory(tmp_path: Path) -> None:
    def costly(name: str, search_ms: float, size: float) -> Contender:
        index = write_part(tmp_path / f"index-{name}", "index", counts={"passages": 1000}, bytes_per_vector=size)
        inputs = {"index": open_artifact(index, "index").fingerprint}
        timings = {"encode_ms": 1.0, "search_ms": search_ms, "read_ms": 2.0, "elapsed_s": 9.0}
        return open_contender(write_evaluation(tmp_path / name, [1.0], inputs=inputs, timings=timings), index=index)

    before, after = costly("before", 7.0, 100.0), costly("after", 17.0, 150.5)
    plain = decide(before, after, QUICK)
    assert plain.promote
    assert plain.latency_ms["challenger"] == {"encode_ms": 1.0, "search_ms": 17.0, "read_ms": 2.0, "total_ms": 20.0}
    assert plain.memory_bytes["champion"]["index_bytes"] == 100_000
    slow = decide(before, after, dataclasses.replace(QUICK, max_latency_ratio=1.9))
    assert slow.reason.endswith("refused: 20 ms per question are more than 1.9 times the champion's 10")
    assert decide(before, after, dataclasses.replace(QUICK, max_latency_ratio=2.0)).promote
    both = decide(before, after, dataclasses.replace(QUICK, max_latency_ratio=1.5, max_memory_ratio=1.5))
    assert both.reason.endswith("; 150,500 bytes of index in memory are more than 1.5 times the champion's 100,000")
    with pytest.raises(ConfigError, match="max_memory_ratio: expected 0 where bytes of index in memory of both sides"):
        decide(dataclasses.replace(before, index=None), after, dataclasses.replace(QUICK, max_memory_ratio=2))


def test_an_index_that_was_not_searched_is_refused(tmp_path: Path) -> None:
    index = write_part(tmp_path / "index", "index")
    predictions = write_evaluation(tmp_path / "predictions", [1.0], inputs={"index": "8" * 64})
    with pytest.raises(ArtifactError, match="evaluates index 8888"):
        open_contender(predictions, index=index)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": ""}, "metric: expected auto"),
        ({"max_loss": -0.1}, "max_loss: expected at least 0"),
        ({"max_loss": 1.0}, "max_loss: expected at least 0 and less than 1"),
        ({"confidence": 0.5}, "confidence: expected more than 0.5"),
        ({"confidence": 1.0}, "confidence: expected"),
        ({"resamples": 99}, "resamples: expected at least 100"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"max_latency_ratio": -1.0}, "max_latency_ratio: expected at least 0"),
        ({"max_memory_ratio": float("nan")}, "max_memory_ratio: expected at least 0"),
        ({"min_fresh_gain": 2.0}, "min_fresh_gain: expected -1 to 1"),
    ],
)
def test_rules_that_make_no_sense(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rule(**changed)
