"""What a CPU computes faster in training is what transformers computes; what dropout leaves out is random."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from ralm.training import cpu_layers
from ralm.training.cpu_layers import Dropout, keep_mask, make_dense, scale_of, speed_up

SIZES = {"vocab_size": 1200, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def make_model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        return T5ForConditionalGeneration(T5Config(**SIZES, feed_forward_proj="gated-gelu", decoder_start_token_id=0))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(vocab_size=1200, **shape), add_pooling_layer=False)


def results(model: Any) -> dict[str, torch.Tensor]:
    """Output and gradients for two inputs, the second of them shorter."""
    id_BL = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 1], [12, 13, 14, 1, 0, 0, 0, 0]])
    labels = {"labels": torch.tensor([[5, 9, 1], [6, 1, -100]])} if hasattr(model, "lm_head") else {}
    found = model(input_ids=id_BL, attention_mask=(id_BL > 0).long(), **labels)
    output = found.logits if labels else found.last_hidden_state * (id_BL > 0)[..., None]
    (found.loss if labels else output.square().mean()).backward()
    make_dense(model.parameters())
    return {"output": output.detach()} | {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("kind", ["t5", "bert"])
@pytest.mark.parametrize("sparse", [True, False])
def test_models_compute_what_they_computed(kind: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "MANY_WORDS", 1000)
    plain = make_model(kind).eval()
    other = copy.deepcopy(plain)
    speed_up(other, sparse=sparse)
    assert list(other.state_dict()) == list(plain.state_dict())
    assert not any(module.training for module in other.modules())
    assert any(isinstance(module, nn.Embedding) and module.sparse for module in other.modules()) == sparse
    expected, found = results(plain), results(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_without_gradients_nothing_changes(kind: str) -> None:
    plain = make_model(kind).eval()
    other = copy.deepcopy(plain)
    speed_up(other, sparse=True)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    inputs |= {"decoder_input_ids": torch.tensor([[0, 5]])} if kind == "t5" else {}
    with torch.no_grad():
        assert torch.equal(plain(**inputs)[0], other(**inputs)[0])


@pytest.mark.parametrize("has_bias", [True, False])
def test_attention_with_dropout_is_the_formula(monkeypatch: pytest.MonkeyPatch, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value, bias = values(3, 2, 5, 4), values(3, 2, 7, 4), values(3, 2, 7, 4), values(1, 2, 5, 7)
    mask, kept = torch.rand(3, 1, 1, 7, generator=generator) > 0.3, torch.rand(3, 2, 5, 7, generator=generator) > 0.25
    monkeypatch.setattr(cpu_layers, "keep_mask", lambda shape, rate, dtype: kept.to(dtype))
    learnt = [query, key, value, *([bias] if has_bias else [])]
    found, _ = cpu_layers.attend(
        nn.Module(), query, key, value, mask, dropout=0.25, scaling=0.5, position_bias=bias if has_bias else None
    )
    score = (query @ key.transpose(2, 3) * 0.5 + (bias if has_bias else 0.0)).masked_fill(~mask, -torch.inf)
    expected = (score.softmax(dim=-1) * kept / 0.75 @ value).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradient = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    pairs = (torch.autograd.grad(output, learnt, gradient) for output in (found, expected))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    mask = keep_mask(torch.Size((1001, 999)), rate, dtype)
    assert mask.dtype == dtype
    assert set(mask.float().unique().tolist()) == {0.0, 1.0}
    share = mask.float().mean().item()
    assert share == pytest.approx(1 - rate, abs=4e-3)
    for other in (mask[1:] * mask[:-1], mask[:, 1:] * mask[:, :-1], mask[:, 4:] * mask[:, :-4]):
        assert other.float().mean().item() == pytest.approx(share**2, abs=4e-3)  # neighbours are independent
    assert scale_of(rate) == pytest.approx(1 / (1 - rate), rel=1e-2)


def test_dropout_learns_and_repeats_with_the_seed() -> None:
    layer, values = Dropout(0.5), torch.ones(6, 7, requires_grad=True)
    torch.manual_seed(4)
    first = layer(values)
    first.sum().backward()
    torch.testing.assert_close(values.grad, first.detach())
    torch.manual_seed(4)
    assert torch.equal(layer(values), first)
    assert not torch.equal(layer(values), first)
    assert torch.equal(layer.eval()(values), values)
