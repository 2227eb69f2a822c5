from __future__ import annotations

import json

import pytest

from components.plan.stage import Changes, plan
from pipelines.recipes import RECIPES, recipes_json
from ralm.errors import ConfigError


def planned(recipe: str = "quickstart", **changes: object) -> dict:
    return plan(recipes=recipes_json(), recipe=recipe, changes=Changes(**changes))._asdict()


def test_without_changes_a_run_is_its_recipe() -> None:
    result = planned()
    recipe = RECIPES["quickstart"]()
    assert result["passages"] == recipe.sources.passages
    assert json.loads(result["train"])["num_steps"] == recipe.train.num_steps
    assert json.loads(result["register"])["recipe"] == "quickstart"
    assert result["Output"] == list(range(recipe.num_shards))


def test_inputs_reach_their_stages() -> None:
    result = planned(num_shards=3, num_passages=7, num_steps=9, learning_rate=0.5, seed=0, passages="x.csv")
    train, evaluate = json.loads(result["train"]), json.loads(result["evaluate"])
    assert (train["num_passages"], evaluate["num_passages"]) == (7, 7)
    assert (train["num_steps"], train["learning_rate"], train["seed"]) == (9, 0.5, 0)
    assert (result["Output"], result["num_shards"], result["passages"]) == ([0, 1, 2], 3, "x.csv")


def test_settings_win_over_inputs() -> None:
    result = planned(num_steps=9, settings='{"train": {"num_steps": 2}, "download": {"model": {}}}')
    assert json.loads(result["train"])["num_steps"] == 2


def test_an_earlier_index_decides_before_the_recipe_and_after_the_settings() -> None:
    made = {"index": {"kind": "ivf_pq", "nlist": 64}, "embed": {"dtype": "f32"}}
    result = planned(made_with=json.dumps(made), settings='{"index": {"nlist": 32}}', registered_as="mine")
    stages = {stage: json.loads(result[stage]) for stage in ("index", "embed", "register")}
    assert (stages["index"]["kind"], stages["index"]["nlist"], stages["embed"]["dtype"]) == ("ivf_pq", 32, "f32")
    assert stages["register"]["recipe"] == "mine"
    with pytest.raises(ConfigError, match="made_with: unknown stage 'x'"):
        planned(made_with='{"x": {}}')


def test_a_setting_with_free_names_takes_any() -> None:
    result = planned(settings='{"download": {"files": {"train": "t.jsonl"}}}')
    assert json.loads(result["download"])["files"] == {"train": "t.jsonl"}


def test_a_named_model_replaces_the_recipes_halves() -> None:
    result = planned("nq-base", model="bundle", questions="q")
    assert (result["model"], result["retriever"], result["reader"]) == ("bundle", "", "")
    result = planned(retriever="r", reader="s")
    assert (result["model"], result["retriever"], result["reader"]) == ("", "r", "s")
    result = planned("nq-base", model="bundle", reader="s", questions="q")
    assert (result["model"], result["retriever"], result["reader"]) == ("bundle", "", "s")


@pytest.mark.parametrize(
    ("recipe", "changes", "expected"),
    [
        ("nonsense", {}, "recipe: expected one of atlas-fever, .*, nq-base, quickstart, found 'nonsense'"),
        ("nq-base", {}, "questions: this recipe names none"),
        ("quickstart", {"settings": "{"}, "settings: no JSON"),
        ("quickstart", {"settings": '{"train": 1}'}, "expected an object of objects"),
        ("quickstart", {"settings": '{"bake": {}}'}, "unknown stage 'bake'"),
        ("quickstart", {"settings": '{"train": {"speed": 1}}'}, "train.speed: unknown setting"),
        ("quickstart", {"num_steps": -1}, "num_steps: expected a positive number, found -1"),
        ("quickstart", {"seed": -5}, "seed: expected at least 0, or -1 for that of the recipe, found -5"),
        ("quickstart", {"max_loss": -0.5}, "max_loss: expected at least 0, or -1 for that of the recipe, found -0.5"),
        # Else the gate would say so, after all passages have been encoded.
        ("quickstart", {"max_loss": 1.0}, "max_loss: expected at least 0 and less than 1, found 1.0"),
        ("quickstart", {"confidence": 95.0}, "confidence: expected more than 0.5 and less than 1, found 95.0"),
        ("quickstart", {"settings": '{"gate": {"resamples": 1}}'}, "resamples: expected at least 100, found 1"),
        ("quickstart", {"settings": '{"gate": {"seed": "x"}}'}, "seed: expected int, found x"),
    ],
)
def test_mistakes_are_named(recipe: str, changes: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        planned(recipe, **changes)


def test_the_gate_gets_what_the_form_says_and_settings_win() -> None:
    gate = json.loads(planned(max_loss=0.0, confidence=0.9)["gate"])
    assert (gate["max_loss"], gate["confidence"]) == (0.0, 0.9)
    gate = json.loads(planned(max_loss=0.2, confidence=0.9, settings='{"gate": {"max_loss": 0.1}}')["gate"])
    assert (gate["max_loss"], gate["confidence"]) == (0.1, 0.9)
    gate = json.loads(planned()["gate"])
    rule = RECIPES["quickstart"]().gate
    assert (gate["max_loss"], gate["confidence"]) == (rule.max_loss, rule.confidence)


def test_mirrors_reach_the_download() -> None:
    assert json.loads(planned(mirrors="https://a,https://b")["download"])["wiki_base_url"] == "https://a,https://b"
    assert "wiki_base_url" not in json.loads(planned()["download"])  # then the task's environment says


@pytest.mark.parametrize(("processes", "nodes", "gpus"), [(0, 0, "1"), (8, 1, "8"), (8, 2, "0")])
def test_a_train_task_has_a_gpu_for_each_process_unless_it_waits_for_a_job(
    processes: int, nodes: int, gpus: str
) -> None:
    assert planned(num_processes=processes, nodes=nodes)["train_gpus"] == gpus
