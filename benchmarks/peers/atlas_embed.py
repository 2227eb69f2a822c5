"""Embedding as Atlas makes an index, written anew from the description in its paper (arXiv 2208.03299, section 3.2).

Plain transformers in fp32 with eager attention, batches of 512 in the order of the input, padded to the longest in
them, cut at 256 tokens; mean pooling. On a GPU Atlas uses fp16; on a CPU that would be several times slower still.

Shapes: `N` texts, `B` texts of a batch, `L` tokens, `D` values in a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 512
MAX_TOKENS = 256


def load(folder: Path, *, normalize: bool) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to vectors, float32 [N, D].

    Args:
        folder: an encoder in transformers' layout.
        normalize: give vectors of length 1.
    """
    from transformers import AutoModel, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **options).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), BATCH):
            rows = list(texts[start : start + BATCH])
            batch = tokenizer(rows, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            state_BLD = model(**batch).last_hidden_state
            mask_BL1 = batch["attention_mask"].unsqueeze(-1)
            vector_BD = (state_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
            parts.append(torch.nn.functional.normalize(vector_BD, dim=-1) if normalize else vector_BD)
        return torch.cat(parts).numpy()

    return encode
