"""Fusion-in-Decoder: one encoder pass in buckets equals one padded pass, and a second pass for the scores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from ralm.errors import ArtifactError
from ralm.objectives.distillation import IGNORED_LABEL, perplexity_scores
from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader


@dataclass
class Text:
    title: str
    section: str
    text: str


QUESTIONS = ["who built the castle", "where was the red queen ?"]
PASSAGES = [
    [
        Text("castle", "", "the castle was built by the old king in the sea ."),
        Text("queen", "red", "the queen ."),
        Text("river", "", "a river of the sea . " * 4),
    ],
    [
        Text("sea", "old", "the sea was old . the river was red ."),
        Text("king", "", "king"),
        Text("queen", "", "in the castle of the king by the river " * 2),
    ],
]
TARGETS = ["the old king", "in the castle"]


def padded_encode(reader: FusionReader, inputs: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Independent implementation: one pass over everything, padded to the longest."""
    flat = [tokens for of_question in inputs for tokens in of_question]
    longest = max(map(len, flat))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in flat])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in flat])
    return reader.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask


@pytest.mark.parametrize("bucket_tokens", [1, 30, 80, 10_000])
def test_buckets_equal_one_padded_pass(reader: FusionReader, bucket_tokens: int) -> None:
    reader.bucket_tokens = bucket_tokens
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    assert len({len(tokens) for of_question in inputs for tokens in of_question}) > 3
    encoded = reader.encode(inputs)
    state_NLD, mask_NL = padded_encode(reader, inputs)
    longest = mask_NL.shape[1]
    found = encoded.state.flatten(0, 1)
    torch.testing.assert_close(
        found[:, :longest] * mask_NL[..., None], state_NLD * mask_NL[..., None], atol=1e-5, rtol=0
    )
    assert torch.equal(encoded.mask.flatten(0, 1)[:, :longest], mask_NL)
    assert not encoded.mask[..., longest:].any()


def test_fusion_logits_equal_a_plain_t5_over_the_concatenated_states(reader: FusionReader) -> None:
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    label_BT = reader.tokenize_targets(TARGETS)
    state_NLD, mask_NL = padded_encode(reader, inputs)
    for question in range(2):
        rows = slice(3 * question, 3 * question + 3)
        states = torch.cat([state[mask.bool()] for state, mask in zip(state_NLD[rows], mask_NL[rows], strict=True)])
        labels = label_BT[question][label_BT[question] != IGNORED_LABEL]
        expected = reader.model(encoder_outputs=BaseModelOutput(last_hidden_state=states[None]), labels=labels[None])
        found = reader.fusion_logits(reader.encode(inputs), label_BT)[question, : len(labels)]
        torch.testing.assert_close(found, expected.logits[0], atol=1e-5, rtol=0)


def test_scores_from_reused_states_equal_a_second_pass(reader: FusionReader) -> None:
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    label_BT = reader.tokenize_targets(TARGETS)
    found = perplexity_scores(reader.passage_logits(reader.encode(inputs).detach(), label_BT), label_BT)
    for question in range(2):
        labels = label_BT[question][label_BT[question] != IGNORED_LABEL][None]
        for number, tokens in enumerate(inputs[question]):
            loss = reader.model(input_ids=torch.tensor([tokens]), labels=labels).loss
            assert found[question, number].item() == pytest.approx(-loss.item(), abs=1e-5)


def test_detached_states_give_the_encoder_no_gradient(reader: FusionReader) -> None:
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    label_BT = reader.tokenize_targets(TARGETS)
    reader.passage_logits(reader.encode(inputs).detach(), label_BT).sum().backward()
    assert all(weight.grad is None for weight in reader.model.encoder.block.parameters())
    reader.fusion_logits(reader.encode(inputs), label_BT).sum().backward()
    assert all(weight.grad is not None for weight in reader.model.encoder.block.parameters())


def test_missing_passages_change_nothing(reader: FusionReader) -> None:
    label_BT = reader.tokenize_targets(TARGETS)
    short = [PASSAGES[0], PASSAGES[1][:1]]
    together = reader.fusion_logits(reader.encode(reader.tokenize_inputs(QUESTIONS, short)), label_BT)
    alone = reader.fusion_logits(reader.encode(reader.tokenize_inputs(QUESTIONS[1:], short[1:])), label_BT[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_no_passages_means_the_bare_question(reader: FusionReader) -> None:
    inputs = reader.tokenize_inputs(QUESTIONS, [[], []])
    expected = reader.tokenizer([f"question: {question}" for question in QUESTIONS])["input_ids"]
    assert inputs == [[tokens] for tokens in expected]


def test_inputs_and_targets_are_cut_and_keep_the_end_mark(reader: FusionReader) -> None:
    reader.config = replace(reader.config, max_input_tokens=8, max_target_tokens=2)
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    assert all(len(tokens) == 8 and tokens[-1] == 1 for of_question in inputs for tokens in of_question)
    assert reader.tokenize_targets(TARGETS).tolist() == [[row[0], 1] for row in reader.tokenizer(TARGETS)["input_ids"]]


def test_output_layer_stays_apart_from_the_embedding_after_saving(reader: FusionReader, tmp_path: Path) -> None:
    reader.save(tmp_path)
    again = FusionReader.load(tmp_path, ReaderConfig(), device=torch.device("cpu"))
    assert torch.equal(again.model.lm_head.weight, reader.model.lm_head.weight)
    assert not torch.equal(again.model.lm_head.weight, again.model.shared.weight)
    assert again.model.encoder.embed_tokens.weight is again.model.shared.weight
    found = dict(again.model.state_dict())
    assert all(torch.equal(value, found[name]) for name, value in reader.model.state_dict().items())


def test_a_folder_without_reader_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load the weights"):
        FusionReader.load(tmp_path, ReaderConfig(), device=torch.device("cpu"))


def test_missing_weights_are_an_error_and_no_random_start(tiny_model_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(tiny_model_files / "reader", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"1 weights are missing, such as decoder\.block\.1"):
        FusionReader.load(folder, ReaderConfig(), device=torch.device("cpu"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot load the weights"):
        FusionReader.load(folder, ReaderConfig(), device=torch.device("cpu"))


def test_fused_activations_change_nothing(reader: FusionReader, reader_folder: Path) -> None:
    plain = T5ForConditionalGeneration.from_pretrained(reader_folder).eval()
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in reader.modules())
    ids = torch.arange(3, 20)[None]
    expected = plain.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(reader.model.encoder(input_ids=ids).last_hidden_state, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bucket_tokens", [1, 40, 10_000])
def test_no_input_is_padded_beyond_the_longest_of_its_bucket(reader: FusionReader, bucket_tokens: int) -> None:
    """Atlas padded every passage to the longest that is allowed; here 8 decides, for the hardware's sake."""
    calls: list[torch.Tensor] = []
    reader.model.encoder.register_forward_pre_hook(
        lambda module, inputs, values: calls.append(values["attention_mask"]), with_kwargs=True
    )
    reader.bucket_tokens = bucket_tokens
    inputs = reader.tokenize_inputs(QUESTIONS, PASSAGES)
    reader.encode(inputs)
    assert sum(len(mask_NL) for mask_NL in calls) == 6
    for mask_NL in calls:
        longest = int(mask_NL.sum(dim=1).max())
        assert mask_NL.shape[1] == -(-longest // 8) * 8
    total = sum(mask_NL.numel() for mask_NL in calls)
    assert total <= 6 * reader.config.max_input_tokens
    if bucket_tokens == 1:
        assert total < sum(len(tokens) + 8 for of_question in inputs for tokens in of_question)
