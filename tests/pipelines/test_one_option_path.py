"""A setting means and is checked the same wherever it comes from: a flag, a config file, a recipe of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.plan.stage import Changes, plan
from components.train.config import TrainConfig
from components.train.stage import train
from pipelines.recipes import recipes_json
from pipelines.runs import check_configs
from ralm.cli import build_parser, normalise_flags, parse_config
from ralm.errors import ConfigError

PLACES = ["--model=m", "--questions=q", "--trained=t"]


def of_flags(settings: dict[str, Any]) -> TrainConfig:
    flags = [
        f"--config.{name.replace('_', '-')}={json.dumps(value).strip(chr(34))}" for name, value in settings.items()
    ]
    return of_words(flags)


def of_words(words: list[str]) -> TrainConfig:
    parser = build_parser(train)
    config: TrainConfig = parser.instantiate(parser.parse_args(normalise_flags([*PLACES, *words]))).config
    return config


def of_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    changes = Changes(settings=json.dumps({"train": settings}))
    planned = plan(recipes=recipes_json(), recipe="quickstart", changes=changes)._asdict()
    check_configs(planned)
    return planned


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "pdist"},
        {"objective": "adist"},
        {"objective": "emdr2", "emdr2_level": "token"},
        {"mode": "reader_only", "closed_book": True},
        {"mode": "joint", "refresh_schedule": "0-10:5", "num_reranked": 50},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_flags_files_and_the_pipeline_give_the_same_settings(settings: dict[str, Any], tmp_path: Path) -> None:
    """Defect 8: one of two scripts did not know `pdist` and `adist`, and ignored `closed_book`."""
    (tmp_path / "train.yaml").write_text(json.dumps(settings))
    expected = TrainConfig(**settings)
    assert of_flags(settings) == expected
    assert of_words([f"--config={tmp_path / 'train.yaml'}"]) == expected
    found = parse_config(TrainConfig, of_pipeline(settings)["train"])
    assert {name: getattr(found, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "evalnormsum"}, "evalnormsum"),
        ({"closed_book": True}, "closed_book: expected false unless mode is reader_only"),
        ({"mode": "joint", "refresh_schedule": "0"}, "expected a rate of at least 1 update"),
        ({"gold_score_mode": "pdist"}, "gold_score_mode"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_both_refuse_the_same(settings: dict[str, Any], message: str) -> None:
    for give in (of_flags, of_pipeline):
        with pytest.raises(ConfigError, match=message):
            give(settings)
