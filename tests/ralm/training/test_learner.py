"""One update: options that must not change the losses do not, and dropout reaches every layer."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention

from ralm.errors import ConfigError
from ralm.model import open_model
from ralm.reader.fusion import FusionReader
from ralm.retriever.encoder import Encoder
from ralm.training.batch import Batch, passage_tokens
from ralm.training.config import TrainingConfig
from ralm.training.learner import Learner, encode

CONFIG = TrainingConfig(mode="joint", num_passages=2, num_retrieved=3, dropout=0.0, precision="fp32")
BATCH = Batch(
    questions=["what is the colour of granite", "who uses copper"],
    targets=["amber", "old iron"],
    passages=[
        [
            SimpleNamespace(title="Granite", section="Colour", text=f"The colour of granite {number} " * (number + 1))
            for number in range(3)
        ]
    ]
    * 2,
    vectors=None,
)


def make_learner(model_location: str, config: TrainingConfig, dtype: torch.dtype = torch.float32) -> Learner:
    model, cpu = open_model(model_location), torch.device("cpu")
    reader = FusionReader.load(model.reader_folder, model.reader, device=cpu)
    encoder = Encoder.load(model.passage_encoder_folder, model.retriever, device=cpu, dtype=torch.float32)
    return Learner(reader, encoder, encoder if config.mode == "joint" else None, config, dtype)


@pytest.mark.parametrize("objective", ["pdist", "adist", "loop", "emdr2", "emdr2-token"])
def test_the_size_of_a_micro_batch_does_not_matter(tiny_model: str, objective: str) -> None:
    """Defect 17: in Atlas accumulation adds gradients up instead of averaging them."""
    name, _, level = objective.partition("-")
    settings = {"objective": name, "emdr2_level": level or "sequence", "temperature_score": 0.1}
    config = dataclasses.replace(CONFIG, **settings)
    whole, parts = (make_learner(tiny_model, dataclasses.replace(config, micro_batch_size=size)) for size in (2, 1))
    first, second = whole.update(BATCH, 0), parts.update(BATCH, 0)
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
    for key, weight in whole.weights.items():
        torch.testing.assert_close(parts.weights[key].grad, weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"score_pass": "eval"}, {"micro_batch_size": 1}])
def test_options_do_not_change_the_update(tiny_model: str, change: dict[str, object]) -> None:
    plain = make_learner(tiny_model, CONFIG)
    other = make_learner(tiny_model, dataclasses.replace(CONFIG, **change))
    is_expected = bool(change.get("gradient_checkpointing"))
    assert other.reader.model.is_activation_checkpointing == is_expected
    assert other.question_encoder.model.is_activation_checkpointing == is_expected
    first, second = plain.update(BATCH, 0), other.update(BATCH, 0)
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    for name, weight in plain.weights.items():
        torch.testing.assert_close(other.weights[name].grad, weight.grad, rtol=1e-3, atol=1e-5)


def test_query_side_loss_equals_the_joint_one_before_any_update(tiny_model: str) -> None:
    joint = make_learner(tiny_model, CONFIG)
    with torch.no_grad():
        encoder = joint.passage_encoder.eval()
        vectors = encode(encoder, passage_tokens(encoder, BATCH.passages)).unflatten(0, (2, 3))
    query_side = make_learner(tiny_model, dataclasses.replace(CONFIG, mode="query_side"))
    first = joint.update(BATCH, 0)
    second = query_side.update(dataclasses.replace(BATCH, vectors=vectors), 0)
    assert second["retriever_loss"] == pytest.approx(first["retriever_loss"], abs=1e-5)
    assert second["reader_loss"] == pytest.approx(first["reader_loss"], abs=1e-6)


def test_reader_reads_the_first_passages_only(tiny_model: str) -> None:
    many = make_learner(tiny_model, CONFIG).update(BATCH, 0)
    few = dataclasses.replace(BATCH, passages=[of_question[:2] for of_question in BATCH.passages])
    assert make_learner(tiny_model, CONFIG).update(few, 0)["reader_loss"] == pytest.approx(
        many["reader_loss"], abs=1e-6
    )


def test_dropout_is_set_everywhere_and_repeats_with_the_step(tiny_model: str) -> None:
    learner = make_learner(tiny_model, dataclasses.replace(CONFIG, dropout=0.25))
    rates = {layer.p for layer in learner.reader.modules() if isinstance(layer, nn.Dropout)}
    rates |= {layer.dropout for layer in learner.reader.modules() if isinstance(layer, T5Attention)}
    rates |= {layer.p for layer in learner.question_encoder.modules() if isinstance(layer, nn.Dropout)}
    assert rates == {0.25}
    again = copy.deepcopy(learner.reader.model.state_dict())
    first = learner.update(BATCH, 0)
    learner.reader.model.load_state_dict(again)
    repeated = make_learner(tiny_model, dataclasses.replace(CONFIG, dropout=0.25)).update(BATCH, 0)
    assert repeated == first


def test_gradient_is_clipped(tiny_model: str) -> None:
    learner = make_learner(tiny_model, dataclasses.replace(CONFIG, clip_norm=1e-3))
    row = learner.update(BATCH, 0)
    norm = torch.linalg.vector_norm(
        torch.stack([weight.grad.norm() for weight in learner.weights.values() if weight.grad is not None])
    )
    assert row["gradient_norm"] > 1e-3
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_a_gradient_that_is_not_finite_stops_the_run(tiny_model: str) -> None:
    learner = make_learner(tiny_model, CONFIG)
    with torch.no_grad():
        learner.reader.model.lm_head.weight[0, 0] = float("nan")
    before = learner.question_encoder.state_dict()["model.embeddings.word_embeddings.weight"].clone()
    with pytest.raises(ConfigError, match="update 1: the gradient's length is nan"):
        learner.update(BATCH, 0)
    assert torch.equal(before, learner.question_encoder.state_dict()["model.embeddings.word_embeddings.weight"])


def test_bf16_losses_are_close_to_fp32(tiny_model: str, tmp_path: Path) -> None:
    plain = make_learner(tiny_model, CONFIG)
    low = make_learner(tiny_model, CONFIG)
    low.dtype = torch.bfloat16
    first, second = plain.update(BATCH, 0), low.update(BATCH, 0)
    assert second["reader_loss"] == pytest.approx(first["reader_loss"], rel=0.02)
    assert all(weight.dtype == torch.float32 for weight in low.weights.values())
