"""Gradient checkpointing is refused by name for architectures that transformers cannot do it for."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import MPNetConfig, MPNetModel

from ralm.errors import ConfigError
from ralm.training.learner import Learner
from tests.ralm.training.test_learner import CONFIG, make_learner


def test_an_encoder_that_cannot_compute_its_states_again(tiny_model: str) -> None:
    plain = make_learner(tiny_model, CONFIG)
    assert plain.question_encoder is not None
    tiny = MPNetConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    plain.question_encoder.model = MPNetModel(tiny, add_pooling_layer=False)
    config = dataclasses.replace(CONFIG, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="gradient_checkpointing: expected false, .* mpnet .*, found true"):
        Learner(plain.reader, plain.question_encoder, plain.question_encoder, config, plain.dtype)
