"""Architectures told from shapes: those of the official sizes, with tensors that take no memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from ralm.atlas.architecture import write_encoder_architecture, write_reader_architecture


def shapes(kind: type, config: object, **options: object) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return {name: tensor for name, tensor in kind(config, **options).state_dict().items() if "embed_t" not in name}


@pytest.mark.parametrize(
    ("d_model", "d_ff", "layers", "heads"),
    [(768, 2048, 12, 12), (1024, 2816, 24, 16), (2048, 5120, 24, 32), (4096, 10240, 24, 64)],
    ids=["base", "large", "xl", "xxl"],
)
def test_t5_lm_adapt(tmp_path: Path, d_model: int, d_ff: int, layers: int, heads: int) -> None:
    known = {
        "vocab_size": 32128,
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
    }
    weights = shapes(T5ForConditionalGeneration, T5Config(**known))
    write_reader_architecture(tmp_path, weights, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    facts = {
        "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": 128,
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "architectures": ["T5ForConditionalGeneration"],
    }
    assert {name: written[name] for name in known | facts} == known | facts
    assert not T5Config.from_pretrained(tmp_path).scale_decoder_outputs


def test_contriever(tmp_path: Path) -> None:
    """BERT-base, 12 heads of 64, with no config beside the tokenizer."""
    known = BertConfig()
    write_encoder_architecture(tmp_path, shapes(BertModel, known, add_pooling_layer=False), tmp_path, tmp_path)
    written = BertConfig.from_pretrained(tmp_path)
    for name in known.to_dict():
        if name not in ("architectures", "dtype", "transformers_version"):
            assert getattr(written, name) == getattr(known, name), name
