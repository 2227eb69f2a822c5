"""What the objectives need of the reader, at the edges: one passage, missing passages, prompts, masks, memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ralm.errors import ConfigError, DataError
from ralm.objectives.distillation import IGNORED_LABEL
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import generate_answers
from ralm.reader.labels import decoder_inputs
from ralm.reader.scores import leave_one_out_signal, perplexity_signal

QUESTIONS = ["who built the castle", "where was the red queen ?"]
TARGETS = ["the old king", "in the castle of the king"]
PASSAGES = [
    [SimpleNamespace(title="castle", section="", text=text) for text in texts]
    for texts in (
        ["the old king .", "the queen was in the castle", "river"],
        ["sea", "the red queen", "king of the sea"],
    )
]


def encode(reader: FusionReader, passages: list[list[SimpleNamespace]]) -> EncodedPassages:
    return reader.encode(reader.tokenize_inputs(QUESTIONS, passages))


@torch.no_grad()
def test_leaving_one_out_equals_reading_the_others(reader: FusionReader) -> None:
    label_BT = reader.tokenize_targets(TARGETS)
    found = reader.leave_one_out_logits(encode(reader, PASSAGES), label_BT)
    assert found.shape[:3] == (2, 3, label_BT.shape[1])
    for k in range(3):
        others = [[passage for place, passage in enumerate(texts) if place != k] for texts in PASSAGES]
        expected = reader.fusion_logits(encode(reader, others), label_BT)
        learnt = label_BT >= 0
        torch.testing.assert_close(found[:, k][learnt], expected[learnt], atol=1e-5, rtol=0)
    some = reader.leave_one_out_logits(encode(reader, PASSAGES), label_BT, [2, 0])
    torch.testing.assert_close(some, found[:, [2, 0]], atol=1e-5, rtol=0)


def test_keys_and_values_are_computed_once_however_many_are_left_out(reader: FusionReader) -> None:
    rows: list[int] = []
    for block in reader.model.decoder.block:
        block.layer[1].EncDecAttention.k.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    reader.leave_one_out_logits(encode(reader, PASSAGES), reader.tokenize_targets(TARGETS))
    assert rows == [2] * len(reader.model.decoder.block)


def test_one_passage_has_perplexity_and_attention_but_cannot_be_left_out(reader: FusionReader) -> None:
    encoded, label_BT = encode(reader, [texts[:1] for texts in PASSAGES]), reader.tokenize_targets(TARGETS)
    assert perplexity_signal(reader, encoded, label_BT).shape == (2, 1)
    assert reader.attention_scores(encoded, label_BT).shape == (2, 1)
    assert reader.attention_statistics(encoded, label_BT, QUESTIONS)["probs_avg"].shape == (2, 1)
    with pytest.raises(ConfigError, match="expected at least 2 to leave one out, found 1"):
        leave_one_out_signal(reader, encoded, label_BT)


def test_missing_passages_are_refused_by_number(reader: FusionReader) -> None:
    encoded, label_BT = encode(reader, [PASSAGES[0], PASSAGES[1][:2]]), reader.tokenize_targets(TARGETS)
    for function in (reader.passage_logits, reader.leave_one_out_logits, reader.attention_scores):
        with pytest.raises(DataError, match="question 1 of the batch: expected 3 passages, found 2"):
            function(encoded, label_BT)
    with pytest.raises(DataError, match="question 1"):
        reader.attention_statistics(encoded, label_BT, QUESTIONS)


def test_attention_sums_to_one_for_each_layer_and_target_token(reader: FusionReader) -> None:
    encoded, label_BT = encode(reader, PASSAGES), reader.tokenize_targets(TARGETS)
    found = reader.attention_statistics(encoded, label_BT, QUESTIONS)
    torch.testing.assert_close(256 * found["probs_sum"].sum(dim=1), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["norms_sum"], reader.attention_scores(encoded, label_BT), atol=1e-7, rtol=0)


def test_watching_leaves_no_trace(reader: FusionReader) -> None:
    encoded, label_BT = encode(reader, PASSAGES), reader.tokenize_targets(TARGETS)
    before = reader.fusion_logits(encoded, label_BT)
    scores = reader.attention_scores(encoded, label_BT)
    assert not scores.requires_grad
    assert not any(module._forward_hooks for module in reader.modules())
    assert torch.equal(reader.fusion_logits(encoded, label_BT), before)


def test_bf16_matrix_products_change_attention_little(reader: FusionReader) -> None:
    encoded, label_BT = encode(reader, PASSAGES), reader.tokenize_targets(TARGETS)
    exact = reader.attention_scores(encoded, label_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = reader.attention_scores(encoded, label_BT)
        logits = reader.leave_one_out_logits(encoded, label_BT)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.05)
    learnt = (label_BT >= 0)[:, None].expand(-1, 3, -1)
    difference = (logits.float() - reader.leave_one_out_logits(encoded, label_BT))[learnt].abs().max()
    assert difference < 0.5


def test_passages_encoded_apart_join_to_the_same(reader: FusionReader) -> None:
    parts = [encode(reader, [texts[:1] for texts in PASSAGES]), encode(reader, [texts[1:] for texts in PASSAGES])]
    joined, whole = EncodedPassages.join(parts), encode(reader, PASSAGES)
    assert torch.equal(joined.mask, whole.mask)
    torch.testing.assert_close(joined.state, whole.state, atol=1e-5, rtol=0)


def test_prompts_are_read_and_not_learnt(reader: FusionReader) -> None:
    reader.config = replace(reader.config, target_prompt_format="{question} .")
    label_BT = reader.tokenize_targets(TARGETS, QUESTIONS)
    plain = [reader.tokenizer(target)["input_ids"] for target in TARGETS]
    assert [[label for label in row.tolist() if label >= 0] for row in label_BT] == plain
    ids_BT = decoder_inputs(label_BT, start_token=0, pad_token=0)
    for number, question in enumerate(QUESTIONS):
        start = reader.tokenizer(f"question : {question} .")["input_ids"][:-1]
        written = [0, *start, *plain[number]]
        assert ids_BT[number].tolist()[: len(written)] == written[: ids_BT.shape[1]]
        assert (label_BT[number, : len(start)] < IGNORED_LABEL).all()


def test_options_that_begin_alike_are_told_apart_behind_what_they_share(reader: FusionReader) -> None:
    options = [["the king", "the queen"], ["sea"]]
    found = [reading.option_logits for reading in generate_answers(reader, QUESTIONS, PASSAGES, options=options)]
    encoded = encode(reader, PASSAGES)
    king, queen = (reader.tokenizer(word)["input_ids"][0] for word in ("king", "queen"))
    after_the = reader.fusion_logits(encoded, reader.tokenize_targets(["the king", "sea"]))
    assert found[0] == pytest.approx([after_the[0, 1, king].item(), after_the[0, 1, queen].item()], abs=1e-5)
    assert found[1] == pytest.approx([after_the[1, 0, reader.tokenizer("sea")["input_ids"][0]].item()], abs=1e-5)


def test_options_with_equal_tokens_are_refused(reader: FusionReader) -> None:
    with pytest.raises(DataError, match=r"found \['king', 'king'\]"):
        list(generate_answers(reader, QUESTIONS[:1], PASSAGES[:1], options=[["sea", "king", "king"]]))
