"""What the formulas say is kept for the backward pass is what autograd keeps, storage by storage."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from ralm.capacity.activations import Kernels, encoder_activations, largest_group, reader_activations
from ralm.capacity.architecture import ReaderShape
from ralm.reader import fusion
from ralm.reader.fusion import FusionReader
from ralm.training.cpu_layers import speed_up
from ralm.training.learner import keep_few_states, set_dropout
from tests.ralm.capacity.toy import ENCODER, READER, VOCABULARY, kept_bytes, make_bert, make_t5

QUESTIONS, PASSAGES, TOKENS, TARGETS = 2, 3, 72, 8
WAYS = list(itertools.product((False, True), (0.0, 0.1)))
"""In bf16 or not; dropout."""


def measure_reader(
    shape: ReaderShape, *, is_low: bool, dropout: float, checkpoints: bool = False, is_fused: bool = False
) -> int:
    """Bytes that a T5 keeps from inputs of which one is padded to the states before its logits."""
    model = make_t5(shape).train()
    set_dropout(model, dropout)
    if not is_fused:
        speed_up(model, sparse=False)
    if checkpoints:
        keep_few_states(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not is_fused or "relative_attention" not in name)
    id_NL = torch.randint(1, VOCABULARY, (QUESTIONS * PASSAGES, TOKENS))
    mask_NL = torch.ones_like(id_NL)
    mask_NL[0, -5:] = 0

    def compute() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            state_NLD = model.encoder(input_ids=id_NL, attention_mask=mask_NL).last_hidden_state
            state_BSD = state_NLD.reshape(QUESTIONS, PASSAGES * TOKENS, -1).clone()  # fused, as the reader does
            decoded = model.decoder(
                input_ids=id_NL[:QUESTIONS, :TARGETS],
                encoder_hidden_states=state_BSD,
                encoder_attention_mask=mask_NL.view(QUESTIONS, -1),
                use_cache=False,
            )
        return state_NLD, decoded

    return kept_bytes(compute, model.parameters())


def kernels(*, is_low: bool, dropout: float, is_gpu: bool = False) -> Kernels:
    return Kernels(compute_bytes=2 if is_low else 4, has_dropout=dropout > 0, is_gpu=is_gpu)


def estimate_reader(shape: ReaderShape, of: Kernels, *, checkpoints: bool = False) -> int:
    return reader_activations(
        shape,
        of,
        questions=QUESTIONS,
        passages=PASSAGES,
        input_tokens=TOKENS,
        target_tokens=TARGETS,
        checkpoints=checkpoints,
    ).kept


@pytest.mark.parametrize(("is_low", "dropout"), WAYS)
@pytest.mark.parametrize("is_gated", [True, False])
def test_a_reader_keeps_what_the_formula_says(is_gated: bool, is_low: bool, dropout: float) -> None:
    shape = dataclasses.replace(READER, is_gated=is_gated)
    real = measure_reader(shape, is_low=is_low, dropout=dropout)
    assert estimate_reader(shape, kernels(is_low=is_low, dropout=dropout)) == pytest.approx(real, rel=0.08)


@pytest.mark.parametrize("is_low", [False, True])
def test_fused_attention_of_a_gpu_keeps_what_that_of_the_cpu_keeps(is_low: bool) -> None:
    """PyTorch takes the fused kernel where neither dropout nor a learning bias forbids it, and it keeps the same."""
    real = measure_reader(READER, is_low=is_low, dropout=0.0, is_fused=True)
    estimate = estimate_reader(READER, kernels(is_low=is_low, dropout=0.0, is_gpu=True))
    assert estimate == pytest.approx(real, rel=0.08)


@pytest.mark.parametrize(("is_low", "dropout"), WAYS)
def test_with_checkpoints_a_reader_keeps_the_inputs_of_its_layers(is_low: bool, dropout: float) -> None:
    real = measure_reader(READER, is_low=is_low, dropout=dropout, checkpoints=True)
    estimate = estimate_reader(READER, kernels(is_low=is_low, dropout=dropout), checkpoints=True)
    assert estimate == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize(("is_low", "dropout"), WAYS)
@pytest.mark.parametrize("checkpoints", [False, True])
def test_an_encoder_keeps_what_the_formula_says(is_low: bool, dropout: float, checkpoints: bool) -> None:
    model = make_bert(ENCODER).train()
    set_dropout(model, dropout)
    speed_up(model, sparse=False)
    if checkpoints:
        keep_few_states(model)
    id_BL = torch.randint(1, VOCABULARY, (6, TOKENS))
    mask_BL = torch.ones_like(id_BL)
    mask_BL[0, -5:] = 0

    def compute() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            return model(input_ids=id_BL, attention_mask=mask_BL)

    real = kept_bytes(compute, model.parameters())
    of = kernels(is_low=is_low, dropout=dropout)
    estimate = encoder_activations(ENCODER, of, texts=6, tokens=TOKENS, checkpoints=checkpoints).kept
    assert estimate == pytest.approx(real, rel=0.25 if checkpoints else 0.08)


@pytest.mark.parametrize(("inputs", "tokens"), [(1, 512), (40, 512), (63, 512), (64, 512), (65, 512), (200, 160)])
def test_the_largest_group_is_that_of_the_reader(inputs: int, tokens: int) -> None:
    runs = fusion._split(list(range(inputs)), [tokens] * inputs, fusion.GPU_BUCKET_TOKENS)
    of = Kernels(compute_bytes=2, has_dropout=True)
    assert largest_group(inputs, tokens, of) == tokens * max(len(run) for run in runs)


def test_groups_are_as_large_as_in_the_reader() -> None:
    of = [Kernels(compute_bytes=2, has_dropout=True, is_gpu=is_gpu) for is_gpu in (True, False)]
    assert [largest_group(10**6, 1, each) for each in of] == [
        fusion.GPU_BUCKET_TOKENS + 10**6 % fusion.GPU_BUCKET_TOKENS,
        fusion.CPU_BUCKET_TOKENS + 10**6 % fusion.CPU_BUCKET_TOKENS,
    ]
    assert FusionReader.__init__.__kwdefaults__["bucket_tokens"] == fusion.CPU_BUCKET_TOKENS
