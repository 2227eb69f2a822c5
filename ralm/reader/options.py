"""Multiple choice: one logit for each option, read off where the options begin to differ.

Shapes: `B` questions, `N` options, `T` target tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ralm.errors import DataError
from ralm.reader.encoded import EncodedPassages
from ralm.reader.fusion import FusionReader
from ralm.reader.labels import make_labels
from ralm.reader.prompts import format_target


def option_logits(
    reader: FusionReader, encoded: EncodedPassages, questions: Sequence[str], options: Sequence[Sequence[str]]
) -> list[list[float] | None]:
    """Raw logits of the options of each question, given all passages and what the options have in common.

    The decoder is given the tokens that all options (as formatted targets) begin with; the logit of an option is that
    of its next token. With Atlas' target format `<extra_id_0> {target}` and letters as options that is position 1.
    Where some options, but not all, share that token, the log-probabilities of their tokens behind it are added, up to
    the one that tells each of them from the others: T5 writes the letters X and Y as a space and a letter.

    Args:
        reader: the reader, in eval mode.
        encoded: all passages of each question.
        questions: texts as given, for decoder prompts.
        options: texts to choose from; an empty list where a question has none.

    Returns:
        A logit for each option in its order, None for questions without options.

    Raises:
        DataError: two options have the same tokens.

    Source: Atlas' published implementation of multiple choice (arXiv 2208.03299, section 4.2).
    """
    asked = [number for number, texts in enumerate(options) if texts]
    found: list[list[float] | None] = [None] * len(options)
    if not asked:
        return found
    starts = {number: _starts(reader, options[number]) for number in asked}
    prompts = reader.tokenize_prompts(questions)
    rows = [[*starts[number][0], starts[number][1][0][0]] if number in starts else [] for number in range(len(options))]
    label_BT = make_labels(prompts, rows).to(reader.device)
    logit_BTV = reader.fusion_logits(encoded, label_BT).float()
    for number in asked:
        common, ends = starts[number]
        place = len(prompts[number]) + len(common)
        tokens = torch.tensor([end[0] for end in ends], device=reader.device)
        logits = logit_BTV[number, place, tokens].tolist()
        if any(len(end) > 1 for end in ends):
            of_one = encoded.select(slice(number, number + 1))
            rest = _rest_log_probabilities(reader, of_one, prompts[number], common, ends)
            logits = [logit + more for logit, more in zip(logits, rest, strict=True)]
        found[number] = logits
    return found


def _rest_log_probabilities(
    reader: FusionReader,
    encoded: EncodedPassages,
    prompt: Sequence[int],
    common: Sequence[int],
    ends: Sequence[Sequence[int]],
) -> list[float]:
    """Log-probability of each option's tokens behind its first one; 0 for options that have one token."""
    found = [0.0] * len(ends)
    for number, end in enumerate(ends):
        if len(end) > 1:
            label_1T = make_labels([prompt], [[*common, *end]]).to(reader.device)
            log_TV = reader.fusion_logits(encoded, label_1T)[0].float().log_softmax(dim=-1)
            place = len(prompt) + len(common)
            found[number] = sum(float(log_TV[place + step, token]) for step, token in enumerate(end) if step)
    return found


def _starts(reader: FusionReader, options: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens that all options begin with, and those of each option behind them up to where it stands alone."""
    texts = [format_target(reader.config, option) for option in options]
    rows = [list(row) for row in reader.tokenizer(texts)["input_ids"]]
    same = [option for option, row in zip(options, rows, strict=True) if rows.count(row) > 1]
    if same:
        raise DataError(f"options: expected texts with different tokens, found {same}")
    # A single option is told from no answer at all: there is nothing else to tell it from.
    others = (
        rows if len(rows) > 1 else [*rows, list(reader.tokenizer([format_target(reader.config, "")])["input_ids"][0])]
    )
    place = 0
    while all(len(row) > place + 1 for row in others) and len({row[place] for row in others}) == 1:
        place += 1
    return rows[0][:place], [_distinct_start([row[place:] for row in rows], number) for number in range(len(rows))]


def _distinct_start(rows: Sequence[list[int]], number: int) -> list[int]:
    """The fewest tokens, at least one, that no other row begins with.

    >>> _distinct_start([[5, 1], [6, 7, 1], [6, 8, 1]], 0), _distinct_start([[5, 1], [6, 7, 1], [6, 8, 1]], 2)
    ([5], [6, 8])
    """
    row, others = rows[number], [other for place, other in enumerate(rows) if place != number]
    size = 1
    while size < len(row) and any(other[:size] == row[:size] for other in others):
        size += 1
    return row[:size]
