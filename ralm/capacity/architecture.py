"""Sizes of readers and encoders, and how many weights they have: what every estimate starts from.

Standard library only, as all of `ralm/capacity`: a plan is made where no torch is installed.

Symbols: `D` model size, `I` heads x size of a head, `F` feed-forward size, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from ralm.errors import ArtifactError, ConfigError

BUCKETS: Final = 32
"""Rows of T5's table of relative positions, in the whole family."""
BERT_TYPES: Final = ("bert", "roberta", "xlm-roberta", "camembert")


MOST: Final = 10**12
"""More of anything than this is a slip of the pen."""


def check_sizes(owner: Any, lowest: int = 1) -> None:
    """Refuse numbers that are no sizes.

    Args:
        owner: a dataclass; its whole numbers are checked.
        lowest: the least that is one.

    Raises:
        ConfigError: a number is too small, or absurd.
    """
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if type(value) is int and not lowest <= value <= MOST:
            raise ConfigError(f"{field.name}: expected {lowest} to {MOST:,}, found {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderShape:
    """A T5."""

    model_size: int
    head_size: int = 64
    num_heads: int
    feed_forward: int
    num_layers: int
    """Of the encoder."""
    num_decoder_layers: int
    vocabulary: int = 32128
    is_gated: bool = True
    """Two matrices before the activation, as in T5 1.1; the first T5 has one."""
    is_tied: bool = False
    """The output layer is the embedding, as in the first T5."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)

    @property
    def attention_size(self) -> int:
        """I, values of all heads together."""
        return self.num_heads * self.head_size

    @property
    def feed_forward_weights(self) -> int:
        """Weights of one feed-forward layer."""
        return (3 if self.is_gated else 2) * self.model_size * self.feed_forward

    @property
    def num_linear(self) -> int:
        """Weights of matrix products, which autocast copies: all but embeddings, norms and positions."""
        attention = 4 * self.model_size * self.attention_size
        encoder = self.num_layers * (attention + self.feed_forward_weights)
        decoder = self.num_decoder_layers * (2 * attention + self.feed_forward_weights)
        return encoder + decoder + self.vocabulary * self.model_size

    @property
    def num_weights(self) -> int:
        """All weights, each once."""
        norms = 2 * self.num_layers + 1 + 3 * self.num_decoder_layers + 1
        embedding = 0 if self.is_tied else self.vocabulary * self.model_size
        return self.num_linear + embedding + norms * self.model_size + 2 * BUCKETS * self.num_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """A BERT without its pooler."""

    model_size: int
    num_heads: int
    feed_forward: int
    num_layers: int
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(self)

    @property
    def num_linear(self) -> int:
        """Weights of matrix products and their biases, which autocast copies."""
        size, wide = self.model_size, self.feed_forward
        return self.num_layers * (4 * (size * size + size) + 2 * size * wide + wide + size)

    @property
    def num_weights(self) -> int:
        """All weights."""
        embeddings = (self.vocabulary + self.positions + self.types) * self.model_size
        return embeddings + self.num_linear + (2 * self.num_layers + 1) * 2 * self.model_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The two halves of a run's model, and the lengths they are used with."""

    reader: ReaderShape
    encoder: EncoderShape
    is_tied: bool = True
    """Questions and passages share one encoder."""
    max_input_tokens: int
    """Longest reader input for one passage."""
    max_target_tokens: int
    max_passage_tokens: int
    max_question_tokens: int

    def __post_init__(self) -> None:
        """Check the lengths."""
        check_sizes(self)


def _t5(model_size: int, feed_forward: int, num_heads: int, num_layers: int) -> ReaderShape:
    return ReaderShape(
        model_size=model_size,
        feed_forward=feed_forward,
        num_heads=num_heads,
        num_layers=num_layers,
        num_decoder_layers=num_layers,
    )


T5: Final = {  # T5 1.1 and its lm-adapt form, by the published config.json files
    "small": _t5(512, 1024, 6, 8),
    "base": _t5(768, 2048, 12, 12),
    "large": _t5(1024, 2816, 16, 24),
    "xl": _t5(2048, 5120, 32, 24),
    "xxl": _t5(4096, 10240, 64, 24),
}
BERT_BASE: Final = EncoderShape(model_size=768, num_heads=12, feed_forward=3072, num_layers=12)
MINILM: Final = EncoderShape(model_size=384, num_heads=12, feed_forward=1536, num_layers=6)
BUNDLES: Final[Mapping[str, tuple[ReaderShape, EncoderShape]]] = {
    "asset:quickstart": (T5["small"], MINILM),
    **{
        f"atlas:models/{family}/{size}": (T5[size], BERT_BASE)
        for family in ("atlas", "atlas_nq")
        for size in ("base", "large", "xl", "xxl")
    },
}
READERS: Final[Mapping[str, ReaderShape]] = {
    "asset:flan-t5-small-titles": T5["small"],
    **{f"hf://google/t5-{size}-lm-adapt": shape for size, shape in T5.items()},
    **{f"hf://google/t5-v1_1-{size}": shape for size, shape in T5.items()},
    **{f"hf://google/flan-t5-{size}": shape for size, shape in T5.items()},
}
ENCODERS: Final[Mapping[str, EncoderShape]] = {
    "asset:minilm": MINILM,
    "hf://sentence-transformers/all-MiniLM-L6-v2": MINILM,
    **{f"hf://facebook/{name}": BERT_BASE for name in ("contriever", "contriever-msmarco")},
}


def known_shapes(*, model: str, reader: str, retriever: str) -> tuple[ReaderShape, EncoderShape]:
    """Shapes of a recipe's models by the names of their sources.

    Args:
        model: source of both, or empty.
        reader: source that replaces its reader, or empty.
        retriever: source that replaces its encoder, or empty.

    Raises:
        ConfigError: a source whose shape is not in the tables.
    """
    both = BUNDLES.get(model, (None, None))
    found = (READERS.get(reader) if reader else both[0], ENCODERS.get(retriever) if retriever else both[1])
    if found[0] is None or found[1] is None:
        name = (reader if found[0] is None else retriever) or model or "none"
        raise ConfigError(f"model: expected a source of known size, found {name}; give --model with a model artifact")
    return found[0], found[1]


def reader_shape(config: Mapping[str, Any]) -> ReaderShape:
    """A T5's shape from its `config.json`.

    Raises:
        ArtifactError: another architecture.
    """
    if config.get("model_type") != "t5":
        raise ArtifactError(f"reader/config.json: expected model_type t5, found {config.get('model_type')!r}")
    return ReaderShape(
        model_size=int(config["d_model"]),
        head_size=int(config["d_kv"]),
        num_heads=int(config["num_heads"]),
        feed_forward=int(config["d_ff"]),
        num_layers=int(config["num_layers"]),
        num_decoder_layers=int(config.get("num_decoder_layers") or config["num_layers"]),
        vocabulary=int(config["vocab_size"]),
        is_gated=str(config["feed_forward_proj"]).startswith("gated-"),
        is_tied=bool(config.get("tie_word_embeddings", True)),
    )


def encoder_shape(config: Mapping[str, Any]) -> EncoderShape:
    """A BERT's shape from its `config.json`.

    Raises:
        ArtifactError: another architecture.
    """
    if config.get("model_type") not in BERT_TYPES:
        expected = ", ".join(BERT_TYPES)
        raise ArtifactError(
            f"retriever/passage/config.json: expected one of {expected}, found {config.get('model_type')!r}"
        )
    return EncoderShape(
        model_size=int(config["hidden_size"]),
        num_heads=int(config["num_attention_heads"]),
        feed_forward=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        vocabulary=int(config["vocab_size"]),
        positions=int(config["max_position_embeddings"]),
        types=int(config["type_vocab_size"]),
    )
