from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.register.config import RegisterConfig
from components.register.stage import register
from ralm.artifacts.files import write_json
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.store import Contents, produce
from ralm.errors import ArtifactError, ConfigError, RalmError


class Inputs:
    """The toy pair, with predictions of any figure."""

    def __init__(self, folder: Path, model: str, index: str, passages: str) -> None:
        self.folder, self.places = folder, {"model": model, "index": index, "passages": passages}

    def predictions(self, exact_match: float, *, questions: str = "q" * 64, **changed: str) -> str:
        fingerprints = {kind: open_artifact(place, kind).fingerprint for kind, place in self.places.items()}

        def build(folder: Path) -> Contents:
            write_json(folder / "metrics.json", {"exact_match": exact_match})
            return Contents(details={"task": "qa"})

        output = str(self.folder / f"predictions-{exact_match}-{questions[:2]}")
        inputs = {**fingerprints, "questions": questions, **changed}
        produce(
            output,
            kind="predictions",
            stage="toy",
            stage_version=1,
            inputs=inputs,
            config={"v": exact_match},
            build=build,
        )
        return output

    def register(self, predictions: str, **config: str) -> dict:
        output = self.folder / "registration"
        settings = RegisterConfig(recipe="toy", **config)
        register(**self.places, predictions=predictions, registration=str(output), config=settings)
        return json.loads((output / "registration.json").read_text())


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: str, toy_index: str, toy_passages: str) -> Inputs:
    return Inputs(tmp_path, tiny_model, toy_index, toy_passages)


def test_without_tracking_nothing_is_registered(inputs: Inputs) -> None:
    result = inputs.register(inputs.predictions(0.5))
    assert (result["version"], result["alias"], result["value"]) == ("", "", 0.5)


def test_the_main_figure_of_the_task_decides(inputs: Inputs) -> None:
    assert inputs.register(inputs.predictions(0.5))["metric"] == "exact_match"


def test_unknown_metric_is_an_error(inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="has no number 'accuracy', but exact_match"):
        inputs.register(inputs.predictions(0.5), metric="accuracy")


def test_predictions_of_another_model_are_refused(inputs: Inputs) -> None:
    with pytest.raises(ArtifactError, match="evaluates model"):
        inputs.register(inputs.predictions(0.5, model="0" * 64))


def test_champion_only_by_a_better_figure_and_once_per_pair(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, ralm_home: Path
) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    first = inputs.register(inputs.predictions(0.4))
    again = inputs.register(inputs.predictions(0.4))
    assert (first["version"], first["alias"], first["measured_against"]) == ("1", "champion", "")
    assert (again["version"], again["alias"]) == ("1", "champion")

    from ralm import tracking
    from ralm.serving import Pair, open_pair, promote, register_pair

    def other(name: str, value: float, questions: str = "q" * 64) -> object:
        places = {"model": "m", "index": "i", "passages": "p"}
        pair = Pair(recipe="toy", fingerprints={"model": name}, **places)
        return register_pair(pair, metric="exact_match", value=value, questions=questions, tags={})

    worse = other("worse", 0.4)
    assert (worse.version, worse.alias, worse.measured_against) == ("2", "challenger", "1")
    assert other("elsewhere", 0.9, questions="r" * 64).alias == "challenger"
    better = other("better", 0.6)
    assert (better.version, better.alias, better.measured_against) == ("4", "champion", "1")
    client = tracking.connect()
    with pytest.raises(RalmError, match="measured against champion 1, but the champion is now 4"):
        promote(client, "ralm-toy", "2", "champion", measured_against="1")
    pair = open_pair("toy")
    assert pair is not None
    assert pair.fingerprints == {"model": "better"}
    assert client.get_model_version("ralm-toy", "1").tags["ralm.corpus"]


def test_one_version_when_two_register_the_same_pair_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    from ralm import tracking
    from ralm.serving import Pair, register_pair

    tracking.connect()
    pair = Pair(recipe="toy", fingerprints={"model": "m"}, model="m", index="i", passages="p")

    def register_one(_: int) -> str:
        return register_pair(pair, metric="exact_match", value=0.5, questions="q", tags={}).version

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(register_one, range(2))) == ["1", "1"]


def test_a_registered_version_answers(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, session_home: Path) -> None:
    monkeypatch.setenv("RALM_TRACKING", "on")
    monkeypatch.setenv("RALM_STORE_URI", str(session_home / "store"))
    inputs.register(inputs.predictions(0.4))

    import mlflow

    loaded = mlflow.pyfunc.load_model("models:/ralm-toy@champion")
    (text,) = loaded.predict(["what is the colour of otter"], params={"k": 3})
    answer = json.loads(text)
    assert len(answer["passages"]) == 3
    assert answer["question"] == "what is the colour of otter"
