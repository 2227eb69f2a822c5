"""One half of a retriever: a BERT-like encoder whose token states are pooled into one vector.

Shapes: `B` texts, `L` tokens, `D` values in a vector.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from ralm.device import take_any_shape, to_device
from ralm.errors import ArtifactError
from ralm.pretrained import load_config, load_weights
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.packed import PackedBert, can_pack
from ralm.retriever.pooling import POOL

TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
_TAKES_MASK_OF_KEYS = {"bert", "roberta", "xlm-roberta", "camembert"}
_WITH_POOLER = {"bert", "roberta", "xlm-roberta", "camembert", "mpnet"}
MODEL_TYPES = _WITH_POOLER | {"distilbert", "electra", "modernbert"}


class Encoder(nn.Module):
    """A retriever's question or passage half."""

    def __init__(self, model: PreTrainedModel, config: RetrieverConfig, tokenizer: Tokenizer, folder: Path) -> None:
        super().__init__()
        self.model, self.config, self.tokenizer, self._folder = model, config, tokenizer, folder
        self._pool = POOL[config.pooling]
        is_fused = model.config._attn_implementation == "sdpa"
        self._takes_mask_of_keys = is_fused and model.config.model_type in _TAKES_MASK_OF_KEYS

    @classmethod
    def load(cls, folder: Path, config: RetrieverConfig, *, device: torch.device, dtype: torch.dtype) -> Self:
        """Load a half of a `model` artifact, in evaluation mode.

        Args:
            folder: `config.json`, `model.safetensors`, `tokenizer.json`.
            config: pooling, normalising and lengths.
            device: where to compute.
            dtype: format of the weights; pooling is fp32 in any case.

        Raises:
            ArtifactError: files missing or unreadable, or an architecture that is no text encoder.
        """
        model = load_encoder_model(folder, dtype)
        longest, wanted = max_encoder_tokens(model.config), max(config.max_passage_tokens, config.max_question_tokens)
        if wanted > longest:
            raise ArtifactError(f"{folder}: takes {longest} tokens, but the retriever's settings allow {wanted}")
        take_any_shape(device)
        return cls(model, config, load_tokenizer(folder), folder).to(device).eval()

    @property
    def dimension(self) -> int:
        """D, the values in a vector."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return int(self.model.config.pad_token_id or 0)

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            input_ids_BL: token ids.
            attention_mask_BL: 1 on real tokens; None where all are.

        Returns:
            vector_BD, float32.
        """
        mask = attention_mask_BL
        if mask is not None and mask.is_cuda and self._takes_mask_of_keys:
            # From [B, L] transformers makes one for each pair of tokens, and waits for the GPU to say if it is needed.
            mask = mask.bool()[:, None, None, :]
        return self.pool(self.model(input_ids=input_ids_BL, attention_mask=mask).last_hidden_state, attention_mask_BL)

    def pool(self, states_BLD: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """Vectors, float32 [B, D], from the states of the last layer; arguments as those of `forward`."""
        vector_BD = self._pool(states_BLD, attention_mask_BL)
        return nn.functional.normalize(vector_BD, dim=-1) if self.config.normalize else vector_BD

    def packed(self, batch_tokens: int) -> PackedBert | None:
        """A copy of the weights for many texts without padding; None where model or device have no such way.

        Args:
            batch_tokens: tokens of most batches.
        """
        dtype, kind = next(self.parameters()).dtype, self.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return PackedBert(self.model, dtype, batch_tokens) if can_pack(self.model, dtype) else None

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Token ids of each text (uint32), cut to `max_tokens`, without padding. One call for many texts is fastest."""
        self.tokenizer.enable_truncation(max_tokens)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def pad(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """Token ids as one tensor [B, L] on the encoder's device and its mask, None where all are equally long."""
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        longest = int(lengths.max())
        padded_BL = np.full((len(ids), longest), self.pad_id, dtype=np.int64)
        for row, values in enumerate(ids):
            padded_BL[row, : len(values)] = values
        input_ids_BL = to_device(torch.from_numpy(padded_BL), self.device)
        if int(lengths.min()) == longest:
            return input_ids_BL, None
        mask_BL = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
        return input_ids_BL, to_device(mask_BL, self.device)

    def save(self, folder: Path) -> None:
        """Write weights, architecture and tokenizer, so that `load` gives the same encoder."""
        self.model.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self._folder / name).is_file() and self._folder != folder:
                (folder / name).write_bytes((self._folder / name).read_bytes())


def max_encoder_tokens(config: PretrainedConfig) -> int:
    """How many tokens an encoder has positions for (RoBERTa's first two positions are not used)."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    offset = 2 if config.model_type in _OFFSET_POSITIONS else 0
    return positions - offset if positions > 0 else sys.maxsize


def load_encoder_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the bare encoder (no pooler head) of a folder in `transformers` layout.

    Raises:
        ArtifactError: files missing or unreadable, or an architecture that is no text encoder.
    """
    config = load_config(folder, "retriever", MODEL_TYPES)
    options = {"add_pooling_layer": False} if config.model_type in _WITH_POOLER else {}
    model: PreTrainedModel = load_weights(AutoModel, folder, config=config, dtype=dtype, **options)
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` without its padding (batches are padded here, by need).

    Raises:
        ArtifactError: missing or unreadable.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {TOKENIZER_FILE}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ArtifactError(f"{path}: no readable tokenizer: {error}") from error
    tokenizer.no_padding()
    return tokenizer
