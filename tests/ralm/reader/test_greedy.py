"""Answers written token by token are those of transformers' `generate`, with their probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ralm.reader import greedy
from ralm.reader.encoded import FusedPassages
from ralm.reader.fused import fuse_layers
from ralm.reader.fusion import FusionReader
from ralm.reader.greedy import Written, write_greedily

SIZES = {"vocab_size": 11, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 3}
LENGTHS = (9, 14, 3, 14)


def make_model(kind: str, seed: int) -> Any:
    """A tiny T5 of one kind whose answers end after different numbers of tokens."""
    torch.manual_seed(seed)
    is_old = kind == "old"
    config = T5Config(
        **SIZES,
        num_heads=2,
        feed_forward_proj="relu" if is_old else "gated-gelu",
        tie_word_embeddings=is_old,
        decoder_start_token_id=0,
        initializer_factor=2.0 if is_old else 1.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and not is_old:
                weight.copy_(torch.randn_like(weight) * 0.5)
    return model


def make_passages() -> FusedPassages:
    torch.manual_seed(5)
    state = torch.randn(len(LENGTHS), max(LENGTHS), SIZES["d_model"])
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return FusedPassages(state * mask[..., None], mask, torch.zeros_like(mask))


@torch.no_grad()
def by_transformers(model: Any, passages: FusedPassages, row: int, prompt: list[int], **limits: Any) -> Written:
    """One question alone, so without padding."""
    state = passages.state[row : row + 1, : LENGTHS[row]]
    found = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=state),
        decoder_input_ids=torch.tensor([[0, *prompt]]),
        use_cache=False,
        do_sample=False,
        num_beams=1,
        **limits,
    )
    tokens = found[0, 1 + len(prompt) :].tolist()
    logit_TV = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=state), decoder_input_ids=found[:, :-1], use_cache=False
    ).logits[0, len(prompt) :]
    score_T = logit_TV.log_softmax(dim=-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
    return Written(tokens, float(score_T.sum()))


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("prompts", [[[], [], [], []], [[4, 5], [6], [], [7, 8, 9]]], ids=["bare", "prompts"])
@pytest.mark.parametrize("min_tokens", [0, 4])
def test_answers_are_those_of_transformers(kind: str, prompts: list[list[int]], min_tokens: int) -> None:
    lengths = set()
    for seed in range(6):
        model, passages = make_model(kind, seed), make_passages()
        limits = {"max_new_tokens": 9} | ({"min_new_tokens": min_tokens} if min_tokens else {})
        expected = [by_transformers(model, passages, row, prompt, **limits) for row, prompt in enumerate(prompts)]
        fuse_layers(model)
        found = write_greedily(model, passages, prompts, min_tokens=min_tokens, max_tokens=9)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.log_probability for one in found] == pytest.approx(
            [one.log_probability for one in expected], abs=1e-4
        )
        lengths |= {len(one.tokens) for one in found}
    assert len(lengths) > 1 or kind == "old", "some answers end before others"


@pytest.mark.parametrize("questions", [1, 2])
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bf16_is_close_to_fp32(reader: FusionReader, reader_folder: Path, way: str, questions: int) -> None:
    low = FusionReader.load(
        reader_folder,
        reader.config,
        device=torch.device("cpu"),
        dtype=torch.bfloat16 if way == "weights" else torch.float32,
    )
    torch.manual_seed(2)
    state = torch.randn(questions, 12, reader.model.config.d_model)
    passages = FusedPassages(state, torch.ones(questions, 12).long(), torch.zeros(questions, 12).long())
    no_prompts: list[list[int]] = [[] for _ in state]
    expected = write_greedily(reader.model, passages, no_prompts, min_tokens=0, max_tokens=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        found = write_greedily(low.model, passages, no_prompts, min_tokens=0, max_tokens=1)
    assert [row.log_probability for row in found] == pytest.approx([row.log_probability for row in expected], abs=0.05)


def test_a_row_of_bf16_is_multiplied_as_exactly_as_rows() -> None:
    """Sums are fp32, so that only the result is rounded."""
    torch.manual_seed(3)
    weight, state = torch.randn(300, 700).bfloat16(), torch.randn(1, 1, 700).bfloat16()
    exact = state.float() @ weight.float().t()
    found = greedy._product(state, weight)
    assert found.shape == exact.shape
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-3)
