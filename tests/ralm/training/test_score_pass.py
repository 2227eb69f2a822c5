"""What the reader tells of the passages is said without dropout, and the reader learns with it before and after."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import ralm.training.learner
from tests.ralm.training.test_learner import BATCH, CONFIG, make_learner


@pytest.mark.parametrize("score_pass", ["reuse", "eval"])
@pytest.mark.parametrize("objective", ["pdist", "adist", "loop", "emdr2"])
def test_scores_are_made_without_dropout(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, objective: str, score_pass: str
) -> None:
    """The decoder's in either pass; with the second pass the encoder's too, so that the rate does not matter."""
    golds: list[torch.Tensor] = []
    original = ralm.training.learner.passage_signal

    def watch(reader: Any, *rest: Any) -> Any:
        assert not reader.model.training
        found = original(reader, *rest)
        golds.append(found.gold)
        return found

    monkeypatch.setattr(ralm.training.learner, "passage_signal", watch)
    for dropout in (0.0, 0.5):
        config = dataclasses.replace(CONFIG, objective=objective, dropout=dropout, score_pass=score_pass)
        make_learner(tiny_model, config).update(BATCH, 0)
    assert torch.allclose(golds[0], golds[1], rtol=1e-4, atol=1e-6) == (score_pass == "eval")


@pytest.mark.parametrize("score_pass", ["reuse", "eval"])
@pytest.mark.parametrize("freeze_reader", [False, True])
def test_a_frozen_reader_alone_reads_without_dropout(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, score_pass: str, freeze_reader: bool
) -> None:
    modes: list[bool] = []
    learner = make_learner(
        tiny_model,
        dataclasses.replace(CONFIG, score_pass=score_pass, freeze_reader=freeze_reader, micro_batch_size=1),
    )
    original = learner.reader.fusion_logits

    def watch(*given: Any) -> Any:
        modes.append(learner.reader.model.training)
        return original(*given)

    monkeypatch.setattr(learner.reader, "fusion_logits", watch)
    learner.update(BATCH, 0)
    assert modes == [not freeze_reader] * 2, "the second micro-batch reads as the first"
    assert not learner.reader.model.training


def test_the_tokens_of_decoder_prompts_do_not_weigh(tiny_model: str) -> None:
    """The loss of a batch is the mean over the tokens learnt, however long the prompts of its parts are."""
    learner = make_learner(tiny_model, dataclasses.replace(CONFIG, micro_batch_size=1))
    reader = learner.reader
    reader.config = dataclasses.replace(reader.config, target_prompt_format="{question} is")
    label_BT = reader.tokenize_targets(BATCH.targets, BATCH.questions)
    with torch.no_grad():
        inputs = reader.tokenize_inputs(BATCH.questions, [passages[:2] for passages in BATCH.passages])
        logit_BTV = reader.fusion_logits(reader.encode(inputs), label_BT)
    is_learnt_BT = label_BT >= 0
    expected = torch.nn.functional.cross_entropy(logit_BTV[is_learnt_BT], label_BT[is_learnt_BT]).item()
    assert learner.update(BATCH, 0)["reader_loss"] == pytest.approx(expected, rel=1e-4)
