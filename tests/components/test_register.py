from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components.gate.config import GateConfig
from components.gate.stage import gate
from components.register.config import RegisterConfig
from components.register.stage import register
from ralm import tracking
from ralm.artifacts.files import write_json
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.store import Contents, produce, stored_location
from ralm.errors import ArtifactError, ConfigError
from tests.evaluations import Pairs, open_registry, write_evaluation


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


@pytest.fixture
def registry(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_registry(ralm_home, monkeypatch)


def test_without_tracking_nothing_is_registered(inputs: Inputs) -> None:
    result = inputs.register(inputs.predictions(0.5))
    assert (result["version"], result["alias"], result["promoted"], result["value"]) == ("", "", False, 0.5)


def test_the_main_figure_of_the_task_decides(inputs: Inputs) -> None:
    assert inputs.register(inputs.predictions(0.5))["metric"] == "exact_match"


def test_unknown_metric_is_an_error(inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="has no number 'accuracy', but exact_match"):
        inputs.register(inputs.predictions(0.5), metric="accuracy")


def test_predictions_of_another_model_are_refused(inputs: Inputs) -> None:
    with pytest.raises(ArtifactError, match="evaluates model"):
        inputs.register(inputs.predictions(0.5, model="0" * 64))


@pytest.mark.usefixtures("registry")
def test_champion_only_by_a_better_figure_and_once_per_pair(inputs: Inputs) -> None:
    first = inputs.register(inputs.predictions(0.4))
    again = inputs.register(inputs.predictions(0.4))
    assert (first["version"], first["alias"], first["measured_against"]) == ("1", "champion", "")
    assert again == first

    from components.register.judges import by_figure
    from ralm import serving
    from ralm.registry import Registration, register_pair

    def other(name: str, value: float, questions: str = "q" * 64) -> Registration:
        pair = serving.Pair(recipe="toy", fingerprints={"model": name}, model="m", index="i", passages="p")
        tags = {serving.METRIC_TAG: f"exact_match={value!r}", serving.QUESTIONS_TAG: questions}
        return register_pair(pair, tags=tags, judge=by_figure("exact_match", value, questions))

    worse = other("worse", 0.4)
    assert (worse.version, worse.alias, worse.measured_against) == ("2", "challenger", "1")
    assert worse.reason == "exact_match 0.4000, champion 1 has 0.4000"
    elsewhere = other("elsewhere", 0.9, questions="r" * 64)
    assert (elsewhere.alias, elsewhere.reason[:45]) == ("challenger", "champion 1 was measured on other questions or")
    better = other("better", 0.6)
    assert (better.version, better.alias, better.replaced) == ("4", "champion", "1")
    pair = serving.open_pair("toy")
    assert pair is not None
    assert pair.fingerprints == {"model": "better"}
    tags = serving.versions("toy")[0].tags
    assert tags["ralm.corpus"] == open_artifact(inputs.places["passages"], "passages").fingerprint
    assert (
        tags["ralm.passage_encoder"]
        == open_artifact(inputs.places["index"], "index").manifest.details["passage_encoder"]
    )


@pytest.mark.usefixtures("registry")
def test_one_version_when_two_register_the_same_pair_at_once() -> None:
    from ralm.registry import Verdict, register_pair
    from ralm.serving import Pair

    pair = Pair(recipe="toy", fingerprints={"model": "m"}, model="m", index="i", passages="p")

    def register_one(_: int) -> str:
        return register_pair(pair, tags={}, judge=lambda _: Verdict(promote=True, reason="")).version

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(register_one, range(2))) == ["1", "1"]


@pytest.mark.usefixtures("registry")
def test_a_registered_version_answers(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, session_home: Path) -> None:
    monkeypatch.setenv("RALM_STORE_URI", str(session_home / "store"))
    inputs.register(inputs.predictions(0.4))

    import mlflow

    loaded = mlflow.pyfunc.load_model("models:/ralm-toy@champion")
    (answer,) = loaded.predict(["what is the colour of otter"], params={"k": 3})
    assert len(answer["passages"]) == 3
    assert answer["question"] == "what is the colour of otter"


WORSE, EQUAL, BETTER, BEST = ([1.0] * right + [0.0] * (40 - right) for right in (4, 20, 30, 40))


class Gated:
    """Pairs that are gated against a version and then registered."""

    def __init__(self, folder: Path) -> None:
        self.pairs = Pairs(folder)
        self.scores: dict[str, Sequence[float]] = {}

    def predictions(self, name: str) -> str:
        return self.pairs.predictions(name, self.scores[name])

    def decide(self, name: str, scores: Sequence[float], champion: str, version: str, **more: Any) -> str:
        """Gate a pair; the decision's place."""
        self.scores[name] = scores
        output = str(self.pairs.folder / f"decision-{name}")
        gate(
            champion=self.predictions(champion) if champion else "",
            challenger=self.predictions(name),
            champion_version=version,
            decision=output,
            config=GateConfig(resamples=500, max_loss=0.02),
            **more,
        )
        return output

    def register(self, name: str, decision: str = "", **config: str) -> dict[str, Any]:
        output = self.pairs.folder / "registration"
        settings = RegisterConfig(recipe="toy", **config)
        parts = {**self.pairs.parts(name), "predictions": self.predictions(name)}
        register(**parts, decision=decision, registration=str(output), config=settings)
        return json.loads((output / "registration.json").read_text())

    def add(
        self, name: str, scores: Sequence[float], champion: str = "", version: str = "", **more: Any
    ) -> dict[str, Any]:
        """Gate and register."""
        return self.register(name, self.decide(name, scores, champion, version, **more))


@pytest.fixture
def gated(tmp_path: Path, registry: None) -> Gated:
    """The first champion is there."""
    gated = Gated(tmp_path)
    first = gated.add("a", EQUAL)
    assert (first["version"], first["promoted"], first["alias"]) == ("1", True, "champion")
    return gated


def tags_of(version: str) -> dict[str, str]:
    from ralm.serving import versions

    return next(found.tags for found in versions("toy") if found.version == version)


def test_the_decision_is_what_counts(gated: Gated) -> None:
    equal = gated.add("bb", EQUAL, "a", "1")  # by the higher figure it would not be promoted
    assert (equal["version"], equal["promoted"], equal["measured_against"], equal["replaced"]) == ("2", True, "1", "1")
    assert equal["reason"].startswith("Exact match of the challenger 50.00 %, of the champion 50.00 % on 40 questions")
    worse = gated.add("ccc", WORSE, "bb", "2")
    assert (worse["alias"], worse["promoted"], worse["measured_against"]) == ("challenger", False, "2")
    assert "refused: it loses more than is allowed" in worse["reason"]


def test_the_version_tells_where_it_comes_from(gated: Gated) -> None:
    fresh = {name: write_evaluation(gated.pairs.folder / f"fresh-{name}", [1.0] * 5) for name in ("a", "b")}
    gated.add("bb", BETTER, "a", "1", fresh_champion=fresh["a"], fresh_challenger=fresh["b"])
    tags = tags_of("2")
    parts = {kind: open_artifact(place, kind) for kind, place in gated.pairs.parts("bb").items()}
    stored = {kind: stored_location(artifact.manifest) for kind, artifact in parts.items()}
    assert {name.removeprefix("ralm."): text for name, text in tags.items()} == {
        "pair": tags["ralm.pair"],
        "places": json.dumps([stored["model"], stored["index"], stored["passages"]]),
        "metric": "exact_match=0.75",
        "questions": "9" * 64,
        "model": parts["model"].fingerprint,
        "index": parts["index"].fingerprint,
        "index_uri": stored["index"],
        "corpus": parts["passages"].fingerprint,
        "passage_encoder": "e" * 64,
        "wiki": "toywiki",
        "dump_date": "20260102",
        "parent_version": "1",
        "predictions": stored_location(open_artifact(gated.predictions("bb"), "predictions").manifest),
        "fresh_predictions": stored_location(open_artifact(fresh["b"], "predictions").manifest),
        "decision": stored_location(open_artifact(str(gated.pairs.folder / "decision-bb"), "decision").manifest),
        "reason": tags["ralm.reason"],
        "measured_against": "1",
        "replaced": "1",
        **({"git_commit": tracking.git_commit()} if tracking.git_commit() else {}),
    }


def test_a_champion_that_came_up_meanwhile_is_measured_by_the_same_rule(gated: Gated) -> None:
    decided = gated.decide("bb", BETTER, "a", "1")
    gated.add("ccc", BEST, "a", "1")
    refused = gated.register("bb", decided)
    assert (refused["version"], refused["promoted"], refused["measured_against"]) == ("3", False, "2")
    assert refused["reason"].startswith(
        "decided against champion 1, but champion is 2; measured again: Exact match of the challenger 75.00 %, of the "
        "champion 100.00 % on 40 questions"
    )
    decided = gated.decide("dddd", BEST, "a", "1")
    promoted = gated.register("dddd", decided)
    assert (promoted["version"], promoted["promoted"], promoted["replaced"]) == ("4", True, "2")
    assert "measured again: Exact match of the challenger 100.00 %" in promoted["reason"]


def test_the_loss_that_was_allowed_is_allowed_again_too(gated: Gated) -> None:
    """By the higher figure this one would be refused: it is a little worse than the champion that came up."""
    from ralm.rollback import promote

    many, fewer = [1.0] * 2000, [1.0] * 1990 + [0.0] * 10
    gated.add("many", many)  # other questions than champion 1
    promote("toy", "2", because="more questions")
    decided = gated.decide("few", fewer, "many", "1")  # against a champion that is not the present one
    result = gated.register("few", decided)
    assert (result["promoted"], result["replaced"]) == (True, "2")
    assert "measured again" in result["reason"]


def test_a_champion_that_was_asked_something_else_stays(gated: Gated) -> None:
    decided = gated.decide("bb", BEST, "a", "1")
    other = gated.register("ccc", gated.decide("ccc", [1.0] * 7, "", ""))
    assert "the two cannot be compared: " in other["reason"]
    assert (other["promoted"], other["alias"]) == (False, "challenger")
    assert "expected the same questions, found 40 and 7 questions" in other["reason"]
    assert gated.register("bb", decided)["promoted"]


def test_a_champion_whose_evaluation_is_gone_stays(gated: Gated) -> None:
    decided = gated.decide("bb", BEST, "a", "1")
    gated.add("ccc", BEST, "a", "1")
    (Path(tags_of("2")["ralm.predictions"]) / "manifest.json").unlink()
    result = gated.register("bb", decided)
    assert (result["promoted"], result["version"]) == (False, "3")
    assert "the two cannot be compared: " in result["reason"]
    assert "unfinished: it has no manifest.json" in result["reason"]


def test_a_champion_without_an_evaluation_stays(gated: Gated) -> None:
    from ralm import serving
    from ralm.registry import Verdict, register_pair

    decided = gated.decide("bb", BEST, "a", "1")
    pair = serving.Pair(recipe="toy", fingerprints={"model": "old"}, model="m", index="i", passages="p")
    register_pair(pair, tags={}, judge=lambda _: Verdict(promote=True, reason="of an earlier release"))
    result = gated.register("bb", decided)
    assert result["reason"].endswith("champion 2 has no tag ralm.predictions: it was registered without an evaluation")


def test_a_decision_about_other_predictions_of_the_champion_is_taken_again(gated: Gated) -> None:
    """The version is right, but what was measured was another pair."""
    gated.scores["elsewhere"] = WORSE
    decided = gated.decide("bb", EQUAL, "elsewhere", "1")
    assert "measured again" in gated.register("bb", decided)["reason"]


def test_a_decision_about_another_challenger_is_refused(gated: Gated) -> None:
    gated.scores["bb"] = EQUAL
    decided = gated.decide("ccc", BEST, "a", "1")
    with pytest.raises(ArtifactError, match="decides on .*, but .* is "):
        gated.register("bb", decided)


def test_the_same_registration_again_changes_nothing(gated: Gated) -> None:
    decided = gated.decide("bb", BETTER, "a", "1")
    first = gated.register("bb", decided)
    before = tags_of("2")
    assert gated.register("bb", decided) == first
    assert tags_of("2") == before


def test_the_run_of_the_pipeline_is_told(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tracking.start_parent_run("toy", kfp_run_id="k1", params={})
    decided = gated.decide("bb", WORSE, "a", "1")
    with tracking.stage_run("register", parent_run_id=parent):
        gated.register("bb", decided)
    told = tracking.connect().get_run(parent).data.tags["ralm.promotion"]
    assert told.startswith("refused: ralm-toy 2: Exact match of the challenger 10.00 %")
    better = gated.decide("ccc", BEST, "a", "1")
    with tracking.stage_run("register", parent_run_id=parent):
        gated.register("ccc", better)
    told = tracking.connect().get_run(parent).data.tags["ralm.promotion"]
    assert told.startswith("promoted: ralm-toy 3: Exact match of the challenger 100.00 %")


def test_a_parent_may_be_named(gated: Gated) -> None:
    gated.scores["bb"] = BEST
    gated.register("bb", parent_version="1")
    assert tags_of("2")["ralm.parent_version"] == "1"
