from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from ralm.answer import Answer, Answerer, FoundPassage
from ralm.service.batching import Batcher, QueueFullError, StoppedError
from tests.conftest import toy_questions
from tests.ralm.service.fakes import Echo

WAIT_S = 10.0


@pytest.fixture
def batcher() -> Iterator[Callable[..., Batcher]]:
    made = []

    def make(max_batch: int = 4, max_waiting: int = 100) -> Batcher:
        made.append(Batcher(max_batch=max_batch, max_waiting=max_waiting))
        return made[-1]

    yield make
    for one in made:
        assert one.stop(WAIT_S)


class Held(Echo):
    """Begins its first batch, and goes on when it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.released = threading.Event(), threading.Event()

    def search(self, questions: Sequence[str], *, k: int) -> list[list[FoundPassage]]:
        self.has_begun.set()
        assert self.released.wait(WAIT_S)
        return super().search(questions, k=k)


def texts(futures: Sequence[Any]) -> list[str]:
    return [future.result(WAIT_S).answer.text for future in futures]


def test_what_waits_is_answered_together_in_order(batcher: Callable[..., Batcher]) -> None:
    echo, batches = Held(), batcher(max_batch=4)
    first = batches.submit(echo, ["a"], k=1)
    assert echo.has_begun.wait(WAIT_S)
    later = [future for question in "bcdefg" for future in batches.submit(echo, [question], k=1)]
    echo.released.set()
    assert texts(first + later) == ["answer to a", *(f"answer to {question}" for question in "bcdefg")]
    assert echo.batches == [["a"], ["b", "c", "d", "e"], ["f", "g"]]
    assert [future.result().num_batch for future in later] == [4, 4, 4, 4, 2, 2]
    assert len(echo.threads) == 1


def test_a_request_larger_than_a_batch_is_answered_in_several(batcher: Callable[..., Batcher]) -> None:
    echo = Echo()
    futures = batcher(max_batch=2, max_waiting=3).submit(echo, list("abcde"), k=1)
    assert texts(futures) == [f"answer to {question}" for question in "abcde"]
    assert echo.batches == [["a", "b"], ["c", "d"], ["e"]]


def test_other_numbers_of_passages_and_other_pairs_are_not_mixed(batcher: Callable[..., Batcher]) -> None:
    one, other, batches = Held(), Echo(), batcher()
    batches.submit(one, ["a"], k=1)
    assert one.has_begun.wait(WAIT_S)
    futures = batches.submit(one, ["b"], k=2) + batches.submit(other, ["c"], k=2)
    futures += batches.submit(one, ["d"], k=1) + batches.submit(one, ["e"], k=2)
    one.released.set()
    texts(futures)
    assert one.batches == [["a"], ["b", "e"], ["d"]]
    assert one.ks == [1, 2, 1]
    assert other.batches == [["c"]]


def test_a_full_queue_refuses_a_request_as_a_whole(batcher: Callable[..., Batcher]) -> None:
    echo, batches = Held(), batcher(max_waiting=3)
    batches.submit(echo, ["a"], k=1)
    assert echo.has_begun.wait(WAIT_S)
    waiting = batches.submit(echo, ["b", "c"], k=1)
    with pytest.raises(QueueFullError, match="too many questions wait; try again in 1 s") as error:
        batches.submit(echo, ["d", "e"], k=1)
    assert error.value.retry_after_s == 1
    waiting += batches.submit(echo, ["f"], k=1)
    echo.released.set()
    texts(waiting)
    assert echo.batches == [["a"], ["b", "c", "f"]]


def test_the_time_to_wait_follows_the_speed(batcher: Callable[..., Batcher]) -> None:
    class Slow(Echo):
        def read(self, questions: Sequence[str], found: Sequence[Sequence[FoundPassage]]) -> list[Answer]:
            time.sleep(0.3)
            return super().read(questions, found)

    slow, held, batches = Slow(), Held(), batcher(max_waiting=8)
    texts(batches.submit(slow, ["a"], k=1))
    batches.submit(held, ["a"], k=1)
    assert held.has_begun.wait(WAIT_S)
    batches.submit(held, list("bcdefgh"), k=1)
    with pytest.raises(QueueFullError) as error:
        batches.submit(held, ["i", "j"], k=1)
    held.released.set()
    assert 3 <= error.value.retry_after_s <= 5


def test_what_nobody_waits_for_is_not_answered(batcher: Callable[..., Batcher]) -> None:
    echo, batches = Held(), batcher()
    batches.submit(echo, ["a"], k=1)
    assert echo.has_begun.wait(WAIT_S)
    given_up, waiting = batches.submit(echo, ["b", "c"], k=1)
    assert given_up.cancel()
    echo.released.set()
    assert texts([waiting]) == ["answer to c"]
    with pytest.raises(CancelledError):
        given_up.result()
    assert echo.batches == [["a"], ["c"]]


def test_a_question_that_fails_harms_no_other(
    batcher: Callable[..., Batcher], caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo(fails_at="poison")
    good, bad, also_good = batcher().submit(echo, ["a", "poison", "b"], k=1)
    assert texts([good, also_good]) == ["answer to a", "answer to b"]
    with pytest.raises(RuntimeError, match="poison"):
        bad.result(WAIT_S)
    assert good.result().num_batch == 1
    assert "a batch of 3 questions failed; each is tried alone: RuntimeError" in caplog.text


def test_stopping_answers_what_waits_and_takes_nothing_more() -> None:
    echo, batches = Held(), Batcher(max_batch=1, max_waiting=10)
    futures = batches.submit(echo, ["a", "b"], k=1)
    assert echo.has_begun.wait(WAIT_S)
    assert not batches.stop(0.01)
    with pytest.raises(StoppedError):
        batches.submit(echo, ["c"], k=1)
    echo.released.set()
    assert batches.stop(WAIT_S)
    assert texts(futures) == ["answer to a", "answer to b"]


@pytest.mark.parametrize("k", [2, 5])
def test_answers_are_those_of_questions_asked_one_by_one(
    batcher: Callable[..., Batcher], tiny_model: str, toy_index: str, toy_passages: str, k: int
) -> None:
    answerer = Answerer(model=tiny_model, index=toy_index, passages=toy_passages, precision="fp32")
    questions = [str(row["question"]) for split in ("train", "dev", "test") for row in toy_questions(split)]
    alone = {question: answerer.answer([question], k=k)[0] for question in questions}
    batches = batcher(max_batch=8)
    with ThreadPoolExecutor(6) as clients:
        answers = list(
            clients.map(lambda question: batches.submit(answerer, [question], k=k)[0].result(60).answer, questions)
        )
    assert batches.num_batches < len(questions)
    for question, answer in zip(questions, answers, strict=True):
        assert answer.text == alone[question].text
        assert [hit.passage for hit in answer.passages] == [hit.passage for hit in alone[question].passages]
        assert answer.log_probability == pytest.approx(alone[question].log_probability, abs=1e-3)
