"""What a GPU computes in fewer kernels is what transformers computes; here the CPU takes that way too."""

from __future__ import annotations

import pytest
import torch
from transformers import T5ForConditionalGeneration

from ralm.model import open_model
from ralm.reader import fused
from ralm.reader.fused import fuse_layers
from ralm.reader.fusion import fuse_activations


def results(model: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Logits and gradients for two inputs, the second of them shorter."""
    id_BL = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 1], [12, 13, 14, 1, 0, 0, 0, 0]])
    found = model(input_ids=id_BL, attention_mask=(id_BL > 0).long(), labels=torch.tensor([[5, 1], [6, 1]]))
    found.loss.backward()
    return {"logits": found.logits.detach()} | {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("is_on_gpu", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_compute_what_those_of_transformers_compute(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, attention: str, is_on_gpu: bool
) -> None:
    folder = open_model(tiny_model).reader_folder
    plain, other = (
        T5ForConditionalGeneration.from_pretrained(folder, attn_implementation=attention).eval() for _ in range(2)
    )
    fuse_activations(other)
    fuse_layers(other)
    assert list(other.state_dict()) == list(plain.state_dict())
    expected = results(plain)
    monkeypatch.setattr(fused, "_is_on_gpu", lambda states: is_on_gpu)
    found = results(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_mask_and_bias_are_added_once(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = T5ForConditionalGeneration.from_pretrained(open_model(tiny_model).reader_folder).eval()
    fuse_layers(model)
    monkeypatch.setattr(fused, "_is_on_gpu", lambda states: True)
    seen = []
    for block in model.encoder.block:
        block.layer[0].SelfAttention.register_forward_pre_hook(
            lambda module, inputs, values: seen.append((values["mask"], values["position_bias"])), with_kwargs=True
        )
    results(model)
    assert [mask for mask, _ in seen] == [None, None]
    assert seen[0][1] is seen[1][1]
    assert seen[0][1].shape == (2, 2, 8, 8)
