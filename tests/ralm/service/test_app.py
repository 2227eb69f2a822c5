from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ralm.service import state
from tests.ralm.service.fakes import Echo, served
from tests.ralm.service.running import JSON, Running, running
from tests.ralm.service.test_batching import Held


@pytest.fixture
def server() -> Iterator[Running]:
    """With a pair that echoes."""
    with running(max_questions=3, max_k=10, max_body_bytes=1000) as made:
        made.service.take(served(Echo()))
        yield made


def refusal(status: int, code: str, message: str) -> tuple[int, dict[str, str]]:
    return status, {"error_code": code, "message": message}


def test_questions_are_answered_as_mlflow_answers(server: Running) -> None:
    status, headers, content = server.ask("who?", "what?", k=2)
    assert status == 200
    assert headers["content-type"] == "application/json"
    first, second = content["predictions"]
    assert (first["question"], first["answer"], first["log_probability"]) == ("who?", "answer to who?", -0.5)
    assert second["answer"] == "answer to what?"
    assert first["passages"] == [
        {
            "passage_id": str(number),
            "score": 1 / number,
            "title": "Otter",
            "section": "Use",
            "text": f"Passage {number} on Otter.",
            "source_id": "1",
        }
        for number in (1, 2)
    ]


@pytest.mark.parametrize(("given", "asked", "expected"), [(0, 0, 3), (5, 0, 5), (5, 2, 2), (0, 7, 7)])
def test_the_request_goes_before_the_setting_before_the_model(given: int, asked: int, expected: int) -> None:
    with running(k=given) as server:
        server.service.take(served(Echo()))
        _, _, content = server.ask("who?", k=asked)
        assert len(content["predictions"][0]["passages"]) == expected


def test_what_a_cluster_asks(server: Running) -> None:
    for path in ("/health", "/ping"):
        assert server.call(path)[::2] == (200, {"status": "alive"})
    assert server.call("/ready")[::2] == (200, {"status": "ready"})
    status, _, version = server.call("/version")
    assert (status, version["status"], version["recipe"], version["version"]) == (200, "ready", "toy", "1")
    assert version["source"] == "models:/ralm-toy@champion"
    assert version["fingerprints"] == {"model": "a" * 64, "index": "1" * 64, "passages": "c" * 64}
    assert set(version["software"]) == {"ralm", "mlflow"}


def test_before_the_pair_is_loaded() -> None:
    with running() as server:
        assert server.call("/health")[0] == 200
        status, headers, content = server.call("/ready")
        assert (status, headers["retry-after"], content) == (503, "5", {"status": "loading"})
        assert server.call("/version")[2]["status"] == "loading"
        status, headers, content = server.ask("who?")
        assert (status, content) == refusal(503, "TEMPORARILY_UNAVAILABLE", "the model is not loaded yet")
        assert headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("path", "words", "expected"),
    [
        (
            "/",
            {},
            refusal(404, "ENDPOINT_NOT_FOUND", "no endpoint /; there are /invocations, /health, /ready and /version"),
        ),
        ("/invocations", {}, refusal(405, "METHOD_NOT_ALLOWED", "/invocations: GET is not allowed here")),
        ("/ready", {"method": "POST"}, refusal(405, "METHOD_NOT_ALLOWED", "/ready: POST is not allowed here")),
    ],
)
def test_other_paths_and_methods(server: Running, path: str, words: dict[str, str], expected: Any) -> None:
    status, headers, content = server.call(path, **words)
    assert (status, content) == expected
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no json", "body: expected a JSON object, found no JSON: line 1 column 1: Expecting value"),
        ({"inputs": []}, "inputs: expected 1 to 3 questions, found 0"),
        ({"inputs": ["a"], "params": {"k": 11}}, "params.k: expected 0 to 10, found 11"),
        (b" " * 1001, "body: expected at most 1000 bytes, found more"),
        (b" " * 15_000, "body: expected at most 1000 bytes, found more"),
    ],
)
def test_a_bad_request_gets_one_sentence(server: Running, body: Any, message: str) -> None:
    status, _, content = server.call("/invocations", body)
    assert (status, content) == refusal(400, "INVALID_PARAMETER_VALUE", message)


def test_a_body_without_end_is_not_read_to_its_end(server: Running) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            yield b" " * 1000
            sent += 1
            time.sleep(0.001)

    with contextlib.closing(server.connect()) as connection, contextlib.suppress(ConnectionError):
        connection.request("POST", "/invocations", parts(), JSON)
        assert connection.getresponse().status == 400
    assert sent < 500
    assert server.ask("who?")[0] == 200


@pytest.mark.parametrize("kind", ["text/csv", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_refused_as_by_mlflow(server: Running, kind: str) -> None:
    status, _, content = server.call("/invocations", b'{"inputs": ["a"]}', headers={"Content-Type": kind})
    message = f"Content-Type: expected application/json, found {kind!r}"
    assert (status, content) == refusal(415, "UNSUPPORTED_MEDIA_TYPE", message)
    kind = "Application/JSON; charset=utf-8"
    assert server.call("/invocations", b'{"inputs": ["a"]}', headers={"Content-Type": kind})[0] == 200


def test_a_crash_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:
        server.service.take(served(Echo(fails_at="poison")))
        status, _, content = server.ask("poison")
        expected = refusal(500, "INTERNAL_ERROR", "the model could not answer; the server's log says why")
        assert (status, content) == expected
        assert "RuntimeError: cannot read poison, token=secret" in caplog.text
        assert server.ask("who?")[0] == 200
        assert server.call("/ready")[0] == 200
        failed, answered = server.traces.kept
        assert (failed.error, failed.answers, answered.error) == ("RuntimeError", [], "")


class Slow(Held):
    """Waits at `slow` until it is released."""

    def search(self, questions: Any, *, k: int) -> Any:
        return super().search(questions, k=k) if "slow" in questions else Echo.search(self, questions, k=k)


def test_the_rest_of_a_request_that_failed_is_not_answered() -> None:
    with running(max_batch=1) as server:
        pair = Slow()
        pair.fails_at = "poison"
        server.service.take(served(pair))
        pair.batches.clear()
        assert server.ask("poison", "slow", "c", "d")[0] == 500
        pair.released.set()
        assert server.ask("e")[0] == 200
        assert [batch for batch in pair.batches if batch != [state.WARM_UP]] == [["slow"], ["e"]]


class Breaking(Echo):
    """Breaks after its first question, until it is repaired."""

    is_broken = False

    def search(self, questions: Any, *, k: int) -> Any:
        if self.is_broken:
            raise OSError("the disk is gone")
        return super().search(questions, k=k)


def test_a_pair_that_broke_is_not_ready_until_it_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PROBE_EVERY_S", 0.05)
    with running() as server:
        pair = Breaking()
        server.service.take(served(pair))
        pair.is_broken = True
        assert server.ask("who?")[0] == 500
        wait_until(lambda: server.call("/ready")[::2] == (503, {"status": "failed"}))
        status, _, content = server.ask("who?")
        assert (status, content["message"]) == (503, "the model does not answer at the moment")
        assert server.call("/health")[0] == 200
        pair.is_broken = False
        wait_until(lambda: server.call("/ready")[0] == 200)
        assert server.ask("who?")[0] == 200


def test_a_new_pair_takes_the_place_of_one_that_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PROBE_EVERY_S", 0.02)
    with running() as server:
        pair = Breaking()
        server.service.take(served(pair))
        pair.is_broken = True
        assert server.ask("who?")[0] == 500
        wait_until(lambda: server.call("/ready")[0] == 503)
        server.service.take(served(Echo(), "2"))
        for _ in range(5):
            assert server.call("/ready")[0] == 200
            assert server.ask("who?")[0] == 200
            time.sleep(0.03)


def wait_until(is_so: Any) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pair_that_cannot_answer_is_not_taken() -> None:
    with running() as server:
        server.service.take(served(Echo("Otter")))
        broken = Breaking()
        broken.is_broken = True
        with pytest.raises(OSError, match="the disk is gone"):
            server.service.take(served(broken, "2"))
        assert server.call("/version")[2]["version"] == "1"
        assert server.ask("who?")[0] == 200


def held(server: Running) -> Held:
    """Put a pair into service that answers only when it is released."""
    pair = Held()
    pair.released.set()
    server.service.take(served(pair))
    pair.released.clear()
    pair.has_begun.clear()
    pair.batches.clear()
    return pair


def test_requests_that_wait_share_a_batch() -> None:
    with running(max_batch=8) as server, ThreadPoolExecutor(9) as clients:
        pair = held(server)
        first = clients.submit(server.ask, "first")
        assert pair.has_begun.wait(10)
        others = [clients.submit(server.ask, f"{number}?") for number in range(8)]
        wait_until(lambda: len(server.batcher._waiting) == 8)
        pair.released.set()
        assert first.result()[0] == 200
        for number, other in enumerate(others):
            status, _, content = other.result()
            assert (status, content["predictions"][0]["answer"]) == (200, f"answer to {number}?")
        assert [len(batch) for batch in pair.batches] == [1, 8]


def test_a_full_queue_sends_requests_away() -> None:
    with running(max_waiting=2) as server, ThreadPoolExecutor(3) as clients:
        pair = held(server)
        accepted = [clients.submit(server.ask, "first")]
        assert pair.has_begun.wait(10)
        accepted += [clients.submit(server.ask, "second"), clients.submit(server.ask, "third")]
        wait_until(lambda: len(server.batcher._waiting) == 2)
        status, headers, content = server.ask("fourth")
        assert (status, content) == refusal(503, "TEMPORARILY_UNAVAILABLE", "too many questions wait; try again in 1 s")
        assert headers["retry-after"] == "1"
        pair.released.set()
        assert [client.result()[0] for client in accepted] == [200] * 3


def test_nobody_answers_a_client_that_left() -> None:
    with running() as server, ThreadPoolExecutor(1) as clients:
        pair = held(server)
        first = clients.submit(server.ask, "first")
        assert pair.has_begun.wait(10)
        leaving = server.connect()
        leaving.request("POST", "/invocations", json.dumps({"inputs": ["in vain"]}), JSON)
        wait_until(lambda: len(server.batcher._waiting) == 1)
        leaving.close()
        wait_until(lambda: server.batcher._waiting[0].future.cancelled())
        pair.released.set()
        assert first.result()[0] == 200
        assert server.ask("third")[0] == 200
        assert pair.batches == [["first"], ["third"]]


def test_a_new_pair_takes_over_without_a_refused_request() -> None:
    with running(max_batch=2) as server:
        server.service.take(served(Echo("Otter"), "1"))
        ended, answers, lock = threading.Event(), [], threading.Lock()

        def keep_asking() -> None:
            while not ended.is_set():
                answer = server.ask("who?", "what?")
                with lock:
                    answers.append(answer)

        with ThreadPoolExecutor(4) as clients:
            askers = [clients.submit(keep_asking) for _ in range(4)]
            for version in range(2, 6):
                count = len(answers)
                wait_until(lambda count=count: len(answers) > count + 5)
                server.service.take(served(Echo(f"Otter {version}"), str(version)))
            count = len(answers)
            wait_until(lambda: len(answers) > count + 5)
            ended.set()
            for asker in askers:
                asker.result()
        assert {status for status, _, _ in answers} == {200}
        pages = [{row["passages"][0]["title"] for row in content["predictions"]} for _, _, content in answers]
        assert all(len(titles) == 1 for titles in pages), "a request was answered by two pairs"
        assert set.union(*pages) == {"Otter", *(f"Otter {version}" for version in range(2, 6))}


def test_traces_say_which_pair_answered(server: Running) -> None:
    server.ask("who?", "what?", k=2)
    (traced,) = server.traces.kept
    assert (traced.questions, traced.k, traced.model_id, traced.error) == (["who?", "what?"], 2, "m-1", "")
    assert traced.facts["version"] == "1"
    assert traced.facts["index"] == "1" * 64
    (first, second) = traced.answers
    assert (first.answer.question, second.num_batch) == ("who?", 2)
    assert traced.started_ns <= first.started_ns <= first.found_ns <= first.ended_ns <= traced.ended_ns
    server.call("/invocations", b"no json")
    assert len(server.traces.kept) == 1
