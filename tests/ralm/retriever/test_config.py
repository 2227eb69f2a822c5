from __future__ import annotations

import doctest

import pytest
import torch

from ralm.errors import ConfigError
from ralm.retriever import config, embed, pooling
from ralm.retriever.config import RetrieverConfig, RetrieverSettings


@pytest.mark.parametrize("module", [config, pooling, embed])
def test_examples_in_the_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "retriever.pooling: expected one of mean, cls, sqrt, found 'max'"),
        ({"normalize": "yes"}, "retriever.normalize: expected true or false"),
        ({"passage_format": "{title}"}, r"retriever.passage_format: expected \{text\}"),
        ({"passage_format": "{text} {author}"}, "retriever.passage_format"),
        ({"passage_format": "{text"}, "retriever.passage_format: no valid format"),
        ({"question_format": "query"}, "retriever.question_format"),
        ({"max_passage_tokens": 3}, "retriever.max_passage_tokens: expected a number of tokens of at least 4, found 3"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetrieverConfig(**settings)  # type: ignore[arg-type]


def test_choices_of_a_download() -> None:
    with pytest.raises(ConfigError, match=r"retriever.pooling: expected auto, mean, cls, sqrt, found 'max'"):
        RetrieverSettings(pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"retriever.normalize: expected auto, yes or no"):
        RetrieverSettings(normalize=True)  # type: ignore[arg-type]


def test_braces_in_a_text_are_kept() -> None:
    text = RetrieverConfig().format_passage("A {b}", "C: {section}", "{d}")
    assert text == "A {b}: C: {section}\n{d}"
    assert RetrieverConfig(question_format="query: {question}").format_question("who {x}?") == "query: who {x}?"


@pytest.mark.parametrize("name", ["mean", "cls", "sqrt"])
def test_padding_does_not_change_a_vector(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    states_BLD = torch.randn(3, 5, 4, generator=generator)
    padded_BLD = torch.cat([states_BLD, torch.full((3, 2, 4), 1e3)], dim=1)
    mask_BL = torch.tensor([[1] * 5 + [0] * 2] * 3)
    pool = pooling.POOL[name]  # type: ignore[index]
    torch.testing.assert_close(pool(padded_BLD, mask_BL), pool(states_BLD, None))
    assert pool(states_BLD.bfloat16(), None).dtype == torch.float32
