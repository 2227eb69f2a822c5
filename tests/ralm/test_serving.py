"""The registered pair as MLflow loads it, and versions by their alias."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ralm import answer, serving, tracking
from ralm.answer import Answerer
from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.registry import Verdict, register_pair
from ralm.service.pair import champion_target, load_pair
from ralm.serving import Pair, find_version, logged_model
from tests.conftest import toy_questions
from tests.evaluations import open_registry

QUESTIONS = [str(row["question"]) for row in toy_questions("train")]


@pytest.fixture(autouse=True)
def database(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RALM_PRECISION", "fp32")
    return open_registry(ralm_home, monkeypatch)


@pytest.fixture
def places(tiny_model: str, toy_index: str, toy_passages: str) -> dict[str, str]:
    return {"model": tiny_model, "index": toy_index, "passages": toy_passages}


def register(places: dict[str, str]) -> Any:
    prints = {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    pair = Pair(recipe="toy", fingerprints=prints, **places)
    return register_pair(pair, tags={}, judge=lambda _: Verdict(promote=True, reason="first"))


@pytest.fixture
def loaded(places: dict[str, str]) -> Iterator[Any]:
    """The champion as MLflow's server loads it."""
    import mlflow

    register(places)
    yield mlflow.pyfunc.load_model("models:/ralm-toy@champion")
    mlflow.tracing.reset()


def test_requests_at_once_get_the_answers_of_the_pair(loaded: Any, places: dict[str, str]) -> None:
    """Tokenizers refuse to work for two threads at once."""
    answerer = Answerer(**places)
    expected = [answerer.answer([question], k=2)[0].to_json() for question in QUESTIONS]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda question: loaded.predict([question], params={"k": 2}), QUESTIONS))
    assert [found for (found,) in answers] == expected
    json.dumps(answers)


def test_the_registry_knows_what_goes_in_and_comes_out(loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert [column.type.name for column in signature.inputs] == ["string"]
    (output,) = [column.type for column in signature.outputs]
    assert {field.name for field in output.properties} == {"question", "answer", "log_probability", "passages"}
    (passages,) = [field.dtype for field in output.properties if field.name == "passages"]
    known = {field.name for field in passages.dtype.properties}
    assert known == {"passage_id", "score", "title", "section", "text", "source_id"}
    assert (signature.params.params[0].name, signature.params.params[0].default) == ("k", 0)


@pytest.mark.parametrize(
    ("questions", "k", "message"),
    [
        (["who?"], -1, "k: expected 0 or more, found -1"),
        (["who?", " "], 0, "inputs: expected questions, found none or an empty one"),
        ([], 0, "inputs: expected questions, found none or an empty one"),
    ],
)
def test_a_bad_request_is_one_sentence_with_status_400(loaded: Any, questions: list[str], k: int, message: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as error:
        loaded.predict(questions, params={"k": k})
    assert (error.value.message, error.value.get_http_status_code()) == (message, 400)


def test_a_crash_is_logged_and_not_told(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("token=secret")

    monkeypatch.setattr(answer, "generate_answers", fail)
    with pytest.raises(MlflowException) as error:
        loaded.predict(["who?"])
    assert error.value.get_http_status_code() == 500
    assert "secret" not in error.value.serialize_as_json()
    assert "RuntimeError: token=secret" in caplog.text


def test_a_model_needs_this_version_of_the_package(loaded: Any) -> None:
    from mlflow.artifacts import download_artifacts

    lines = Path(download_artifacts("models:/ralm-toy@champion/requirements.txt")).read_text().splitlines()
    assert f"ralm-pipelines[cpu]=={metadata.version('ralm-pipelines')}" in lines
    assert all("==" in line for line in lines)


def test_traces_are_written_in_mlflows_server_only(
    loaded: Any,
    database: Path,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    register({**places, "index": str(shutil.copytree(places["index"], tmp_path / "index"))})  # tries the example
    loaded.predict(["tried out?"], params={"k": 2})
    assert loaded.unwrap_python_model()._traces is None
    monkeypatch.setitem(sys.modules, serving.SERVER_MODULE, ModuleType("app"))
    caplog.set_level(logging.INFO)
    served = mlflow.pyfunc.load_model("models:/ralm-toy@champion")
    served.predict(["what is the use of otter"], params={"k": 2})
    lines = served.unwrap_python_model()._traces
    lines.stop(60)
    assert (lines.num_written, lines.num_dropped) == (1, 0)
    experiment = tracking.connect().get_experiment_by_name("ralm")
    assert experiment is not None
    (trace,) = mlflow.search_traces(locations=[experiment.experiment_id], return_type="list")
    assert trace.data.spans[0].inputs["inputs"] == ["what is the use of otter"]
    assert trace.info.trace_metadata["ralm.recipe"] == "toy"


def test_a_version_is_found_by_alias_and_number(places: dict[str, str]) -> None:
    assert (find_version("toy"), find_version("toy", "1")) == ("", "")
    register(places)
    assert (find_version("toy"), find_version("toy", "1"), find_version("toy", "2")) == ("1", "1", "")
    assert (find_version("toy", "challenger"), find_version("other")) == ("", "")
    assert logged_model("toy", "1").startswith("m-")


def test_the_champion_as_it_is_served(places: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="recipe: ralm-toy has no champion in the registry"):
        champion_target("toy")
    register(places)
    target = champion_target("toy")
    assert (target.source, target.recipe, target.version) == ("models:/ralm-toy@champion", "toy", "1")
    assert target.model_id == logged_model("toy", "1")
    pair = load_pair(target)
    assert pair.fingerprints == {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    assert pair.answerer.answer(["who?"], k=2)[0].passages


def test_the_same_model_with_another_index_is_not_loaded_again(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(places)
    first = load_pair(champion_target("toy"))
    monkeypatch.setattr(answer.FusionReader, "load", lambda *_, **__: pytest.fail("loaded again"))
    second = load_pair(champion_target("toy"), first)
    assert second.answerer.searcher.index is not first.answerer.searcher.index
    assert second.answerer.answer(["who?"], k=2) == first.answerer.answer(["who?"], k=2)


def test_a_champion_that_is_damaged_is_refused(places: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(places["index"], tmp_path / "index")
    register({**places, "index": str(tmp_path / "index")})
    (tmp_path / "index" / "passage_ids.parquet").unlink()
    with pytest.raises(ArtifactError, match="passage_ids.parquet"):
        champion_target("toy")
