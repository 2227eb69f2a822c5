"""Tiny T5s of every kind, each as our reader and as the stock T5 of transformers loaded from the same files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader

WORDS = "question : title context answer the a king queen of sea castle was built in old by who when where river red ."
KINDS: dict[str, dict[str, Any]] = {
    "v1": {"feed_forward_proj": "relu", "tie_word_embeddings": True, "d_kv": 8},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 8},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 12, "num_decoder_layers": 3},
}


@dataclass(frozen=True)
class Pair:
    """One model twice."""

    reader: FusionReader
    stock: Any
    """A stock `T5ForConditionalGeneration` with eager attention."""
    is_tied: bool
    """Whether the output layer is the embedding; transformers 5 does not say so in the configuration."""


def make_reader_files(folder: Path, kind: str) -> None:
    """A tiny T5 with random weights, large enough to make its distributions uneven."""
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "<extra_id_0>", *WORDS.split()])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
    ).save_pretrained(folder)
    torch.manual_seed(len(kind))
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, **KINDS[kind], decoder_start_token_id=0))
    for weight in model.parameters():
        weight.data = 1 + torch.randn_like(weight) * 0.2 if weight.ndim == 1 else torch.randn_like(weight) * 0.15
    if not KINDS[kind]["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) * 0.15)
    model.save_pretrained(folder)


@pytest.fixture(scope="session", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(f"t5-{request.param}")
    make_reader_files(folder, request.param)
    reader = FusionReader.load(folder, ReaderConfig(), device=torch.device("cpu"))
    stock = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    return Pair(reader, stock, KINDS[request.param]["tie_word_embeddings"])
