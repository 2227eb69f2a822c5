"""Every recipe in the compiled pipeline is a complete run whose settings fit; those of Atlas are the published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from components.plan.stage import Changes, plan
from pipelines.compile import compiled_file
from pipelines.recipes import RECIPES, recipe_plain
from pipelines.runs import check_configs
from ralm.errors import ConfigError


@pytest.fixture(scope="module")
def compiled_recipes() -> str:
    """What the compiled pipeline hands to its plan task."""
    graph = yaml.safe_load(compiled_file("local").read_text(encoding="utf-8"))
    (body,) = [part for name, part in graph["components"].items() if name.startswith("comp-exit-handler")]
    inputs = body["dag"]["tasks"]["plan-op"]["inputs"]["parameters"]
    return str(inputs["recipes"]["runtimeValue"]["constant"])


def planned(recipes: str, recipe: str) -> dict[str, Any]:
    changes = Changes(questions="" if RECIPES[recipe]().sources.questions else "questions/")
    return plan(recipes=recipes, recipe=recipe, changes=changes)._asdict()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_compiled_recipe_is_the_whole_recipe(compiled_recipes: str, recipe: str) -> None:
    found = planned(compiled_recipes, recipe)
    check_configs(found)
    whole = recipe_plain(RECIPES[recipe]())
    for stage in ("download", "embed", "index", "train", "evaluate", "report"):
        assert json.loads(found[stage]) == json.loads(json.dumps(whole[stage])), stage
    assert json.loads(found["register"])["recipe"] == recipe
    assert found["num_shards"] == whole["num_shards"]
    assert {name: found[name] for name in ("passages", "model")} == {
        name: whole["sources"][name] for name in ("passages", "model")
    }


def test_an_unknown_recipe_is_told_the_known_ones(compiled_recipes: str) -> None:
    with pytest.raises(ConfigError, match="expected one of atlas-fever, "):
        plan(recipes=compiled_recipes, recipe="atlas-nq", changes=Changes())


PUBLISHED = [
    # recipe, batch, updates, warm-up, rate, retriever's rate, schedule, tau, K, input, target, refresh, mode
    ("nq-64-shot-large", 64, 30, 5, 4e-5, 4e-5, "linear", 0.01, 40, 512, 16, "-1", "query_side"),
    ("nq-full-base", 64, 10000, 100, 4e-5, 4e-5, "cosine", 0.01, 40, 512, 16, "0-1000:500,1000-10000:2000", "joint"),
    ("nq-full-xxl", 64, 5000, 100, 4e-5, 4e-5, "cosine", 0.01, 40, 512, 16, "0-1000:500,1000-10000:2000", "joint"),
    ("templama", 64, 100, 20, 4e-5, 4e-5, "linear", 0.01, 20, 512, 16, "-1", "query_side"),
    ("mmlu-5-shot", 8, 16, 4, 5e-5, 1e-5, "linear", 0.1, 30, 512, 16, "-1", "query_side"),
    ("mmlu-5-shot-multi", 64, 250, 25, 5e-5, 1e-5, "linear", 0.1, 30, 512, 16, "-1", "query_side"),
    ("mmlu-full", 64, 2000, 50, 5e-5, 1e-5, "linear", 0.1, 30, 512, 16, "-1", "query_side"),
    ("pretrain-mlm", 128, 10000, 1000, 1e-4, 1e-5, "linear", 0.01, 20, 384, 64, "1000", "joint"),
    ("pretrain-lm", 128, 10000, 1000, 1e-4, 1e-5, "linear", 0.01, 20, 384, 64, "1000", "joint"),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_atlas_settings_are_the_published_ones(compiled_recipes: str, row: tuple[Any, ...]) -> None:
    found = planned(compiled_recipes, f"atlas-{row[0]}")
    train, reader = json.loads(found["train"]), json.loads(found["download"])["model"]["reader"]
    names = ("batch_size", "num_steps", "warmup_steps", "learning_rate", "retriever_learning_rate", "schedule")
    settings = [train[name] for name in (*names, "temperature_score", "num_passages")]
    retriever = json.loads(found["download"])["model"]["retriever"]
    assert {retriever["max_passage_tokens"], retriever["max_question_tokens"]} == {row[9]}
    assert [*settings, reader["max_input_tokens"], reader["max_target_tokens"]] == list(row[1:11])
    assert [train["refresh_schedule"], train["mode"]] == list(row[11:])
    common = {"objective": "pdist", "reduction": "elementmean", "weight_decay": 0.01, "dropout": 0.1, "clip_norm": 1.0}
    assert {name: train[name] for name in common} == common
    assert reader["target_format"] == "<extra_id_0> {target}"


def test_pretraining_reranks_and_splits_as_published(compiled_recipes: str) -> None:
    train = json.loads(planned(compiled_recipes, "atlas-pretrain-lm")["train"])
    assert (train["num_reranked"], train["task"]["min_words"]) == (100, 10)
    assert (train["task"]["lm_min_context_ratio"], train["task"]["lm_max_context_ratio"]) == (0.25, 0.75)


def test_templama_asks_the_bare_question_of_both_halves(compiled_recipes: str) -> None:
    model = json.loads(planned(compiled_recipes, "atlas-templama")["download"])["model"]
    assert {model[half]["question_format"] for half in ("reader", "retriever")} == {"{question}"}
