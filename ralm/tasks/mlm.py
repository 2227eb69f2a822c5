"""Masked language modelling: fill the gaps of a text, as T5 was pre-trained.

Shape: `N` tokens of a text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ralm.errors import ConfigError
from ralm.tasks.base import Asked, Question, Tools
from ralm.tasks.text import TextTask


class MaskedLanguageModelling(TextTask):
    """The task `mlm`: predictions and masked spans are compared without sentinels."""

    def ask(self, question: Question, copy: int, tools: Tools, generator: np.random.Generator) -> Asked:
        """The text with sentinels for the masked spans; the target is the spans, each behind its sentinel."""
        tokenizer, settings = tools.tokenizer, tools.settings
        token_N = tokenizer(
            question.question, add_special_tokens=False, truncation=True, max_length=tools.max_input_tokens
        )["input_ids"]
        num_sentinels = count_sentinels(tokenizer)
        sizes = span_sizes(len(token_N), settings.mlm_noise_density, settings.mlm_mean_span_length, num_sentinels)
        sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(sizes[1])]
        kept, masked = mask_spans(token_N, *sizes, sentinels, generator)
        target = tokenizer.decode(masked)
        spans = tokenizer.decode(tokenizer(target)["input_ids"], skip_special_tokens=True)  # as a right answer decodes
        return Asked(query=tokenizer.decode(kept), targets=(target,), answers=(spans.strip(),))


@functools.lru_cache(maxsize=8)
def count_sentinels(tokenizer: Any) -> int:
    """How many sentinels (`<extra_id_0>`, ...) a tokenizer knows.

    Raises:
        ConfigError: none.
    """
    known = tokenizer.get_vocab()
    count = 0
    while f"<extra_id_{count}>" in known:
        count += 1
    if not count:
        raise ConfigError("task mlm: expected a reader whose tokenizer has <extra_id_0>, found none")
    return count


def span_sizes(num_tokens: int, density: float, mean_length: float, num_sentinels: int) -> tuple[int, int]:
    """How many tokens are masked, and in how many spans.

    Source: Raffel et al. 2020 (T5), section 3.1.4 and its published span-corruption noise. There are never more spans
    than sentinels (the published Atlas code fails above 100), nor than tokens to keep between them: spans then become
    longer. A text of one token is masked whole.

    Args:
        num_tokens: N.
        density: share of tokens to mask.
        mean_length: tokens in a span.
        num_sentinels: what the tokenizer has.

    Example:
        >>> span_sizes(20, 0.15, 3.0, 100), span_sizes(4000, 0.15, 3.0, 100), span_sizes(1, 0.15, 3.0, 100)
        ((3, 1), (600, 100), (1, 1))
    """
    num_masked = min(max(round(num_tokens * density), 1), num_tokens)
    num_spans = min(round(num_masked / mean_length), num_tokens - num_masked, num_sentinels)
    return num_masked, max(num_spans, 1)


def mask_spans(
    token_N: Sequence[int], num_masked: int, num_spans: int, sentinels: Sequence[int], generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Split a text into kept and masked tokens: they alternate in random parts, a kept one first.

    Args:
        token_N: the text.
        num_masked: tokens to mask.
        num_spans: parts of each kind.
        sentinels: ids, one for each span.
        generator: draws the parts.

    Returns:
        The text with a sentinel for each masked part; and each sentinel with the part behind it, without a closing one.

    Example:
        >>> mask_spans([1, 2, 3, 4, 5, 6], 2, 1, [100], np.random.default_rng(0))
        ([1, 2, 3, 4, 100], [100, 5, 6])
    """
    kept_sizes = random_parts(len(token_N) - num_masked, num_spans, generator)
    masked_sizes = random_parts(num_masked, num_spans, generator)
    kept: list[int] = []
    masked: list[int] = []
    position = 0
    for sentinel, num_kept, num_hidden in zip(sentinels, kept_sizes, masked_sizes, strict=True):
        middle = position + num_kept
        kept += [*token_N[position:middle], sentinel]
        position = middle + num_hidden
        masked += [sentinel, *token_N[middle:position]]
    return kept, masked


def random_parts(total: int, num_parts: int, generator: np.random.Generator) -> list[int]:
    """Sizes of random parts, none empty, all cuts equally likely; one empty part where there is nothing to cut.

    Example:
        >>> random_parts(5, 1, np.random.default_rng(0)), random_parts(3, 3, np.random.default_rng(0))
        ([5], [1, 1, 1])
    """
    cuts = np.sort(generator.permutation(max(total - 1, 0))[: num_parts - 1]) + 1
    return np.diff([0, *cuts.tolist(), total]).tolist()
