"""Registered pairs of model and index: finding them, and the code that serves one (MLflow "models from code").

A registered version holds no weights: one JSON file says where model, index and passages are, and their fingerprints.
Loading a version opens these places and refuses what is no longer the same. MLflow runs this very file to load one.
What writes to the registry is in `registry.py` and `rollback.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import SpanStatusCode, SpanType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.tracing.constant import TraceMetadataKey
from mlflow.tracking import MlflowClient
from pydantic import BaseModel

from ralm import tracking
from ralm.artifacts.files import Location, read_json
from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError, ConfigError, RalmError

if TYPE_CHECKING:
    from ralm.service.batching import Done
    from ralm.service.traces import TracedRequest

PREFIX: Final = "ralm-"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PAIR_TAG: Final = "ralm.pair"
PLACES_TAG: Final = "ralm.places"
METRIC_TAG: Final = "ralm.metric"
QUESTIONS_TAG: Final = "ralm.questions"
PREDICTIONS_TAG: Final = "ralm.predictions"
FRESH_TAG: Final = "ralm.fresh_predictions"
DECISION_TAG: Final = "ralm.decision"
MODEL_TAG: Final = "ralm.model"
INDEX_TAG: Final = "ralm.index"
INDEX_PLACE_TAG: Final = "ralm.index_uri"
PARENT_TAG: Final = "ralm.parent_version"
"""The version whose model was given another index."""
DUMP_TAG: Final = "ralm.dump_date"
MEASURED_TAG: Final = "ralm.measured_against"
"""The champion that a version was compared with last; empty where there was none."""
REPLACED_TAG: Final = "ralm.replaced"
"""The champion whose place a version took; empty where there was none."""
REASON_TAG: Final = "ralm.reason"
"""Why a version was promoted or refused."""
ROLLED_BACK_TAG: Final = "ralm.rolled_back"
"""When and why a version lost the champion's place by hand; not empty: only a person promotes it again."""
RESTORED_TAG: Final = "ralm.restored"
"""When and why a version got the champion's place back by hand."""
RETIRED_TAG: Final = "ralm.retired"
"""When a version's artifacts were given up; it cannot answer any more."""
PLACE_TAGS: Final = (PREDICTIONS_TAG, FRESH_TAG, DECISION_TAG)
PAGE = 1000
SERVER_MODULE: Final = "mlflow.pyfunc.scoring_server.app"
"""Imported in MLflow's own server only; its variable that says so is set while a model is logged, too."""
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A model with an index of passages: places in the store, and the fingerprints of what has to be there."""

    recipe: str
    model: Location
    index: Location
    passages: Location
    fingerprints: dict[str, str]
    """Of model, index and passages."""

    @property
    def fingerprint(self) -> str:
        """Identity of the pair (64 hex digits); places do not count."""
        return hashlib.sha256(json.dumps(self.fingerprints, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return model_name(self.recipe)

    @property
    def places(self) -> str:
        """The three places as a JSON list."""
        return json.dumps([self.model, self.index, self.passages])

    def check(self) -> None:
        """Compare what is there with what was registered.

        Raises:
            ArtifactError: a part is missing, damaged, or another one now; or the index is of another encoder.
        """
        opened = {kind: open_artifact(getattr(self, kind), kind) for kind in self.fingerprints}
        for kind, artifact in opened.items():
            expected = self.fingerprints[kind]
            if artifact.fingerprint != expected:
                raise ArtifactError(f"{artifact.location}: {kind} is {artifact.fingerprint}, registered was {expected}")
        if {"model", "index"} <= opened.keys():
            encoder = opened["model"].manifest.details["fingerprints"]["passage_encoder"]
            found = opened["index"].manifest.details["passage_encoder"]
            if found != encoder:
                raise ArtifactError(f"{self.index}: made by passage encoder {found}, but {self.model} has {encoder}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version in the registry."""

    version: str
    alias: str
    """champion, challenger, or empty."""
    tags: dict[str, str]
    created_at: str = ""
    """UTC, `2026-01-31T12:00:00Z`."""


class ReadPassage(BaseModel):
    """A passage of an answer, for the signature of the registered model."""

    passage_id: str
    score: float
    title: str
    section: str
    text: str
    source_id: str


class GivenAnswer(BaseModel):
    """An answer, for the signature of the registered model."""

    question: str
    answer: str
    log_probability: float
    passages: list[ReadPassage]


class RalmModel(PythonModel):  # type: ignore[misc]
    """Answers questions with a registered pair; opens it on the first question."""

    def load_context(self, context: Any) -> None:
        """Read the references and check the artifacts behind them; these are loaded on the first question."""
        self._pair = Pair(**read_json(context.artifacts["pair"]))
        self._pair.check()
        self._answerer: Any = None
        self._traces: Any = None
        self._one_at_a_time = threading.Lock()

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[GivenAnswer]:
        """For each question: answer, its log-probability, and the passages with their scores, as `ralm ask --json`.

        Args:
            context: of MLflow.
            model_input: questions.
            params: `k`, passages for each question; 0: as many as the model was trained with.

        Raises:
            MlflowException: a question or `k` makes no sense, or the pair does not answer; without internals, since
                MLflow's server sends it to the client.
        """
        k = int((params or {}).get("k", 0))
        started_ns = time.time_ns()
        try:
            with self._one_at_a_time:  # tokenizers and models are not made for several threads
                answers = self._answer(model_input, k)
        except ConfigError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except Exception as error:
            logger.exception("a request of %d questions failed", len(model_input))
            message = "the model could not answer; the server's log says why"
            raise MlflowException(message, error_code=INTERNAL_ERROR) from error
        if self._traces is not None:
            self._traces.put(self._traced(model_input, k, answers, started_ns))
        return [cast(GivenAnswer, done.answer.to_json()) for done in answers]  # MLflow writes plain values as JSON

    def _answer(self, questions: list[str], k: int) -> list[Done]:
        from ralm.answer import Answerer
        from ralm.service.batching import answer_together

        if k < 0:
            raise ConfigError(f"k: expected 0 or more, found {k}")
        if not questions or not all(question.strip() for question in questions):
            raise ConfigError("inputs: expected questions, found none or an empty one")
        if self._answerer is None:
            self._pair.check()
            pair = self._pair
            self._answerer = Answerer(model=pair.model, index=pair.index, passages=pair.passages)
            self._traces = _traces_of_server()
        return answer_together(self._answerer, questions, k or self._answerer.num_passages)

    def _traced(self, questions: list[str], k: int, answers: list[Done], started_ns: int) -> TracedRequest:
        from ralm.service.traces import TracedRequest

        return TracedRequest(
            questions=questions,
            k=k or self._answerer.num_passages,
            answers=answers,
            facts={"recipe": self._pair.recipe, **self._pair.fingerprints},
            started_ns=started_ns,
            ended_ns=time.time_ns(),
        )


def _traces_of_server() -> Any:
    """Where MLflow's server notes requests; None outside of it, as where a model is logged or tried."""
    from ralm.service.traces import Traces, are_wanted

    return Traces(is_on=True) if SERVER_MODULE in sys.modules and are_wanted("auto") else None


def record_trace(traced: TracedRequest) -> None:
    """Write the trace of a request to MLflow: a chain with a retriever and a reader span for each question.

    Documents are as MLflow's retriever spans have them, so that its page shows them and its judges can read them.
    """
    facts = {f"ralm.{name}": text for name, text in traced.facts.items() if text}
    if traced.model_id:
        facts[TraceMetadataKey.MODEL_ID] = traced.model_id
    root = mlflow.start_span_no_context(
        "answer",
        span_type=SpanType.CHAIN,
        inputs={"inputs": list(traced.questions), "params": {"k": traced.k}},
        metadata=facts,
        start_time_ns=traced.started_ns,
    )
    for done in traced.answers:
        question, found = done.answer.question, [hit.to_json() for hit in done.answer.passages]
        retrieve = mlflow.start_span_no_context(
            "retrieve",
            span_type=SpanType.RETRIEVER,
            parent_span=root,
            inputs={"question": question, "k": traced.k},
            start_time_ns=done.started_ns,
        )
        retrieve.set_attribute("questions_in_batch", done.num_batch)
        documents = [
            {"page_content": passage.pop("text"), "id": passage["passage_id"], "metadata": passage} for passage in found
        ]
        retrieve.end(outputs=documents, end_time_ns=done.found_ns)
        read = mlflow.start_span_no_context(
            "read",
            span_type=SpanType.LLM,
            parent_span=root,
            inputs={"question": question, "passage_ids": [passage["passage_id"] for passage in found]},
            start_time_ns=done.found_ns,
        )
        read.set_attributes({"candidates": done.answer.num_candidates, "questions_in_batch": done.num_batch})
        outputs = {"answer": done.answer.text, "log_probability": done.answer.log_probability}
        read.end(outputs=outputs, end_time_ns=done.ended_ns)
    root.end(
        outputs={"predictions": [done.answer.text for done in traced.answers]} if not traced.error else traced.error,
        status=SpanStatusCode.ERROR if traced.error else SpanStatusCode.OK,
        end_time_ns=traced.ended_ns,
    )


def model_name(recipe: str) -> str:
    """Name of a recipe's registered model.

    Raises:
        ConfigError: no name of a recipe.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe):
        raise ConfigError(f"recipe: expected letters, digits, dots and dashes, found {recipe!r}")
    return f"{PREFIX}{recipe}"


@contextlib.contextmanager
def asking_registry() -> Iterator[MlflowClient]:
    """A connected client; what MLflow refuses inside is told in one sentence.

    Raises:
        ConfigError: the server does not let this user in, or not do this.
        RalmError: it cannot be reached, or anything else went wrong there.
    """
    try:
        yield tracking.connect()
    except MlflowException as error:
        uri = tracking.without_password(tracking.tracking_uri())
        status = error.get_http_status_code()
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urlsplit(tracking.tracking_uri()).username or ""
        if status == 401:
            hint = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise ConfigError(f"MLflow at {uri} does not let user {user!r} in; {hint}") from error
        if status == 403:
            raise ConfigError(
                f"MLflow at {uri}: user {user!r} may not do this: {tracking.first_line(error)}"
            ) from error
        raise RalmError(f"MLflow at {uri}: {tracking.first_line(error)}") from error


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Versions of a registered model by alias; none where there is no such model."""
    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def search_versions(client: MlflowClient, condition: str) -> list[ModelVersion]:
    """All versions that fulfil a condition, page by page."""
    found = client.search_model_versions(condition, max_results=PAGE)
    versions = list(found)
    while found.token:
        found = client.search_model_versions(condition, max_results=PAGE, page_token=found.token)
        versions += found
    return versions


def read_version(version: ModelVersion, aliases: Mapping[str, str]) -> RegisteredVersion:
    """A version as this project sees it; a champion that is also the challenger is the champion."""
    number = str(version.version)
    alias = next((alias for alias in (CHAMPION, CHALLENGER) if aliases.get(alias) == number), "")
    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(version.creation_timestamp / 1000))
    return RegisteredVersion(version=number, alias=alias, tags=dict(version.tags), created_at=created_at)


def versions(recipe: str) -> list[RegisteredVersion]:
    """The versions of a recipe, the oldest first; none where it has no registered model.

    Raises:
        ConfigError: MLflow refuses.
        RalmError: MLflow cannot be reached.
    """
    name = model_name(recipe)
    with asking_registry() as client:
        aliases = aliases_of(client, name)
        found = [read_version(version, aliases) for version in search_versions(client, f"name = '{name}'")]
    return sorted(found, key=lambda version: int(version.version))


def recipes() -> list[str]:
    """Recipes that have a version."""
    with asking_registry() as client:
        found = {version.name for version in search_versions(client, f"name LIKE '{PREFIX}%'")}
    return sorted(name.removeprefix(PREFIX) for name in found)


def find_version(recipe: str, version: str = CHAMPION) -> str:
    """The number of a version by its alias or number; empty where the registry has none.

    Raises:
        ConfigError: MLflow refuses.
        RalmError: MLflow cannot be reached.
    """
    name = model_name(recipe)
    with asking_registry() as client:
        if not version.isdecimal():
            return aliases_of(client, name).get(version, "")
        is_known = any(str(found.version) == version for found in search_versions(client, f"name = '{name}'"))
        return version if is_known else ""


def open_pair(recipe: str, version: str = CHAMPION) -> Pair | None:
    """The pair behind `models:/ralm-<recipe>@<alias>`, or None where the registry has none.

    Args:
        recipe: its name.
        version: an alias, or the number of a version.

    Raises:
        ConfigError: the version's reference is damaged, or MLflow refuses.
        RalmError: MLflow cannot be reached.
    """
    number = find_version(recipe, version)
    if not number:
        return None
    uri = f"models:/{model_name(recipe)}/{number}"
    with asking_registry(), TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"{uri}/artifacts/pair.json", dst_path=folder)
        try:
            return Pair(**read_json(path))
        except TypeError as error:
            raise ConfigError(f"{uri}: no reference to model and index: {error}") from error


def logged_model(recipe: str, version: str) -> str:
    """Id of MLflow's logged model behind a version; empty where there is none."""
    with asking_registry() as client:
        source = client.get_model_version(model_name(recipe), version).source or ""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else ""


def registered_places(without: Collection[tuple[str, str]] = ()) -> list[Location]:
    """Places of what the registered versions refer to: model, index, passages, evaluations and decision.

    Args:
        without: (name, version) of versions that do not count, beside those that are retired.
    """
    places: set[Location] = set()
    with asking_registry() as client:
        for version in search_versions(client, f"name LIKE '{PREFIX}%'"):
            if version.tags.get(RETIRED_TAG) or (version.name, str(version.version)) in without:
                continue
            places.update(json.loads(version.tags.get(PLACES_TAG, "[]")))
            places.update(version.tags[tag] for tag in PLACE_TAGS if version.tags.get(tag))
    return sorted(places)


def tag_version(name: str, version: str, key: str, value: str) -> None:
    """Set one tag of a version."""
    with asking_registry() as client:
        client.set_model_version_tag(name, version, key, value)


mlflow.models.set_model(RalmModel())
