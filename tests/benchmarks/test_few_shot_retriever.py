"""The weakened encoder of the few-shot experiments, and their tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.few_shot import freshness, retriever
from benchmarks.few_shot.retriever import OBJECTIVES, cut_encoder
from benchmarks.few_shot.tables import markdown
from benchmarks.few_shot.workspace import Workspace
from components.train.config import TrainConfig
from ralm.pretrained import load_weights


def test_a_cut_encoder_ends_with_the_state_of_its_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    whole = BertModel(config, add_pooling_layer=False).eval()
    whole.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (tmp_path / "whole" / name).write_text(name)
    folder = Path(cut_encoder(tmp_path / "whole", tmp_path / "cut", num_layers=2))
    assert not (folder / "modules.json").exists()  # nothing says how to pool: the experiment does
    assert (folder / "vocab.txt").read_text() == "vocab.txt"
    settings = BertConfig(**json.loads((folder / "config.json").read_text()))
    cut = load_weights(BertModel, folder, config=settings, dtype=torch.float32, add_pooling_layer=False).eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        expected = whole(ids, output_hidden_states=True).hidden_states
        found = cut(ids).last_hidden_state
    assert torch.equal(found, expected[2])
    assert not torch.equal(found, expected[3])


def test_every_objective_is_compared_with_a_frozen_reader() -> None:
    assert set(OBJECTIVES) == {"pdist", "emdr2", "adist", "loop"}
    for name, config in OBJECTIVES.items():
        assert (config.objective, config.freeze_reader, config.mode) == (name, True, "joint")


@pytest.mark.parametrize("experiment", ["retriever", "freshness"])
def test_every_setting_is_run_with_every_seed(experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[tuple[str, TrainConfig]] = []

    def learn(space: Workspace, name: str, *, config: TrainConfig, **others: str) -> dict[str, float]:
        done.append((name, config))
        return {"seed": config.seed}

    monkeypatch.setattr(retriever, "learn", learn)
    monkeypatch.setattr(Workspace, "recall", lambda *_, **__: {"seed": -1})
    space, places = Workspace(tmp_path, "passages", "questions"), {"model": "model", "index": "index", "split": "dev"}
    if experiment == "retriever":
        runs = retriever.compare(space, objectives=["pdist", "loop"], seeds=[0, 3], **places)
        assert list(runs) == ["frozen", "pdist", "loop"]
        assert [config.objective for _, config in done] == ["pdist", "pdist", "loop", "loop"]
    else:
        runs = freshness.compare(space, seeds=[0, 3], **places)
        assert list(runs) == list(freshness.MODES)
        assert [config.mode for _, config in done] == ["query_side"] * 2 + ["joint"] * 6
    assert all([run["seed"] for run in found] in ([-1], [0, 3]) for found in runs.values())
    assert len({name for name, _ in done}) == len(done)


def test_a_table_shows_means_and_single_values() -> None:
    table = markdown({"one": [{"x": 0.5}], "two": [{"x": 0.25}, {"x": 0.75}], "none": [{}]}, ["x"], digits=2)
    assert table.splitlines()[2:] == ["| one | 0.50 |", "| two | 0.50 (0.25, 0.75) |", "| none | - |"]
