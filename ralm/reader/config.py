"""Settings of the reader: how question and passage become its input, lengths, and how answers are generated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """What the reader was trained to read. Stored as `reader/reader.json` in a model artifact."""

    question_format: str = "question: {question}"
    """Turns a question into the reader's question; `{question}` stands for the text as given. It is also the whole
    input where there is no passage (closed book)."""

    passage_format: str = "{question} title: {title} context: {text}"
    """Reader input for one passage. `{question}` is the formatted question, `{title}` carries the section behind a
    colon (`Title: Section`) where there is one."""

    target_format: str = "{target}"
    """What the reader learns to write; `{target}` stands for the answer. A reader pre-trained on span corruption may
    want `<extra_id_0> {target}`."""

    target_prompt_format: str = ""
    """Text that the decoder is given before it writes, in training and in generation; it is not learnt and is no part
    of the answer. `{question}` is the formatted question."""

    max_input_tokens: int = 256
    """Longest input for one passage, question included, in reader tokens; what is behind is cut off."""

    max_target_tokens: int = 32
    """Longest target in training and longest answer in generation, in reader tokens, end mark included."""

    num_passages: int = 10
    """How many passages the reader gets for one question."""

    def __post_init__(self) -> None:
        """Check the formats and limits."""
        _check_format("question_format", self.question_format, required={"question"}, allowed={"question"})
        _check_format("passage_format", self.passage_format, required={"text"}, allowed={"question", "title", "text"})
        _check_format("target_format", self.target_format, required={"target"}, allowed={"target"})
        _check_format("target_prompt_format", self.target_prompt_format, required=set(), allowed={"question"})
        for name in ("max_input_tokens", "max_target_tokens", "num_passages"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"reader.{name}: expected at least 1, found {value}")


MAX_BEAMS = 1024


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are generated."""

    num_beams: int = 1
    """Beams of the search; 1 is greedy."""

    num_candidates: int = 1
    """Answers for each question, the best first; at most `num_beams`."""

    length_penalty: float = 1.0
    """Beam search compares sums of log-probabilities divided by length to this power: above 1 favours long answers,
    below 0 short ones, 0 takes the sums as they are."""

    min_tokens: int = 0
    """Fewest tokens of an answer, end mark and decoder prompt not counted."""

    max_tokens: int | Literal["auto"] = "auto"
    """Most tokens of an answer, end mark included, decoder prompt not counted; auto: the reader's
    `max_target_tokens`."""

    def __post_init__(self) -> None:
        """Check the numbers against each other."""
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ConfigError(f"generation.num_beams: expected 1 to {MAX_BEAMS}, found {self.num_beams}")
        if not 1 <= self.num_candidates <= self.num_beams:
            raise ConfigError(
                f"generation.num_candidates: expected 1 to num_beams ({self.num_beams}), found {self.num_candidates}"
            )
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"generation.length_penalty: expected a number, found {self.length_penalty}")
        if self.min_tokens < 0:
            raise ConfigError(f"generation.min_tokens: expected at least 0, found {self.min_tokens}")
        if self.max_tokens != "auto" and self.max_tokens <= self.min_tokens:
            raise ConfigError(
                f"generation.max_tokens: expected auto or more than min_tokens ({self.min_tokens}), "
                f"found {self.max_tokens}"
            )


def _check_format(name: str, template: str, *, required: set[str], allowed: set[str]) -> None:
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ConfigError(f"reader.{name}: {error}, found {template!r}") from error
    if not required <= fields or not fields <= allowed:
        known = ", ".join(f"{{{field}}}" for field in sorted(allowed))
        need = f" and needs {', '.join(f'{{{field}}}' for field in sorted(required))}" if required else ""
        raise ConfigError(f"reader.{name}: may use {known}{need}, found {template!r}")
