"""Formats and lengths that the official Atlas models were trained with (question answering)."""

from __future__ import annotations

import dataclasses
from typing import Any

from ralm.model_config import ModelConfig
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverSettings

QUESTION_FORMAT = "question: {question} answer: <extra_id_0>"
MAX_TOKENS = 512
_RETRIEVER = {
    "question_format": QUESTION_FORMAT,
    "passage_format": "{title}: {section} {text}",  # without a section: "{title} {text}"
    "max_passage_tokens": MAX_TOKENS,
    "max_question_tokens": MAX_TOKENS,
}
_READER = {
    "question_format": QUESTION_FORMAT,
    "passage_format": "{question} title: {title} context: {text}",
    "target_format": "<extra_id_0> {target}",
    "max_input_tokens": MAX_TOKENS,
}


def with_atlas_preset(config: ModelConfig) -> ModelConfig:
    """The settings of a model with Atlas' own in place of whatever the user left at its default.

    Source: Atlas (arXiv 2208.03299), the public code's defaults of the task `qa`; the retriever is asked the same
    templated question as the reader.

    Example:
        >>> with_atlas_preset(ModelConfig()).reader.target_format
        '<extra_id_0> {target}'
        >>> with_atlas_preset(ModelConfig(reader=ReaderConfig(target_format="say {target}"))).reader.target_format
        'say {target}'
    """
    if config.preset == "none":
        return config
    return dataclasses.replace(
        config,
        retriever=_fill(config.retriever, RetrieverSettings(), _RETRIEVER),
        reader=_fill(config.reader, ReaderConfig(), _READER),
    )


def _fill(settings: Any, defaults: Any, preset: dict[str, Any]) -> Any:
    left = {name: value for name, value in preset.items() if getattr(settings, name) == getattr(defaults, name)}
    return dataclasses.replace(settings, **left)
