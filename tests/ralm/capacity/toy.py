"""Small real models whose shape is known, and what they take in memory, counted storage by storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ralm.capacity.architecture import EncoderShape, Models, ReaderShape
from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader, fuse_activations
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.encoder import Encoder
from ralm.training.batch import Batch
from ralm.training.config import TrainingConfig
from ralm.training.learner import Learner
from tests.ralm.training.test_recorded_losses import TEXT, make_tokenizer

VOCABULARY = 2000
READER = ReaderShape(
    model_size=128,
    head_size=32,
    num_heads=4,
    feed_forward=320,
    num_layers=3,
    num_decoder_layers=2,
    vocabulary=VOCABULARY,
    is_tied=True,  # transformers ties a T5 that is made from its config alone
)
ENCODER = EncoderShape(model_size=96, num_heads=3, feed_forward=384, num_layers=3, vocabulary=VOCABULARY)
MODELS = Models(
    reader=READER,
    encoder=ENCODER,
    max_input_tokens=96,
    max_target_tokens=16,
    max_passage_tokens=64,
    max_question_tokens=32,
)


def make_t5(shape: ReaderShape) -> T5ForConditionalGeneration:
    """A T5 of this shape."""
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(t5_config(shape)).eval()
    fuse_activations(model)
    return model


def t5_config(shape: ReaderShape) -> T5Config:
    """Its config."""
    return T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.model_size,
        d_kv=shape.head_size,
        d_ff=shape.feed_forward,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_decoder_layers,
        num_heads=shape.num_heads,
        feed_forward_proj="gated-gelu" if shape.is_gated else "relu",
        decoder_start_token_id=0,
    )


def make_bert(shape: EncoderShape) -> BertModel:
    """A BERT of this shape, without a pooler."""
    torch.manual_seed(4)
    return BertModel(bert_config(shape), add_pooling_layer=False).eval()


def bert_config(shape: EncoderShape) -> BertConfig:
    """Its config."""
    return BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.model_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.types,
    )


def make_learner(config: TrainingConfig, dtype: torch.dtype, folder: Path) -> Learner:
    """A learner with models of the shapes above, whose texts fill the lengths above."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), pad_token="<pad>", eos_token="</s>")
    limits = ReaderConfig(max_input_tokens=MODELS.max_input_tokens, max_target_tokens=MODELS.max_target_tokens)
    reader = FusionReader(make_t5(READER), tokenizer, limits, folder=folder)
    lengths = RetrieverConfig(
        max_passage_tokens=MODELS.max_passage_tokens, max_question_tokens=MODELS.max_question_tokens
    )
    encoder = Encoder(make_bert(ENCODER), lengths, make_tokenizer(), folder)
    return Learner(reader, encoder, encoder if config.mode == "joint" else None, config, dtype)


def full_batch(config: TrainingConfig) -> Batch:
    """A batch whose questions, passages and targets are as long as the models take."""
    words = TEXT.split() * 10
    passage = SimpleNamespace(title="king", section="", text=" ".join(words[:120]))
    size, retrieved = config.batch_size, config.num_scored
    return Batch(
        questions=[" ".join(words[:32])] * size,
        targets=[" ".join(words[:20])] * size,
        passages=[[passage] * retrieved] * size,  # type: ignore[list-item]  # as real passages, without an id
        vectors=torch.randn(size, retrieved, ENCODER.model_size),
    )


def kept_bytes(compute: Callable[[], Any], weights: Iterable[nn.Parameter]) -> int:
    """Bytes of the storages that are kept for the backward pass, each once, without the weights and copies of them."""
    weights = list(weights)
    shapes = {tuple(weight.shape) for weight in weights} | {tuple(reversed(weight.shape)) for weight in weights}
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_copy = tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in own and not is_copy:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps the address in use
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(size for size, _ in found.values())


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that are made inside and alive at the same time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._now = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in given and key not in self._alive:
                    self._alive.add(key)
                    self._now += size
                    weakref.finalize(storage, self._free, key, size)
        self.peak = max(self.peak, self._now)
        return result

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
