"""Pairs of model and index in the MLflow registry, and the code that serves one (MLflow "models from code").

A registered version holds no weights: one JSON file says where model, index and passages are, and their fingerprints.
Loading a version opens these places and refuses what is no longer the same. MLflow runs this very file to load one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from mlflow.tracking import MlflowClient

from ralm import tracking
from ralm.artifacts.files import Location, ralm_home, read_json, write_json
from ralm.artifacts.lock import only_one
from ralm.artifacts.manifest import read_artifact
from ralm.errors import ArtifactError, ConfigError, RalmError

CHAMPION = "champion"
CHALLENGER = "challenger"
PAIR_TAG = "ralm.pair"
METRIC_TAG = "ralm.metric"
QUESTIONS_TAG = "ralm.questions"
MEASURED_TAG = "ralm.measured_against"
PLACES_TAG = "ralm.places"
EXAMPLE = ["Who wrote Atlas Shrugged?"]
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
        return f"ralm-{self.recipe}"

    @property
    def places(self) -> str:
        """The three places as a JSON list."""
        return json.dumps([self.model, self.index, self.passages])

    def check(self) -> None:
        """Compare the artifacts that are there with the fingerprints.

        Raises:
            ArtifactError: one is missing, or is another one now.
        """
        for kind, expected in self.fingerprints.items():
            found = read_artifact(getattr(self, kind)).fingerprint
            if found != expected:
                raise ArtifactError(f"{getattr(self, kind)}: {kind} is {found}, registered was {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registration:
    """What the registry says about a pair."""

    name: str
    version: str
    alias: str
    """champion or challenger."""
    measured_against: str
    """Version of the champion it was compared with; empty where there was none."""
    reason: str


class RalmModel(PythonModel):  # type: ignore[misc]
    """Answers questions with a registered pair; opens it on the first question."""

    def load_context(self, context: Any) -> None:
        """Read the references; the artifacts behind them are checked now and loaded on the first question."""
        self._pair = Pair(**read_json(context.artifacts["pair"]))
        self._answerer: Any = None

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """One JSON text for each question: answer, its log-probability, and the passages with their scores."""
        from ralm.answer import Answerer

        if self._answerer is None:
            self._pair.check()
            pair = self._pair
            self._answerer = Answerer(model=pair.model, index=pair.index, passages=pair.passages)
        k = int((params or {}).get("k", 0))
        return [json.dumps(answer.to_json(), ensure_ascii=False) for answer in self._answerer.answer(model_input, k=k)]


def register_pair(pair: Pair, *, metric: str, value: float, questions: str, tags: dict[str, str]) -> Registration:
    """Register a pair once, and make it the champion if its figure is higher than the present champion's.

    Args:
        pair: what is registered; a pair that is registered already keeps its version.
        metric: name of the figure that decides.
        value: the pair's figure.
        questions: fingerprint of the questions it was measured on; figures on others are not compared.
        tags: more facts for the version.

    Raises:
        RalmError: another champion came up between the comparison and the promotion; run the stage again.
    """
    with only_one(ralm_home() / "locks" / f"register-{pair.name}.lock", f"registering a version of {pair.name}"):
        return _register(pair, metric, value, questions, tags)


def _register(pair: Pair, metric: str, value: float, questions: str, tags: dict[str, str]) -> Registration:
    client = tracking.connect()
    known = _find_version(client, pair)
    facts = {
        **tags,
        PAIR_TAG: pair.fingerprint,
        METRIC_TAG: f"{metric}={value!r}",
        QUESTIONS_TAG: questions,
        PLACES_TAG: pair.places,
    }
    version = known or _log_version(pair)
    for key, text in facts.items():
        client.set_model_version_tag(pair.name, version, key, text)
    champion = _version_of(client, pair.name, CHAMPION)
    wins, reason = _beats(client, pair.name, champion, version, metric, value, questions)
    against = "" if champion == version else champion
    if not known or against:
        client.set_model_version_tag(pair.name, version, MEASURED_TAG, against)
    alias = CHAMPION if wins else CHALLENGER
    if champion != version:
        promote(client, pair.name, version, alias, measured_against=champion)
    logger.info("registered %s version %s as %s: %s", pair.name, version, alias, reason)
    return Registration(name=pair.name, version=version, alias=alias, measured_against=against, reason=reason)


def promote(client: MlflowClient, name: str, version: str, alias: str, *, measured_against: str) -> None:
    """Move an alias to a version, if the champion is still the one the version was measured against.

    Raises:
        RalmError: it is not.
    """
    champion = _version_of(client, name, CHAMPION)
    if champion != measured_against:
        raise RalmError(
            f"{name}: version {version} was measured against champion {measured_against or 'none'}, but the champion "
            f"is now {champion or 'none'}; register again"
        )
    client.set_registered_model_alias(name, alias, version)
    if alias == CHAMPION and _version_of(client, name, CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)


def _beats(
    client: MlflowClient, name: str, champion: str, version: str, metric: str, value: float, questions: str
) -> tuple[bool, str]:
    """Whether a version becomes (or stays) champion, and why."""
    if not champion:
        return True, "the first version"
    if champion == version:
        return True, "it is the champion already"
    tags = client.get_model_version(name, champion).tags
    measured, _, text = tags.get(METRIC_TAG, "").partition("=")
    if measured != metric or tags.get(QUESTIONS_TAG) != questions:
        return False, f"champion {champion} was measured on other questions or by another metric"
    best = float(text)
    return value > best, f"{metric} {value:.4f}, champion {champion} has {best:.4f}"


def _log_version(pair: Pair) -> str:
    """Log the model and register it; inside a stage's run, else in a run of its own."""
    with TemporaryDirectory() as folder:
        reference = Path(folder) / "pair.json"
        write_json(reference, dataclasses.asdict(pair))
        info = mlflow.pyfunc.log_model(
            name="ralm",
            python_model=str(Path(__file__).resolve()),
            artifacts={"pair": str(reference)},
            input_example=(EXAMPLE, {"k": 0}),
            pip_requirements=["ralm-pipelines[cpu]"],
            registered_model_name=pair.name,
            metadata={"pair": pair.fingerprint},
        )
    return str(info.registered_model_version)


def _find_version(client: MlflowClient, pair: Pair) -> str:
    try:
        versions = client.search_model_versions(f"name = '{pair.name}' and tags.`{PAIR_TAG}` = '{pair.fingerprint}'")
    except MlflowException:
        return ""
    return min((str(version.version) for version in versions), key=int, default="")


def _version_of(client: MlflowClient, name: str, alias: str) -> str:
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        return ""


def open_pair(recipe: str, alias: str = CHAMPION) -> Pair | None:
    """The pair behind `models:/ralm-<recipe>@<alias>`, or None where the registry has none.

    Raises:
        ConfigError: the version's reference is damaged.
    """
    client = tracking.connect()
    name = f"ralm-{recipe}"
    version = _version_of(client, name, alias)
    if not version:
        return None
    with TemporaryDirectory() as folder:
        uri = f"models:/{name}/{version}"
        path = mlflow.artifacts.download_artifacts(f"{uri}/artifacts/pair.json", dst_path=folder)
        try:
            return Pair(**read_json(path))
        except TypeError as error:
            raise ConfigError(f"{uri}: no reference to model and index: {error}") from error


def registered_places() -> list[Location]:
    """Places of models, indexes and passages that any registered version refers to."""
    client = tracking.connect()
    places: set[Location] = set()
    for model in client.search_registered_models("name LIKE 'ralm-%'"):
        for version in client.search_model_versions(f"name = '{model.name}'"):
            places.update(json.loads(version.tags.get(PLACES_TAG, "[]")))
    return sorted(places)


mlflow.models.set_model(RalmModel())
