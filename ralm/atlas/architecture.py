"""Configs of T5 and BERT told from the shapes of their weights; an Atlas checkpoint brings none.

What shapes cannot tell is equal in the whole family: T5's layer norm 1e-6, 128 positions in the relative attention,
ids of pad, end and start, gated feed-forward with GELU; BERT's layer norm 1e-12, GELU, 64 values in a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from ralm.artifacts.files import write_json
from ralm.errors import ArtifactError
from ralm.pretrained import load_config

BERT_HEAD_SIZE = 64
_EMBEDDING_COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
_SHAPELESS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")


def write_reader_architecture(folder: Path, weights: Mapping[str, Tensor], where: Path) -> None:
    """Write `config.json` of the T5 with these weights.

    Args:
        folder: receives the file.
        weights: each once, `transformers`' names; without `lm_head.weight` where it is the embedding.
        where: the checkpoint, for messages.

    Raises:
        ArtifactError: a weight is missing, unknown, or of a shape that does not fit the others.
    """
    is_untied = "lm_head.weight" in weights
    size = _Shapes(weights, where, "reader")
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    is_gated = f"{feed_forward}.wi_0.weight" in weights
    num_buckets, num_heads = size(f"{attention}.relative_attention_bias.weight", 2)
    inner, d_model = size(f"{attention}.q.weight", 2)
    config = T5Config(
        vocab_size=size("shared.weight", 2)[0],
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=size(f"{feed_forward}.{'wi_0' if is_gated else 'wi'}.weight", 2)[0],
        num_layers=_count(weights, r"encoder\.block\.(\d+)\."),
        num_decoder_layers=_count(weights, r"decoder\.block\.(\d+)\."),
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        feed_forward_proj="gated-gelu" if is_gated else "relu",
        tie_word_embeddings=not is_untied,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    expected = _expected_shapes(T5ForConditionalGeneration, config, {})
    wanted = {name: shape for name, shape in expected.items() if name not in _EMBEDDING_COPIES}
    if not is_untied:
        del wanted["lm_head.weight"]
    _check_shapes(weights, wanted, where, "reader")
    # transformers writes `true` whatever it was given, but reads `false` as "scores are not scaled" (T5 v1.1).
    _write(folder, config, "T5ForConditionalGeneration", tie_word_embeddings=not is_untied)


def write_encoder_architecture(folder: Path, weights: Mapping[str, Tensor], where: Path, tree: Path) -> None:
    """Write `config.json` of the BERT with these weights.

    Args:
        folder: receives the file.
        weights: each once, `transformers`' names, without a pooler.
        where: the checkpoint, for messages.
        tree: where the tokenizer is from; if it has a BERT's `config.json` of the same size, number of heads and
            activation are taken from there.

    Raises:
        ArtifactError: a weight is missing, unknown, or of a shape that does not fit the others.
    """
    size = _Shapes(weights, where, "retriever")
    vocabulary, dimension = size("embeddings.word_embeddings.weight", 2)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=dimension,
        num_hidden_layers=_count(weights, r"encoder\.layer\.(\d+)\."),
        intermediate_size=size("encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_position_embeddings=size("embeddings.position_embeddings.weight", 2)[0],
        type_vocab_size=size("embeddings.token_type_embeddings.weight", 2)[0],
        **_told_by(tree, dimension),
    )
    if config.hidden_size % config.num_attention_heads:
        raise ArtifactError(f"{where}: an encoder of size {dimension} has no heads of {BERT_HEAD_SIZE} values")
    wanted = _expected_shapes(BertModel, config, {"add_pooling_layer": False})
    _check_shapes(weights, wanted, where, "retriever")
    _write(folder, config, "BertModel")


def max_positions(weights: Mapping[str, Tensor]) -> int:
    """Longest text that a BERT has positions for, in tokens."""
    return int(weights["embeddings.position_embeddings.weight"].shape[0])


class _Shapes:
    """Shapes by name, where a missing weight is an error of the file."""

    def __init__(self, weights: Mapping[str, Tensor], where: Path, role: str) -> None:
        self._weights, self._where, self._role = weights, where, role

    def __call__(self, name: str, dimensions: int) -> list[int]:
        if name not in self._weights:
            raise ArtifactError(f"{self._where}: the {self._role} has no weight {name}")
        shape = list(self._weights[name].shape)
        if len(shape) != dimensions or not all(shape):
            raise ArtifactError(f"{self._where}: the {self._role}'s {name} has shape {shape}")
        return shape


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    return max(numbers, default=-1) + 1


def _told_by(tree: Path, dimension: int) -> dict[str, Any]:
    """What the tokenizer's source says of a BERT beyond its shapes; the family's values where it says nothing."""
    found: dict[str, Any] = {"num_attention_heads": max(1, dimension // BERT_HEAD_SIZE)}
    if (tree / "config.json").is_file():
        source = load_config(tree, "retriever", {"bert"})
        if source.hidden_size == dimension:
            found |= {name: getattr(source, name) for name in _SHAPELESS}
    return found


def _expected_shapes(kind: Any, config: Any, options: dict[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):  # no memory is taken
        model: nn.Module = kind(config, **options)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_shapes(weights: Mapping[str, Tensor], wanted: Mapping[str, list[int]], where: Path, role: str) -> None:
    if missing := sorted(set(wanted) - set(weights)):
        raise ArtifactError(f"{where}: {len(missing)} weights of the {role} are missing, such as {missing[0]}")
    if unknown := sorted(set(weights) - set(wanted)):
        raise ArtifactError(f"{where}: {len(unknown)} unknown weights in the {role}, such as {unknown[0]}")
    for name, shape in wanted.items():
        if list(weights[name].shape) != shape:
            found = list(weights[name].shape)
            raise ArtifactError(
                f"{where}: the {role}'s {name} has shape {found}, expected {shape} by the other weights"
            )


def _write(folder: Path, config: Any, architecture: str, **fixed: Any) -> None:
    write_json(folder / "config.json", {**config.to_dict(), "architectures": [architecture], **fixed})
