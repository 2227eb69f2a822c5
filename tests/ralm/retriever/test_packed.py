"""The forward pass without padding against that of `transformers`, one text at a time."""

from __future__ import annotations

import copy
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from ralm.model import open_model
from ralm.retriever import embed as embedding
from ralm.retriever import packed
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.packed import PackedBert, attend, can_pack

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 40,
}
LENGTHS = np.array([17, 17, 17, 9, 8, 8, 1])
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN, which packing needs"
)

needs_bf16 = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bf16 on this processor (no AVX-512)",
)


def make_model(kind: str, spread: float = 0.3) -> Any:
    """A random model with weights large enough for attention to differ from a mean, and biases that are not 0."""
    torch.manual_seed(3)
    made = {"bert": BertModel, "roberta": RobertaModel}[kind]
    config = {"bert": BertConfig, "roberta": RobertaConfig}[kind](**SHAPE)
    model = made(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * spread + (weight == 1))
    return model


def make_ids() -> Tensor:
    return torch.randint(3, 50, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(5), dtype=torch.int32)


@torch.no_grad()
def one_by_one(model: Any, ids_T: Tensor) -> list[Tensor]:
    """States of each text by the library's own way."""
    return [model(input_ids=part.long()[None]).last_hidden_state[0] for part in ids_T.split(LENGTHS.tolist())]


def packed_states(model: Any, dtype: torch.dtype, ids_T: Tensor) -> list[Tensor]:
    runs = PackedBert(model, dtype, 64).forward(ids_T, LENGTHS)
    assert [tuple(run.shape[:2]) for run in runs] == [(3, 17), (1, 9), (2, 8), (1, 1)]
    return [text for run in runs for text in run]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("scores_at_once", [1, 300, 2**17])
def test_states_equal_those_of_transformers(kind: str, scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SCORES_AT_ONCE", scores_at_once)
    model, ids_T = make_model(kind), make_ids()
    for found, expected in zip(packed_states(model, torch.float32, ids_T), one_by_one(model, ids_T), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_way_of_a_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases moved to the norm before, sums in place: equal whatever the device, also where weights are laid out."""
    monkeypatch.setattr(packed, "_is_on_gpu", lambda weight: True)
    model, ids_T = make_model(kind), make_ids()
    for found, expected in zip(packed_states(model, torch.float32, ids_T), one_by_one(model, ids_T), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = packed_states(model, torch.float32, ids_T)
    for found, expected in zip(under_autocast, one_by_one(model, ids_T), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_moved_biases_cost_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases fifty times the states, in bf16, by the way of a GPU."""
    monkeypatch.setattr(packed, "_is_on_gpu", lambda weight: True)
    model, ids_T = make_model("bert", spread=0.1), make_ids()
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.output.dense.bias.mul_(50)
            layer.output.dense.bias.mul_(50)
    exact = one_by_one(model, ids_T)
    found = packed_states(model, torch.bfloat16, ids_T)
    theirs = one_by_one(copy.deepcopy(model).to(torch.bfloat16), ids_T)
    for ours, their, expected in zip(found, theirs, exact, strict=True):
        error, their_error = (float((state.float() - expected).norm() / expected.norm()) for state in (ours, their))
        assert error < max(1.5 * their_error, 0.01)


def test_what_a_norm_adds_is_told_with_its_rounding() -> None:
    """Of zeros a norm makes its bias: what it is more by is what was told, though bf16 rounds it by tenths."""
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = packed._Norm(norm, torch.bfloat16)
        added = ours.add(50 * torch.randn(8, generator=torch.Generator().manual_seed(3)))
        torch.testing.assert_close(ours(torch.zeros(1, 8, dtype=torch.bfloat16))[0].float(), norm.bias + added)


def test_without_products_of_bf16_it_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors without AVX-512."""
    monkeypatch.setattr(packed, "_OPS", types.SimpleNamespace(_linear_pointwise=0, _is_mkldnn_bf16_supported=bool))
    model = make_model("bert")
    assert can_pack(model, torch.float32)
    assert not can_pack(model, torch.bfloat16)


@needs_bf16
def test_bf16_is_as_near_as_bf16_can_be() -> None:
    model, ids_T = make_model("bert", spread=0.1), make_ids()
    found, exact = packed_states(model, torch.bfloat16, ids_T), one_by_one(model, ids_T)
    theirs = one_by_one(make_model("bert", spread=0.1).to(torch.bfloat16), ids_T)
    for ours, their, expected in zip(found, theirs, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error, their_error = (float((state.float() - expected).norm() / expected.norm()) for state in (ours, their))
        assert error < max(1.5 * their_error, 0.01)


@pytest.mark.parametrize("size", [1.0, 40.0, 1e4])
@pytest.mark.parametrize("length", [1, 5, 8, 19])
def test_attention_whatever_the_size_of_scores(length: int, size: float) -> None:
    """Scores beyond what can be exponentiated give what softmax gives, not infinities."""
    projected = torch.randn(3 * length, 3 * 8, generator=torch.Generator().manual_seed(1))
    projected[:, :16] *= size**0.5
    assert_is_softmax(projected, length)


def test_attention_where_all_scores_are_far_below_zero() -> None:
    """Nothing is lost to numbers too small to be told from zero."""
    projected = torch.randn(2 * 5, 3 * 8, generator=torch.Generator().manual_seed(1))
    projected[:, :8], projected[:, 8:16] = 6.0, -6 + 0.1 * projected[:, 8:16]  # scores around -144
    assert_is_softmax(projected, 5)


def assert_is_softmax(projected: Tensor, length: int) -> None:
    context = torch.empty(len(projected), 8)
    attend(projected, context, length, heads=2)
    query, key, value = projected.view(-1, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(query @ key.transpose(2, 3), dim=3) @ value
    torch.testing.assert_close(context.view(-1, length, 8), expected.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-4)


def test_many_texts_get_the_vectors_of_few(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(tiny_model)
    texts = [" ".join(["granite", "the", "willow", "amber", "otter"][: 1 + row % 5]) for row in range(40)]
    for pooling in ("mean", "cls", "sqrt"):
        config = dataclasses.replace(opened.retriever, pooling=pooling)  # type: ignore[arg-type]
        folder = opened.passage_encoder_folder
        encoder = Encoder.load(folder, config, device=torch.device("cpu"), dtype=torch.float32)
        few_ND = embed_texts(encoder, texts, max_tokens=16)
        with monkeypatch.context() as patch:
            patch.setattr(embedding, "PACKED_FROM", 1)
            for budget in (1, 30, 10_000):
                many_ND = embed_texts(encoder, texts, max_tokens=16, token_budget=budget)
                np.testing.assert_allclose(many_ND, few_ND, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=str)
def test_vectors_are_the_same_on_any_number_of_cores(
    dtype: torch.dtype, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(tiny_model)
    encoder = Encoder.load(opened.passage_encoder_folder, opened.retriever, device=torch.device("cpu"), dtype=dtype)
    monkeypatch.setattr(embedding, "PACKED_FROM", 1)
    texts = [" ".join(["granite", "the", "willow", "amber", "otter"] * (1 + row % 7)) for row in range(200)]
    before, found = torch.get_num_threads(), []
    for cores in (1, 2, 3):
        torch.set_num_threads(cores)
        found.append(embed_texts(encoder, texts, max_tokens=40, token_budget=300).tobytes())
    torch.set_num_threads(before)
    assert found[1:] == found[:1] * 2


@needs_bf16
def test_under_autocast_it_is_bf16(tiny_model: str) -> None:
    opened = open_model(tiny_model)
    folder = opened.passage_encoder_folder
    encoder = Encoder.load(folder, opened.retriever, device=torch.device("cpu"), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = encoder.packed(64)
    assert made is not None
    assert made.forward(torch.tensor([3, 4], dtype=torch.int32), np.array([2]))[0].dtype == torch.bfloat16


def test_what_is_not_written_here_is_left_to_transformers() -> None:
    model = make_model("bert")
    assert can_pack(model, torch.float32)
    assert not can_pack(model, torch.float16)
    assert not can_pack(model.to("meta"), torch.float32)
    for name, value in (("hidden_act", "gelu_new"), ("model_type", "electra"), ("is_decoder", True)):
        other = make_model("bert")
        setattr(other.config, name, value) if name != "model_type" else setattr(type(other.config), name, value)
        try:
            assert not can_pack(other, torch.float32)
        finally:
            type(other.config).model_type = "bert"
