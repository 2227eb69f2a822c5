"""Counts of weights are those of `transformers`' own models, made on the meta device."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import BertModel, RobertaConfig, RobertaModel, T5Config, T5ForConditionalGeneration

from ralm.capacity.architecture import (
    BERT_BASE,
    MINILM,
    T5,
    EncoderShape,
    ReaderShape,
    encoder_shape,
    known_shapes,
    reader_shape,
)
from ralm.errors import ArtifactError, ConfigError
from tests.ralm.capacity.toy import ENCODER, READER, bert_config, t5_config

SMALL = ReaderShape(
    model_size=24, head_size=8, num_heads=2, feed_forward=40, num_layers=2, num_decoder_layers=3, vocabulary=50
)


def count_t5(shape: ReaderShape) -> tuple[int, int]:
    """All weights, and those of matrix products."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(t5_config(shape))
    copy = 0 if shape.is_tied else model.lm_head.weight.numel()  # it ties a T5 that is made from its config alone
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return sum(weight.numel() for weight in model.parameters()) + copy, linear


@pytest.mark.parametrize("name", T5)
def test_weights_of_the_known_readers(name: str) -> None:
    assert count_t5(T5[name]) == (T5[name].num_weights, T5[name].num_linear)


@pytest.mark.parametrize("changes", [{}, {"is_gated": False}, {"is_tied": True}, {"is_gated": False, "is_tied": True}])
def test_weights_of_any_t5(changes: dict[str, bool]) -> None:
    shape = dataclasses.replace(SMALL, **changes)
    assert count_t5(shape) == (shape.num_weights, shape.num_linear)


@pytest.mark.parametrize("shape", [BERT_BASE, MINILM, ENCODER])
def test_weights_of_an_encoder(shape: EncoderShape) -> None:
    with torch.device("meta"):
        model = BertModel(bert_config(shape), add_pooling_layer=False)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(weight.numel() for weight in model.parameters()) == shape.num_weights
    assert sum(weight.numel() for module in linear for weight in module.parameters()) == shape.num_linear


def test_the_published_sizes() -> None:
    """As the cards of the models round them."""
    assert round(T5["large"].num_weights / 1e6) == 783
    assert round(T5["xxl"].num_weights / 1e9, 1) == 11.1
    assert round(BERT_BASE.num_weights / 1e6) == 109


def test_shapes_are_read_from_configs() -> None:
    assert reader_shape({**t5_config(READER).to_dict(), "tie_word_embeddings": True}) == READER
    assert not reader_shape({**t5_config(READER).to_dict(), "tie_word_embeddings": False}).is_tied
    assert reader_shape(T5Config(feed_forward_proj="relu").to_dict()).is_gated is False
    assert encoder_shape(bert_config(ENCODER).to_dict()) == ENCODER


def test_a_roberta_is_counted_as_it_is() -> None:
    config = RobertaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    with torch.device("meta"):
        model = RobertaModel(config, add_pooling_layer=False)
    assert encoder_shape(config.to_dict()).num_weights == sum(weight.numel() for weight in model.parameters())


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ArtifactError, match="expected model_type t5, found 'bart'"):
        reader_shape({"model_type": "bart"})
    with pytest.raises(ArtifactError, match="expected one of bert, .*, found 'modernbert'"):
        encoder_shape({"model_type": "modernbert"})


def test_sources_by_name() -> None:
    assert known_shapes(model="atlas:models/atlas_nq/xl", reader="", retriever="") == (T5["xl"], BERT_BASE)
    both = {"reader": "hf://google/t5-base-lm-adapt", "retriever": "hf://facebook/contriever"}
    assert known_shapes(model="", **both) == (T5["base"], BERT_BASE)
    replaced = known_shapes(model="asset:quickstart", reader="hf://google/t5-xl-lm-adapt", retriever="")
    assert replaced == (T5["xl"], MINILM)
    with pytest.raises(ConfigError, match="found hf://me/mine; give --model"):
        known_shapes(model="asset:quickstart", reader="", retriever="hf://me/mine")
    with pytest.raises(ConfigError, match="found s3://somewhere; give --model"):
        known_shapes(model="s3://somewhere", reader="", retriever="")
