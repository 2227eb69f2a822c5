"""Text that the reader sees, byte for byte: questions, passages and targets. No tokens here, see `fusion.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ralm.reader.config import ReaderConfig


class PassageText(Protocol):
    """The parts of a passage that the reader can see."""

    @property
    def title(self) -> str:
        """Title of the page."""

    @property
    def section(self) -> str:
        """Heading of the section, empty for the lead."""

    @property
    def text(self) -> str:
        """The passage itself."""


def full_title(title: str, section: str) -> str:
    """Title of a passage as the reader sees it: the section follows behind a colon where there is one.

    Source: Atlas, the passage loader's title rule (`title: section`).

    Example:
        >>> full_title("Anarchism", "History"), full_title("Anarchism", "")
        ('Anarchism: History', 'Anarchism')
    """
    return f"{title}: {section}" if section else title


def format_question(config: ReaderConfig, question: str) -> str:
    """The reader's question, which is also its whole input where there are no passages.

    Example:
        >>> format_question(ReaderConfig(), "who wrote Emma")
        'question: who wrote Emma'
    """
    return config.question_format.format(question=question)


def format_target(config: ReaderConfig, target: str) -> str:
    """What the reader should write for an answer, end mark excluded."""
    return config.target_format.format(target=target)


def format_prompt(config: ReaderConfig, question: str) -> str:
    """What the decoder is given before it writes; empty where the reader wants none.

    Example:
        >>> format_prompt(ReaderConfig(target_prompt_format="{question} answer:"), "who wrote Emma")
        'question: who wrote Emma answer:'
    """
    return config.target_prompt_format.format(question=format_question(config, question))


def format_inputs(config: ReaderConfig, question: str, passages: Sequence[PassageText]) -> list[str]:
    """Reader inputs for one question: one text for each passage, or the bare question where there is none.

    Example:
        >>> from types import SimpleNamespace
        >>> passage = SimpleNamespace(title="Emma", section="Plot", text="Emma Woodhouse is clever.")
        >>> format_inputs(ReaderConfig(), "who is clever", [passage])
        ['question: who is clever title: Emma: Plot context: Emma Woodhouse is clever.']
        >>> format_inputs(ReaderConfig(), "who is clever", [])
        ['question: who is clever']
    """
    asked = format_question(config, question)
    if not passages:
        return [asked]
    return [
        config.passage_format.format(
            question=asked, title=full_title(passage.title, passage.section), text=passage.text
        )
        for passage in passages
    ]
