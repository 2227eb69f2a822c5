"""docs/atlas.md stays true: every Atlas flag has a row, every setting and test that it names is there."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from components.plan.stage import Changes, plan
from pipelines.cli import STAGES
from pipelines.recipes import recipes_json
from pipelines.runs import check_configs

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8")
FLAGS = re.findall(
    r"\w+",
    """
name checkpoint_dir model_path per_gpu_batch_size per_gpu_embedder_batch_size local_rank main_port seed log_freq
eval_freq save_freq train_data eval_data write_results dont_write_passages load_index_path save_index_path
save_index_n_shards index_mode faiss_index_type faiss_code_size reader_model_type text_maxlength target_maxlength
n_context passages max_passages retriever_model_path retrieve_only train_retriever use_file_passages
retriever_n_context gold_score_mode closed_book temperature_score temperature_gold compute_crossattention_stats
filtering_overretrieve_ratio freeze_retriever_steps query_side_retriever_training retrieve_with_rerank
n_to_rerank_with_retrieve_with_rerank decoder_format decoder_prompt_format encoder_format retriever_format
generation_max_length generation_min_length generation_num_beams generation_length_penalty task mlm_noise_density
mlm_mean_noise_span_length min_lm_context_ratio max_lm_context_ratio min_words_per_lm_instance qa_prompt_format
multiple_choice_num_options multiple_choice_train_permutations multiple_choice_eval_permutations warmup_steps
total_steps scheduler_steps accumulation_steps dropout lr lr_retriever clip scheduler weight_decay save_optimizer
epsilon alpha beta2 refresh_index shuffle precision shard_optim shard_grads use_gradient_checkpoint_reader
use_gradient_checkpoint_retriever
""",
)
"""All options of the published Atlas code."""


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Cells of the table rows, without the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    is_rule = [set(line) <= set("|-") for line in lines]
    is_heading = [*is_rule[1:], False]
    return [row for row, *skipped in zip(cells, is_rule, is_heading, strict=True) if not any(skipped)]


def named_settings() -> list[str]:
    return sorted(set(re.findall(rf"`((?:{'|'.join(STAGES)})\.(?!py`)[a-z][\w.]*(?:=\w+)?)`", TEXT)))


def named_tests() -> list[str]:
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT)))


def config_field(setting: str) -> Any:
    """Type of a setting such as `train.task.permutations`; an `AssertionError` where a config has no such field."""
    stage, *names = setting.split(".")
    kind: Any = getattr(importlib.import_module(f"components.{stage}.config"), f"{stage.title()}Config")
    for name in names:
        assert dataclasses.is_dataclass(kind), setting
        assert name in {field.name for field in dataclasses.fields(kind)}, f"{setting}: {kind} has no {name}"
        kind = typing.get_type_hints(kind)[name]
    return kind


def test_every_flag_has_one_row_that_says_what_to_do() -> None:
    table = rows(section("Flags"))
    found = [flag for row in table for flag in re.findall(r"`--(\w+)`", row[0])]
    assert sorted(found) == sorted(FLAGS)
    for flags, here, *_ in table:
        assert "`" in here or here in ("not needed", "not yet"), flags


@pytest.mark.parametrize("setting", named_settings())
def test_every_named_setting_exists(setting: str) -> None:
    name, equals, value = setting.partition("=")
    kind = config_field(name)
    if equals:
        assert value in typing.get_args(kind), f"{name}: {value} is not among {kind}"


@pytest.mark.parametrize("test", named_tests())
def test_every_named_test_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file(), path
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test


def test_every_capability_has_a_test_or_is_not_here_yet() -> None:
    table = rows(section("What it can do"))
    assert len(table) > 60
    for row in table:
        assert len(row) == 3, row
        assert "tests/" in row[2] or row[1] == "not yet", row


def test_all_thirty_defects_have_tests() -> None:
    table = rows(section("Known defects, absent here"))
    assert [row[0] for row in table] == [str(number) for number in range(1, 31)]
    assert all(re.search(r"`tests/[\w/]+\.py::\w+`", row[3]) for row in table)


def test_the_preset_of_question_answering_is_accepted() -> None:
    (settings,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    changes = Changes(settings=settings)
    planned = plan(recipes=recipes_json(), recipe="atlas-nq-64-shot-base", changes=changes)._asdict()
    check_configs(planned)
    train = json.loads(planned["train"])
    expected = {
        "num_passages": 40,
        "mode": "query_side",
        "objective": "pdist",
        "temperature_score": 0.01,
        "temperature_gold": "auto",
        "dropout": 0.1,
        "learning_rate": 4e-5,
        "retriever_learning_rate": 4e-5,
        "schedule": "linear",
        "weight_decay": 0.01,
        "warmup_steps": 5,
        "gradient_checkpointing": True,
        "refresh_schedule": "-1",
        "precision": "bf16",
    }
    assert {name: train[name] for name in expected} == expected
    assert json.loads(planned["download"])["model"]["reader"]["target_format"] == "<extra_id_0> {target}"


def test_defaults_that_are_said_to_differ_do() -> None:
    """`OLD -> NEW` of a row with one setting: NEW is the default of now."""
    checked = 0
    for _, here, *notes in rows(section("Flags")):
        names = re.findall(r"`((?:\w+\.)+\w+)`", here)
        match = re.match(r"(?:none|[\w.-]+) -> (\w[\w.-]*)", notes[0] if notes else "")
        if len(names) == 1 and match and names[0].partition(".")[0] in STAGES:
            stage, *rest = names[0].split(".")
            value: Any = getattr(importlib.import_module(f"components.{stage}.config"), f"{stage.title()}Config")()
            for name in rest:
                value = getattr(value, name)
            wanted = match[1].rstrip(".,:")
            default = value if isinstance(value, str) else json.dumps(value)
            assert default == wanted or (not isinstance(value, str) and float(wanted) == value), (names[0], default)
            checked += 1
    assert checked > 10
