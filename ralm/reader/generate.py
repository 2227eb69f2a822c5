"""What the reader makes of a question and its passages: answers, logits of given options, the loss of a given target.

The passages are encoded once for all three. Greedy answers are written by `greedy.py`, a search with beams is that of
transformers.

Shapes: `B` questions, `N` candidates of all questions, `T` target tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ralm.errors import ConfigError
from ralm.objectives.distillation import target_log_likelihood
from ralm.reader.config import GenerationConfig
from ralm.reader.encoded import EncodedPassages, FusedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.greedy import write_greedily
from ralm.reader.options import option_logits
from ralm.reader.prompts import PassageText


@dataclass(frozen=True)
class Candidate:
    """One possible answer."""

    text: str
    """The answer, without special tokens."""

    log_probability: float
    """Natural logarithm of its probability under the reader: the sum over its tokens, end mark included."""


@dataclass(frozen=True)
class Reading:
    """What the reader makes of one question."""

    candidates: list[Candidate]
    """Generated answers, the best first: by log-probability for greedy search, with beams after the length penalty."""

    option_logits: list[float] | None = None
    """Logit of each option's first token that tells it from the others; None where no options were given."""

    target_loss: float | None = None
    """Mean cross-entropy of the target, in nats for each of its tokens; None where no target was given."""

    target_tokens: int | None = None
    """Tokens that the loss is the mean of, end mark included."""


def generate_answers(
    reader: FusionReader,
    questions: Sequence[str],
    passages: Sequence[Sequence[PassageText]],
    *,
    generation: GenerationConfig = GenerationConfig(),  # noqa: B008
    batch_size: int = 8,
    options: Sequence[Sequence[str]] | None = None,
    targets: Sequence[str | None] | None = None,
) -> Iterator[Reading]:
    """Read the passages of each question and answer; the bare question is asked where it has none (closed book).

    Args:
        reader: the reader, in eval mode.
        questions: texts as given, without format.
        passages: the passages of each question, the best first; lists may be short or empty.
        generation: beams, lengths and number of answers.
        batch_size: questions at a time.
        options: texts to choose from, for each question; an empty list where there are none.
        targets: a text whose loss is wanted, for each question; None where there is none.

    Yields:
        One reading for each question, in input order.

    Raises:
        ConfigError: a batch size below 1, or a shortest answer longer than the longest one.
        DataError: two options that begin with the same tokens.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, found {batch_size}")
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        yield from _read_batch(
            reader,
            questions[part],
            passages[part],
            generation,
            options[part] if options is not None else [()] * len(questions[part]),
            targets[part] if targets is not None else [None] * len(questions[part]),
        )


@torch.inference_mode()
def _read_batch(
    reader: FusionReader,
    questions: Sequence[str],
    passages: Sequence[Sequence[PassageText]],
    generation: GenerationConfig,
    options: Sequence[Sequence[str]],
    targets: Sequence[str | None],
) -> list[Reading]:
    encoded = reader.encode(reader.tokenize_inputs(questions, passages))
    found = generate_candidates(reader, encoded, reader.tokenize_prompts(questions), generation)
    logits = option_logits(reader, encoded, questions, options)
    losses = _target_losses(reader, encoded, questions, targets)
    rows = zip(found, logits, losses, strict=True)
    return [Reading(candidates, of_options, *loss) for candidates, of_options, loss in rows]


@torch.inference_mode()
def generate_candidates(
    reader: FusionReader, encoded: EncodedPassages, prompts: list[list[int]], generation: GenerationConfig
) -> list[list[Candidate]]:
    """Answers to each question, the best first, from the states of its passages and the tokens of its decoder prompt.

    Raises:
        ConfigError: a shortest answer longer than the longest one.
    """
    fused = encoded.fuse()
    max_tokens = reader.config.max_target_tokens if generation.max_tokens == "auto" else generation.max_tokens
    if max_tokens <= generation.min_tokens:
        raise ConfigError(
            f"generation.min_tokens: expected less than max_tokens ({max_tokens}), found {generation.min_tokens}"
        )
    if generation.num_beams == 1:
        found = write_greedily(reader.model, fused, prompts, min_tokens=generation.min_tokens, max_tokens=max_tokens)
        texts = reader.tokenizer.batch_decode([written.tokens for written in found], skip_special_tokens=True)
        return [
            [Candidate(text=text.strip(), log_probability=written.log_probability)]
            for text, written in zip(texts, found, strict=True)
        ]
    return _search(reader, fused, prompts, generation, max_tokens)


def _search(
    reader: FusionReader,
    fused: FusedPassages,
    prompts: list[list[int]],
    generation: GenerationConfig,
    max_tokens: int,
) -> list[list[Candidate]]:
    """Search with beams."""
    forced = _forced(reader, prompts)
    output = reader.model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=fused.state),
        attention_mask=fused.mask,
        **forced,
        # Made here, since transformers' own has as many layers as the encoder, whatever the decoder has.
        past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        do_sample=False,
        num_beams=generation.num_beams,
        num_return_sequences=generation.num_candidates,
        length_penalty=generation.length_penalty,
        min_new_tokens=generation.min_tokens or None,
        max_new_tokens=max_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    # Not the last len(output.logits) tokens: a beam search may go on after its best answer has ended.
    num_forced = forced["decoder_input_ids"].shape[1] if forced else 1
    written_NT = output.sequences[:, num_forced:]
    texts = [text.strip() for text in reader.tokenizer.batch_decode(written_NT, skip_special_tokens=True)]
    score_NT = reader.model.compute_transition_scores(
        output.sequences, output.logits, output.beam_indices, normalize_logits=True
    )
    is_end_NT = torch.eq(written_NT, reader.model.config.eos_token_id)
    is_behind_end_NT = (is_end_NT.cumsum(dim=1) - is_end_NT.long()) > 0
    scores = score_NT.masked_fill(is_behind_end_NT[:, : score_NT.shape[1]], 0.0).sum(dim=1).tolist()
    flat = [Candidate(text=text, log_probability=score) for text, score in zip(texts, scores, strict=True)]
    return [flat[start : start + generation.num_candidates] for start in range(0, len(flat), generation.num_candidates)]


def _forced(reader: FusionReader, prompts: list[list[int]]) -> dict[str, Any]:
    """The start of the decoder's input: the start token and the prompt, padded on the left where prompts differ.

    T5's position bias depends on distances only, so masked places on the left change nothing.
    """
    longest = max(len(prompt) for prompt in prompts)
    if longest == 0:
        return {}
    start = reader.model.config.decoder_start_token_id
    rows = [[start] * (longest - len(prompt) + 1) + prompt for prompt in prompts]
    masks = [[0] * (longest - len(prompt)) + [1] * (len(prompt) + 1) for prompt in prompts]
    return {
        "decoder_input_ids": torch.tensor(rows, device=reader.device),
        "decoder_attention_mask": torch.tensor(masks, device=reader.device),
    }


def _target_losses(
    reader: FusionReader, encoded: EncodedPassages, questions: Sequence[str], targets: Sequence[str | None]
) -> list[tuple[float | None, int | None]]:
    """Mean loss and number of tokens of each target."""
    if all(target is None for target in targets):
        return [(None, None)] * len(targets)
    label_BT = reader.tokenize_targets([target or "" for target in targets], questions)
    loss_B = -target_log_likelihood(reader.fusion_logits(encoded, label_BT), label_BT).sum(dim=1)
    count_B = (label_BT >= 0).sum(dim=1)
    values = zip(targets, (loss_B / count_B).tolist(), count_B.tolist(), strict=True)
    return [(None, None) if target is None else (loss, count) for target, loss, count in values]
