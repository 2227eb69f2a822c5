"""Answers: batches, beams, short passage lists and log-probabilities agree with doing it one by one."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from ralm.errors import ConfigError
from ralm.reader.config import GenerationConfig
from ralm.reader.fusion import FusionReader
from ralm.reader.generate import generate_answers

QUESTIONS = ["who built the castle", "where was the red queen ?"]
TARGETS = ["the old king", "in the castle"]
PASSAGES = [
    [
        SimpleNamespace(title="castle", section="", text="the castle was built by the old king in the sea ."),
        SimpleNamespace(title="queen", section="red", text="the queen ."),
    ],
    [
        SimpleNamespace(title="sea", section="old", text="the sea was old . the river was red ."),
        SimpleNamespace(title="king", section="", text="king"),
        SimpleNamespace(title="queen", section="", text="in the castle of the king by the river " * 2),
    ],
]


@torch.no_grad()
def greedy(reader: FusionReader, question: int, num_passages: int) -> tuple[list[int], float]:
    """Independent implementation: argmax token by token, adding up log-probabilities."""
    inputs = reader.tokenize_inputs([QUESTIONS[question]], [PASSAGES[question][:num_passages]])
    states = [reader.model.encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0] for tokens in inputs[0]]
    state, written, total = torch.cat(states)[None], [0], 0.0
    while len(written) <= reader.config.max_target_tokens and written[-1] != 1:
        hidden = reader.model.decoder(input_ids=torch.tensor([written]), encoder_hidden_states=state).last_hidden_state
        scores = torch.log_softmax(reader.model.lm_head(hidden[0, -1]), dim=-1)
        written.append(int(scores.argmax()))
        total += float(scores.max())
    return written, total


def test_greedy_answers_equal_an_independent_loop(reader: FusionReader) -> None:
    passages = [PASSAGES[0], PASSAGES[1][:2]]
    found = list(generate_answers(reader, QUESTIONS, passages, batch_size=2))
    for question, reading in enumerate(found):
        candidates = reading.candidates
        tokens, total = greedy(reader, question, len(passages[question]))
        assert candidates[0].text == reader.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert candidates[0].log_probability == pytest.approx(total, abs=1e-4)


def test_batch_size_changes_nothing(reader: FusionReader) -> None:
    questions, passages = QUESTIONS * 3, [*PASSAGES, *PASSAGES, [], PASSAGES[0][:1]]
    one = list(generate_answers(reader, questions, passages, batch_size=1))
    many = list(generate_answers(reader, questions, passages, batch_size=4))
    assert [found.candidates[0].text for found in one] == [found.candidates[0].text for found in many]
    assert [found.candidates[0].log_probability for found in one] == pytest.approx(
        [found.candidates[0].log_probability for found in many], abs=1e-4
    )


def test_beams_give_distinct_candidates_best_first(reader: FusionReader) -> None:
    generation = GenerationConfig(num_beams=4, num_candidates=3, length_penalty=0.0)
    candidates = next(generate_answers(reader, QUESTIONS, PASSAGES, generation=generation)).candidates
    scores = [candidate.log_probability for candidate in candidates]
    assert len(candidates) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(score < 0 and math.isfinite(score) for score in scores)


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_a_decoder_prompt_is_never_in_an_answer(reader: FusionReader, num_beams: int) -> None:
    """Also where a beam search goes on after its best answer has ended: it then made more steps than tokens."""
    reader.config = dataclasses.replace(reader.config, target_prompt_format="the castle of the king {question}")
    with torch.no_grad():
        reader.model.lm_head.weight.zero_()  # all tokens are equally likely: the shortest answer is the best
    generation = GenerationConfig(num_beams=num_beams, length_penalty=0.0, max_tokens=6)
    for reading in generate_answers(reader, QUESTIONS, PASSAGES, generation=generation):
        (best,) = reading.candidates
        assert not {"castle", "king"} & set(best.text.split()), best.text


def test_loss_of_a_given_target_is_the_models_own(reader: FusionReader) -> None:
    found = list(generate_answers(reader, QUESTIONS, PASSAGES, targets=[*TARGETS]))
    for question in range(2):
        label_BT = reader.tokenize_targets([TARGETS[question]])
        inputs = reader.tokenize_inputs([QUESTIONS[question]], [PASSAGES[question]])
        logits = reader.fusion_logits(reader.encode(inputs), label_BT)[0]
        expected = torch.log_softmax(logits, -1).gather(1, label_BT[0][:, None]).mean().item()
        assert found[question].target_loss == pytest.approx(-expected, abs=1e-5)
        assert found[question].target_tokens == label_BT.shape[1]


def test_counts_are_checked(reader: FusionReader) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        list(generate_answers(reader, QUESTIONS, PASSAGES, batch_size=0))
    generation = GenerationConfig(min_tokens=reader.config.max_target_tokens)
    with pytest.raises(ConfigError, match=r"generation.min_tokens: expected less than max_tokens \(32\), found 32"):
        list(generate_answers(reader, QUESTIONS, PASSAGES, generation=generation))
