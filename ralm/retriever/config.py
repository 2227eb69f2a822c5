"""Settings of a retriever: how a passage and a question become text, and token states become one vector."""

from __future__ import annotations

import dataclasses
import string
from typing import Literal

from ralm.errors import ConfigError

Pooling = Literal["mean", "cls", "sqrt"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "sqrt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLimits:
    """How passages and questions become the encoder's input; shared by both settings below."""

    passage_format: str = "{title}: {section}\n{text}"
    """Text given to the passage encoder. Without a section, `{section}` and the `: ` before it fall away."""
    question_format: str = "{question}"
    """Text given to the question encoder."""
    max_passage_tokens: int = 256
    """Longest passage, in tokens with the special ones; the rest is cut off."""
    max_question_tokens: int = 64
    """Longest question, in tokens with the special ones; the rest is cut off."""

    def __post_init__(self) -> None:
        """Check formats and limits."""
        _check_format("passage_format", self.passage_format, {"text"}, {"title", "section", "text"})
        _check_format("question_format", self.question_format, {"question"}, {"question"})
        for name in ("max_passage_tokens", "max_question_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 4:
                raise ConfigError(f"retriever.{name}: expected a number of tokens of at least 4, found {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverSettings(TextLimits):
    """What a user says of a retriever that is being downloaded; `auto` is read from the retriever's own files."""

    pooling: Literal["auto", "mean", "cls", "sqrt"] = "auto"
    """How token states become one vector; `auto`: what sentence-transformers' files say, else the mean (Contriever)."""
    normalize: Literal["auto", "yes", "no"] = "auto"
    """Whether vectors have length 1; `auto`: what sentence-transformers' files say, else no (Contriever)."""

    def __post_init__(self) -> None:
        """Check the choices."""
        super().__post_init__()
        if self.pooling not in ("auto", *POOLINGS):
            raise ConfigError(f"retriever.pooling: expected auto, {', '.join(POOLINGS)}, found {self.pooling!r}")
        if self.normalize not in ("auto", "yes", "no"):
            raise ConfigError(f"retriever.normalize: expected auto, yes or no, found {self.normalize!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverConfig(TextLimits):
    """What a retriever's weights were trained with; kept beside them in `retriever/retriever.json`."""

    pooling: Pooling = "mean"
    """How token states become one vector: their mean, the first token, or their sum over the root of their number."""
    normalize: bool = False
    """True: vectors have length 1, so that the inner product is the cosine."""

    def __post_init__(self) -> None:
        """Check the choices."""
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise ConfigError(f"retriever.pooling: expected one of {', '.join(POOLINGS)}, found {self.pooling!r}")
        if not isinstance(self.normalize, bool):
            raise ConfigError(f"retriever.normalize: expected true or false, found {self.normalize!r}")

    def format_passage(self, title: str, section: str, text: str) -> str:
        r"""The text given to the passage encoder.

        Example:
            >>> RetrieverConfig().format_passage("Ayn Rand", "Life", "She wrote.")
            'Ayn Rand: Life\nShe wrote.'
            >>> RetrieverConfig().format_passage("Ayn Rand", "", "She wrote.")
            'Ayn Rand\nShe wrote.'
        """
        pattern = self.passage_format if section else self.passage_format.replace(": {section}", "")
        return pattern.format(title=title, section=section, text=text)

    def format_question(self, question: str) -> str:
        """The text given to the question encoder."""
        return self.question_format.format(question=question)


def _check_format(name: str, pattern: str, needed: set[str], allowed: set[str]) -> None:
    try:
        parts = list(string.Formatter().parse(pattern))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"retriever.{name}: no valid format {pattern!r}: {error}") from error
    fields = {field for _, field, _, _ in parts if field is not None}
    if not needed <= fields <= allowed:
        wanted = ", ".join(f"{{{field}}}" for field in sorted(allowed))
        must = ", ".join(f"{{{field}}}" for field in sorted(needed))
        raise ConfigError(f"retriever.{name}: expected {must} and no fields but {wanted}, found {pattern!r}")
