"""Multiple choice: one logit for each option, read off where the options begin to differ.

Shapes: `B` questions, `T` target tokens, `V` vocabulary.
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

    Args:
        reader: the reader, in eval mode.
        encoded: all passages of each question.
        questions: texts as given, for decoder prompts.
        options: texts to choose from; an empty list where a question has none.

    Returns:
        A logit for each option in its order, None for questions without options.

    Raises:
        DataError: two options have the same token where the options begin to differ.

    Source: Atlas' published implementation of multiple choice (arXiv 2208.03299, section 4.2).
    """
    asked = [number for number, texts in enumerate(options) if texts]
    found: list[list[float] | None] = [None] * len(options)
    if not asked:
        return found
    starts = {number: _starts(reader, options[number]) for number in asked}
    prompts = reader.tokenize_prompts(questions)
    rows = [[*starts[number][0], starts[number][1][0]] if number in starts else [] for number in range(len(options))]
    label_BT = make_labels(prompts, rows).to(reader.device)
    logit_BTV = reader.fusion_logits(encoded, label_BT).float()
    for number in asked:
        place = len(prompts[number]) + len(starts[number][0])
        tokens = torch.tensor(starts[number][1], device=reader.device)
        found[number] = logit_BTV[number, place, tokens].tolist()
    return found


def _starts(reader: FusionReader, options: Sequence[str]) -> tuple[list[int], list[int]]:
    """The tokens that all options begin with, and the token of each option behind them."""
    texts = [format_target(reader.config, option) for option in options]
    rows = [list(row) for row in reader.tokenizer(texts)["input_ids"]]
    # A single option is told from no answer at all: there is nothing else to tell it from.
    others = (
        rows if len(rows) > 1 else [*rows, list(reader.tokenizer([format_target(reader.config, "")])["input_ids"][0])]
    )
    place = 0
    while all(len(row) > place + 1 for row in others) and len({row[place] for row in others}) == 1:
        place += 1
    tokens = [row[place] for row in rows]
    if len(set(tokens)) < len(tokens):
        same = [option for option, token in zip(options, tokens, strict=True) if tokens.count(token) > 1]
        raise DataError(
            f"options: expected texts that differ in their first token that is not common to all, found {same}"
        )
    return rows[0][:place], tokens
