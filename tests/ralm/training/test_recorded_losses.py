"""Losses of a tiny fixed-seed run are the recorded ones: a refactor that moves them is no refactor.

Record anew with `RALM_RECORD_LOSSES=1` after a change that is meant to move them. The tokenizer is a plain word list,
since trained ones differ from run to run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.encoder import Encoder
from ralm.training.batch import Batch, passage_tokens
from ralm.training.config import TrainingConfig
from ralm.training.learner import Learner, encode

RECORDED = Path(__file__).resolve().parents[2] / "data" / "recorded_losses_toy.json"
TEXT = "question : title context who built a castle the old king red queen by sea"
WORDS = ["<pad>", "</s>", "<unk>", *TEXT.split()]
CONFIG = TrainingConfig(num_passages=2, num_retrieved=3, learning_rate=1e-3, warmup_steps=1, num_steps=4, dropout=0.0)
PASSAGES = [
    [
        SimpleNamespace(title="castle", section="", text=text)
        for text in ("the old king built a castle", "a queen", "sea")
    ],
    [SimpleNamespace(title="queen", section="red", text=text) for text in ("by the sea", "who the king", "red red")],
]
BATCH = Batch(
    questions=["who built a castle", "who : queen"], targets=["old king", "red"], passages=PASSAGES, vectors=None
)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def make_learner(folder: Path, config: TrainingConfig) -> Learner:
    torch.manual_seed(11)
    sizes = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    t5 = T5ForConditionalGeneration(
        T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    ).eval()
    bert = BertModel(
        BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        add_pooling_layer=False,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), pad_token="<pad>", eos_token="</s>")
    reader = FusionReader(t5, tokenizer, ReaderConfig(), folder=folder)
    encoder = Encoder(bert.eval(), RetrieverConfig(), make_tokenizer(), folder)
    return Learner(reader, encoder, encoder if config.mode == "joint" else None, config, torch.float32)


def test_losses_are_the_recorded_ones(tmp_path: Path) -> None:
    found: dict[str, dict[str, list[float | None]]] = {}
    for mode in ("joint", "query_side", "reader_only"):
        learner = make_learner(tmp_path, dataclasses.replace(CONFIG, mode=mode))
        with torch.no_grad():
            encoder = learner.question_encoder
            vectors = encode(encoder, passage_tokens(encoder, PASSAGES)).unflatten(0, (2, 3))
        rows = [learner.update(dataclasses.replace(BATCH, vectors=vectors), step) for step in range(4)]
        found[mode] = {name: [row[name] for row in rows] for name in ("reader_loss", "retriever_loss")}
    if os.environ.get("RALM_RECORD_LOSSES"):
        RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert found.keys() == recorded.keys()
    for mode, losses in recorded.items():
        for name, values in losses.items():
            expected = values if values[0] is None else pytest.approx(values, abs=1e-4)
            assert found[mode][name] == expected, f"{mode} {name}"
