from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ralm.tasks.base import Read

NUM_SENTINELS = 10
WORDS = "the one two three four five six seven eight nine ten old king queen castle"


def said(text: str, logits: list[float] | None = None) -> Read:
    """What a reader made of a question."""
    return SimpleNamespace(candidates=[SimpleNamespace(text=text)], option_logits=logits)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as T5's: pieces with the space in front, sentinels, an end mark; any word falls into letters."""
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;()!?'-", "▁"]
    words = [f"▁{word}" for word in WORDS.split()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(word, -1.0) for word in words] + [(letter, -5.0) for letter in letters]
    pieces = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    pieces.add_special_tokens([AddedToken(f"<extra_id_{n}>", normalized=False) for n in range(NUM_SENTINELS)])
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
