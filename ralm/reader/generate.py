"""Answers from the reader: greedy or beam search over all passages of a question, and how likely an answer is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ralm.errors import ConfigError
from ralm.objectives.distillation import target_log_likelihood
from ralm.reader.fusion import IGNORED_LABEL, EncodedPassages, FusionReader
from ralm.reader.prompts import PassageText


@dataclass(frozen=True)
class Candidate:
    """One possible answer."""

    text: str
    """The answer, without special tokens."""

    log_probability: float
    """Natural logarithm of its probability under the reader: the sum over its tokens, end mark included."""


def generate_answers(
    reader: FusionReader,
    questions: Sequence[str],
    passages: Sequence[Sequence[PassageText]],
    *,
    num_beams: int = 1,
    num_candidates: int = 1,
    batch_size: int = 8,
) -> Iterator[list[Candidate]]:
    """Answer each question from its passages; the bare question is asked where it has none (closed book).

    Args:
        reader: the reader, in eval mode.
        questions: texts as given, without format.
        passages: the passages of each question, the best first; lists may be short or empty.
        num_beams: beams of the search; 1 is greedy.
        num_candidates: how many answers for each question, the best first; at most `num_beams`.
        batch_size: questions at a time.

    Yields:
        The candidates of one question after the other, in input order.

    Raises:
        ConfigError: more candidates than beams, or a count below 1.
    """
    if not 1 <= num_candidates <= num_beams:
        raise ConfigError(f"num_candidates: expected 1 to num_beams ({num_beams}), found {num_candidates}")
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, found {batch_size}")
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = reader.tokenize_inputs(questions[part], passages[part])
        yield from _answer_batch(reader, inputs, num_beams=num_beams, num_candidates=num_candidates)


@torch.inference_mode()
def score_answers(
    reader: FusionReader, questions: Sequence[str], passages: Sequence[Sequence[PassageText]], answers: Sequence[str]
) -> list[float]:
    """Log-probability of one given answer for each question: the sum over its tokens, end mark included."""
    encoded = reader.encode(reader.tokenize_inputs(questions, passages))
    return _log_probabilities(reader, encoded, reader.tokenize_targets(answers)).tolist()


@torch.inference_mode()
def _answer_batch(
    reader: FusionReader, inputs: list[list[list[int]]], *, num_beams: int, num_candidates: int
) -> list[list[Candidate]]:
    state_BSD, mask_BS = reader.encode(inputs).fuse()
    output = reader.model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=state_BSD),
        attention_mask=mask_BS,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_candidates,
        max_new_tokens=reader.config.max_target_tokens,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = [text.strip() for text in reader.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)]
    score_NT = reader.model.compute_transition_scores(
        output.sequences, output.scores, output.get("beam_indices"), normalize_logits=num_beams == 1
    )
    is_learnt_NT = _labels(reader, output.sequences)[:, : score_NT.shape[1]] != IGNORED_LABEL
    scores = score_NT.masked_fill(~is_learnt_NT, 0.0).sum(dim=1).tolist()
    flat = [Candidate(text=text, log_probability=score) for text, score in zip(texts, scores, strict=True)]
    found = [flat[start : start + num_candidates] for start in range(0, len(flat), num_candidates)]
    return [sorted(of_question, key=lambda candidate: -candidate.log_probability) for of_question in found]


def _labels(reader: FusionReader, token_NT: Tensor) -> Tensor:
    """Labels of generated tokens: the start token dropped, what follows the end mark ignored."""
    label_NT = token_NT[:, 1:].clone()
    is_end_NT = torch.eq(label_NT, reader.model.config.eos_token_id)
    is_behind_end_NT = (is_end_NT.cumsum(dim=1) - is_end_NT.long()) > 0
    return label_NT.masked_fill(is_behind_end_NT, IGNORED_LABEL)


def _log_probabilities(reader: FusionReader, encoded: EncodedPassages, label_NT: Tensor) -> Tensor:
    return target_log_likelihood(reader.fusion_logits(encoded, label_NT), label_NT).sum(dim=-1)
