"""Traces as MLflow has them afterwards."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ralm import serving, tracking
from ralm.errors import ConfigError
from ralm.service import traces
from ralm.service.batching import answer_together
from ralm.service.traces import TracedRequest, Traces, are_wanted
from tests.evaluations import open_registry
from tests.ralm.service.fakes import Echo

FACTS = {"recipe": "toy", "version": "7", "source": "given", "model": "a" * 64}


def request(*questions: str, error: str = "", model_id: str = "") -> TracedRequest:
    started_ns = time.time_ns()
    answers = [] if error else answer_together(Echo(), questions, 2)
    return TracedRequest(
        questions=questions,
        k=2,
        answers=answers,
        facts=FACTS,
        model_id=model_id,
        started_ns=started_ns,
        ended_ns=time.time_ns(),
        error=error,
    )


@pytest.fixture
def database(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tracking is on; MLflow forgets afterwards where it wrote traces to."""
    import mlflow

    yield open_registry(ralm_home, monkeypatch)
    mlflow.tracing.reset()


def written(**search: Any) -> list[Any]:
    import mlflow

    client = tracking.connect()
    experiment = client.get_experiment_by_name("ralm")
    assert experiment is not None
    return mlflow.search_traces(locations=[experiment.experiment_id], return_type="list", **search)


def test_a_trace_has_a_retriever_and_a_reader_for_each_question(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    lines = Traces(is_on=True)
    sent = request("who?", "what?")
    lines.put(sent)
    lines.stop(60)
    assert (lines.num_written, lines.num_dropped) == (1, 0)
    assert f"traces go to sqlite:///{database}, experiment ralm" in caplog.text
    (trace,) = written()
    metadata = trace.info.trace_metadata
    assert {name: metadata[f"ralm.{name}"] for name in FACTS} == FACTS
    assert trace.info.state == "OK"
    root, *spans = trace.data.spans  # the batch is one, so that its spans begin at the same time, in any order
    assert (root.span_type, root.start_time_ns, root.end_time_ns) == ("CHAIN", sent.started_ns, sent.ended_ns)
    assert root.inputs == {"inputs": ["who?", "what?"], "params": {"k": 2}}
    assert root.outputs == {"predictions": ["answer to who?", "answer to what?"]}
    kinds = sorted((span.inputs["question"], span.name, span.span_type) for span in spans)
    assert kinds == [
        (name, *kind) for name in ("what?", "who?") for kind in (("read", "LLM"), ("retrieve", "RETRIEVER"))
    ]
    assert {span.parent_id for span in spans} == {root.span_id}
    by_name = {span.name: span for span in spans if span.inputs["question"] == "what?"}
    retrieve, read = by_name["retrieve"], by_name["read"]
    assert retrieve.inputs == {"question": "what?", "k": 2}
    assert retrieve.outputs[1] == {
        "page_content": "Passage 2 on Otter.",
        "id": "2",
        "metadata": {"passage_id": "2", "score": 0.5, "title": "Otter", "section": "Use", "source_id": "1"},
    }
    assert read.inputs == {"question": "what?", "passage_ids": ["1", "2"]}
    assert read.outputs == {"answer": "answer to what?", "log_probability": -0.5}
    assert (read.attributes["candidates"], read.attributes["questions_in_batch"]) == (1, 2)
    done = sent.answers[1]
    assert (retrieve.start_time_ns, retrieve.end_time_ns) == (done.started_ns, done.found_ns)
    assert (read.start_time_ns, read.end_time_ns) == (done.found_ns, done.ended_ns)


def test_mlflow_takes_the_retriever_spans_for_retrieval(database: Path) -> None:
    """Its judges of retrieval read the documents from traces in this way."""
    from mlflow.genai.utils.trace_utils import extract_retrieval_context_from_trace

    lines = Traces(is_on=True)
    lines.put(request("who?"))
    lines.stop(60)
    (trace,) = written()
    (found,) = extract_retrieval_context_from_trace(trace).values()
    assert [document["content"] for document in found] == ["Passage 1 on Otter.", "Passage 2 on Otter."]


def test_failed_requests_and_the_logged_model_are_noted(database: Path) -> None:
    lines = Traces(is_on=True)
    lines.put(request("who?", error="RuntimeError", model_id="m-123"))
    lines.stop(60)
    (trace,) = written(model_id="m-123")
    assert (trace.info.state, trace.data.spans[0].outputs) == ("ERROR", "RuntimeError")


@pytest.mark.parametrize(
    ("setting", "uri", "tracked", "expected"),
    [
        ("auto", "", "on", False),
        ("auto", "sqlite:///x.db", "on", True),
        ("auto", "sqlite:///x.db", "off", False),
        ("on", "", "on", True),
        ("off", "sqlite:///x.db", "on", False),
        ("off", "", "off", False),
    ],
)
def test_when_traces_are_wanted(
    monkeypatch: pytest.MonkeyPatch, setting: Any, uri: str, tracked: str, expected: bool
) -> None:
    monkeypatch.setenv("RALM_TRACKING", tracked)
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert are_wanted(setting) is expected


def test_traces_without_tracking_are_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="trace: on, but RALM_TRACKING is off"):
        are_wanted("on")


def test_traces_that_are_off_touch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "connect", lambda: pytest.fail("connected"))
    lines = Traces(is_on=False)
    lines.put(request("who?"))
    lines.stop(1)
    assert (lines.num_written, lines.num_dropped) == (0, 0)


def test_a_server_that_is_away_costs_traces_only(
    ralm_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RALM_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines = Traces(is_on=True)
    for _ in range(5):
        lines.put(request("who?"))
    lines.stop(20)
    assert (lines.num_written, lines.num_dropped) == (0, 5)
    told = [record.getMessage() for record in caplog.records if record.name == traces.__name__]
    assert [line for line in told if "MLflow fails, the next 30 s have none" in line] == told[:1]
    assert "secret" not in caplog.text


def test_a_server_that_goes_away_is_told_once(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow's exporter only logs what goes wrong; this is noticed all the same."""
    from mlflow.tracing.client import TracingClient

    def fail(*_: Any) -> None:
        raise OSError("no route to host")

    lines = Traces(is_on=True)
    lines.put(request("first"))
    deadline = time.monotonic() + 60
    while not lines.num_written:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    monkeypatch.setattr(TracingClient, "start_trace", fail)
    for _ in range(3):
        lines.put(request("later"))
    lines.stop(20)
    assert (lines.num_written, lines.num_dropped) == (1, 3)
    assert len([record for record in caplog.records if "no route to host" in record.getMessage()]) == 1


def test_who_answers_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(tracking, "connect", lambda: goes_on.wait(20))
    monkeypatch.setattr(traces, "MAX_WAITING", 3)
    monkeypatch.setattr(serving, "record_trace", lambda _: None)
    lines = Traces(is_on=True)
    started_at = time.monotonic()
    for _ in range(10):
        lines.put(request("who?"))
    lines.stop(0.1)
    assert time.monotonic() - started_at < 5
    assert lines.num_dropped == 7
    goes_on.set()
    deadline = time.monotonic() + 10
    while lines.num_written < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines.stop(10)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `Traces` sets for its process is taken back."""
    before = os.environ.get("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING")
    yield
    if before is None:
        os.environ.pop("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", None)
