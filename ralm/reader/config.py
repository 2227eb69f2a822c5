"""Settings of the reader: how a question and a passage become its input, and how long input and target may be."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

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
        for name in ("max_input_tokens", "max_target_tokens", "num_passages"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"reader.{name}: expected at least 1, found {value}")


def _check_format(name: str, template: str, *, required: set[str], allowed: set[str]) -> None:
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ConfigError(f"reader.{name}: {error}, found {template!r}") from error
    if not required <= fields or not fields <= allowed:
        known = ", ".join(f"{{{field}}}" for field in sorted(allowed))
        need = ", ".join(f"{{{field}}}" for field in sorted(required))
        raise ConfigError(f"reader.{name}: may use {known} and needs {need}, found {template!r}")
