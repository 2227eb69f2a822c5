"""Models in the shape of real ones, with random weights: their speed is that of the real ones, their answers are not.

Tokenizers are real where files of them are given; else every word of the texts is a token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

Shape = Literal["base", "tiny"]
BERT_SHAPES: dict[Shape, dict[str, int]] = {
    "base": {},  # the defaults of the class are BERT base
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
T5_SHAPES: dict[Shape, dict[str, int]] = {
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "tiny": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
}


def write_bert(folder: Path, shape: Shape, texts: Sequence[str], vocabulary: Path | None = None) -> None:
    """A BERT in transformers' layout.

    Args:
        folder: receives it.
        shape: `base` is Contriever's: 12 layers of 768 values.
        texts: give the tokenizer its words where there is no vocabulary.
        vocabulary: a `vocab.txt`.
    """
    if vocabulary is not None:
        pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    else:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_words(texts)]
    known = {piece: number for number, piece in enumerate(pieces)}
    words = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, known[name]) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", **names).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(pieces), **BERT_SHAPES[shape])
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def write_t5(folder: Path, shape: Shape, texts: Sequence[str], tokenizer: Path | None = None) -> None:
    """A T5 1.1 in transformers' layout; arguments as those of `write_bert`, but `tokenizer` is a folder."""
    if tokenizer is not None:
        made = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    else:
        pieces = ["<pad>", "</s>", "<unk>", "<extra_id_0>", *_words(texts)]
        words = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
        words.normalizer = normalizers.Lowercase()
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)
    torch.manual_seed(2)
    vocab_size = -(-(len(made) + 1) // 128) * 128  # 32,128 with the real one
    config = T5Config(
        vocab_size=vocab_size,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **T5_SHAPES[shape],
    )
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    weights = {name: value for name, value in model.state_dict().items() if "embed_tokens" not in name}
    weights["lm_head.weight"] = torch.randn_like(model.shared.weight) * config.d_model**-0.5
    # transformers ties lm_head to the embeddings when T5 is built from a config; T5 1.1 has its own.
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, "tie_word_embeddings": False}))


def _words(texts: Sequence[str]) -> list[str]:
    split = pre_tokenizers.BertPreTokenizer()
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
