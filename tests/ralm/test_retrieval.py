"""Retrieval leaves out a question's own source, digs deeper where it must, and reranks with a newer encoder."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ralm.corpus.lookup import PassageLookup
from ralm.errors import ConfigError
from ralm.index.search import Index, open_index
from ralm.model import open_model
from ralm.retrieval import PassageRetriever, Rerank


@pytest.fixture
def index(toy_index: str, tiny_model: str) -> Index:
    return open_index(toy_index, passage_encoder=open_model(tiny_model).fingerprints["passage_encoder"])


@pytest.fixture
def questions(index: Index) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, index.dimension)).astype(np.float32)


def test_without_exclusions_it_is_the_search(index: Index, toy_passages: str, questions: np.ndarray) -> None:
    found = PassageRetriever(index, PassageLookup(toy_passages)).find(questions, 4)
    score_BK, row_BK, _ = index.search(questions, 4)
    np.testing.assert_array_equal(found.rows, row_BK)
    np.testing.assert_array_equal(found.scores, score_BK)
    assert [[passage.passage_id for passage in of_one] for of_one in found.passages] == found.passage_ids.tolist()


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_own_source_is_left_out_whatever_the_ratio(
    index: Index, toy_passages: str, questions: np.ndarray, ratio: int
) -> None:
    """The result is that of a search without the excluded passages, so the ratio is a matter of speed alone."""
    lookup = PassageLookup(toy_passages)
    plain = PassageRetriever(index, lookup).find(questions, 30)
    exclude = [plain.passages[0][0].source_id, None, str(plain.passage_ids[2, 0])]
    found = PassageRetriever(index, lookup, overretrieve_ratio=ratio).find(questions, 5, exclude)
    expected_first = [passage for passage in plain.passages[0] if passage.source_id != exclude[0]][:5]
    assert found.passages[0] == expected_first
    assert found.rows[1].tolist() == plain.rows[1, :5].tolist()
    assert found.rows[2].tolist() == plain.rows[2, 1:6].tolist()
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_a_corpus_without_others_gives_its_own_passages_last(
    index: Index, toy_passages: str, questions: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    lookup = PassageLookup(toy_passages)
    with caplog.at_level(logging.WARNING):
        found = PassageRetriever(index, lookup).find(questions[:1], 29, ["3"])
    assert [passage.source_id == "3" for passage in found.passages[0]] == [False] * 27 + [True] * 2
    assert "own source" in caplog.text


def test_rerank_takes_the_best_by_the_newer_encoder(index: Index, toy_passages: str, questions: np.ndarray) -> None:
    generator = np.random.default_rng(1)
    newer = {int(number): generator.normal(size=index.dimension).astype(np.float32) for number in index.passage_ids}
    rerank = Rerank(10, lambda passages: np.stack([newer[passage.passage_id] for passage in passages]))
    found = PassageRetriever(index, PassageLookup(toy_passages), rerank=rerank).find(questions, 3)
    candidates = index.passage_ids[index.search(questions, 10)[1]]
    for question, (ids, scores) in enumerate(zip(found.passage_ids, found.scores, strict=True)):
        expected = sorted(candidates[question], key=lambda number: -float(newer[int(number)] @ questions[question]))[:3]
        assert ids.tolist() == expected
        np.testing.assert_allclose(scores, [newer[int(number)] @ questions[question] for number in ids], rtol=1e-5)


def test_rerank_never_brings_back_a_questions_own_source(
    index: Index, toy_passages: str, questions: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where as many candidates are asked for as the corpus has passages: its own are then among them."""
    lookup = PassageLookup(toy_passages)
    own = PassageRetriever(index, lookup).find(questions[:1], 1).passages[0][0]
    stored = dict(zip(index.passage_ids.tolist(), index.vectors(np.arange(index.num_passages)), strict=True))
    rerank = Rerank(1000, lambda passages: np.stack([stored[passage.passage_id] for passage in passages]))
    retriever = PassageRetriever(index, lookup, rerank=rerank)
    with caplog.at_level(logging.WARNING):
        found = retriever.find(questions[:1], 5, [own.source_id])
    assert own.source_id not in [passage.source_id for passage in found.passages[0]]
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert not caplog.records, "there are enough others"
    with caplog.at_level(logging.WARNING):
        found = retriever.find(questions[:1], index.num_passages, [own.source_id])
    is_own = [passage.source_id == own.source_id for passage in found.passages[0]]
    assert is_own == sorted(is_own), "its own come last"
    assert "own source" in caplog.text


def test_bad_ratio_is_refused(index: Index, toy_passages: str) -> None:
    with pytest.raises(ConfigError, match="overretrieve_ratio"):
        PassageRetriever(index, PassageLookup(toy_passages), overretrieve_ratio=0)
